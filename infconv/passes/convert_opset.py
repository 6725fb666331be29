"""The version of the standard operator set that a model is written in."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from pydantic import Field

from infconv import isolate
from infconv.errors import InfconvError, UnsupportedError
from infconv.passes._base import Context, Pass
from infconv.passes._graphs import standard_opset
from infconv.passes._inferred import TIMEOUT, inferred, stand_in
from infconv.passes._opset import CannotConvert, convert_scopes

OLDEST, NEWEST = 7, onnx.defs.onnx_opset_version()
"""Opsets that a model can be converted to. It may come from any, 1 included."""
_DEFAULT_MIN, _DEFAULT_TO = 13, 17


class ConvertOpset(Pass):
    """Convert the model to another version of the standard operator set, up or down.

    With neither `to` nor `min`, a model older than 13 is raised to 17 and others are left alone. Subgraphs and
    functions are converted too; operators of other domains stay as they are. The IR version is raised to the one that
    came with the opset. Nothing changes when one node cannot be converted.

    `s = Squeeze<axes = [0]>(x)` of opset 11 becomes `axes = Constant<value = int64[1] {0}>(); s = Squeeze(x, axes)`
    of opset 13.
    """

    to: int | None = Field(None, ge=OLDEST, le=NEWEST)
    """Convert to this opset. Without it, to `min`."""
    min: int | None = Field(None, ge=OLDEST, le=NEWEST)
    """Leave a model of at least this opset alone."""
    required: bool = True
    """Fail when the conversion is not possible. Otherwise the model stays as it is, and a note says why."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes changed, plus one for the version itself.

        Raises UnsupportedError that names the operator and the versions, unless `required` is off.
        """
        source = standard_opset(model.graph.opset_imports)
        target = None if source is None else self._target(source)
        if source is None or target is None or target == source:
            return 0
        try:
            return _convert(model, source, target)
        except UnsupportedError as error:
            if self.required:
                raise
            context.notes.append(f"The model stays at opset {source}. {error.message}")
            return 0

    def _target(self, source: int) -> int | None:
        """Return the opset to convert to; None to leave the model alone."""
        if self.to is not None and self.min is None:
            return self.to
        if self.to is None and self.min is None:
            least, target = _DEFAULT_MIN, _DEFAULT_TO
        else:
            least = self.min or OLDEST
            target = self.to if self.to is not None else least
        return target if source < least else None


def _convert(model: ir.Model, source: int, target: int) -> int:
    """Convert a copy, which shares the weights, and put it in the model's place when it is valid."""
    copy = _copy(model)
    try:
        with inferred(copy):
            changes = convert_scopes(copy, target)
    except CannotConvert as reason:
        raise UnsupportedError(
            f"The model cannot be converted from opset {source} to {target}: {reason}.",
            f"Export the model with opset {target}, or keep opset {source} with --opset {source}.",
        ) from reason
    copy.ir_version = max(model.ir_version or 0, onnx.helper.OP_SET_ID_VERSION_MAP[("ai.onnx", target)])
    _verify(model, copy, source, target)
    model.graph = copy.graph
    model.ir_version = copy.ir_version
    model.functions.clear()
    model.functions.update(copy.functions)
    return changes + 1


def _copy(model: ir.Model) -> ir.Model:
    try:
        return model.clone()
    except (RuntimeError, KeyError) as error:
        # onnx_ir cannot copy a graph in which a value is used that nothing in scope makes.
        raise UnsupportedError(
            "The model cannot be converted to another opset: it uses a value before, or without, computing it.",
            "Put the nodes in order with --pass sort-nodes, or export the model again.",
        ) from error


def _verify(before: ir.Model, after: ir.Model, source: int, target: int) -> None:
    """Raise UnsupportedError when the checker, types and shapes included, accepts `before` but not `after`.

    Newer operators infer more, so this also refuses models that claim a shape of a value which it does not have.
    """
    problem = _problem(after)
    if problem and not _problem(before):
        raise UnsupportedError(
            f"The conversion from opset {source} to {target} gave a model that is not valid: {problem}.",
            f"Export the model with opset {target}, or keep opset {source} with --opset {source}.",
        )


def _problem(model: ir.Model) -> str:
    """Return what onnx's checker has to say against `model`, as one line; empty when it is valid."""
    serialized = stand_in(model).SerializeToString()
    check = onnx.checker.check_model
    try:
        isolate.call(lambda: check(serialized, full_check=True), what="The ONNX checker", timeout=TIMEOUT)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    except InfconvError:  # it crashed or did not end, which says nothing about the model
        return ""
    return ""
