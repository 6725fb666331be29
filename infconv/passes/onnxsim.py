"""The onnxsim package, as a step."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from pathlib import Path

import onnx_ir as ir

from infconv import isolate
from infconv.errors import UnsupportedError, missing_extra
from infconv.model import load, save
from infconv.passes._base import Context, Pass
from infconv.passes._foreign import take_over

_ROUNDS = 4
"""How often onnxsim runs at most: its result is not always one that it would itself leave alone."""


class Onnxsim(Pass):
    """Run the onnxsim package on the model, until it finds nothing more.

    The model travels through a temporary file, and onnxsim runs in a process of its own, as it crashes on some models.
    Names, types and shapes of the model's inputs and outputs stay as they are.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the difference in nodes, at least 1; 0 when onnxsim changed nothing.

        Raises DependencyError without the package, UnsupportedError when it fails, Crashed when it crashes.
        """
        _require_package()
        before = sum(1 for _ in model.graph.all_nodes())
        rounds = 0
        while rounds < _ROUNDS and _simplify(model):
            rounds += 1
        if rounds == _ROUNDS:
            context.notes.append(f"onnxsim still changed the model when it ran for the {_ROUNDS}th time.")
        after = sum(1 for _ in model.graph.all_nodes())
        return max(1, abs(after - before)) if rounds else 0


def _require_package() -> None:
    """Import onnxsim here, so that the processes that are forked have it. Raises DependencyError."""
    try:
        importlib.import_module("onnxsim")
    except ImportError:
        raise missing_extra("onnxsim", "peers", "Step onnxsim") from None


def _simplify(model: ir.Model) -> int:
    """Run onnxsim once and return the number of changes."""
    # The weights of the result are views of its file, which its mapping keeps alive after the folder is gone.
    with tempfile.TemporaryDirectory(prefix="infconv-", ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "simplified.onnx")
        save(model, source)
        isolate.call(lambda: _call(source, target), what="onnxsim")
        result = load(target)
    _keep_interface(model, result)
    return take_over(model, result)


def _call(source: Path, target: Path) -> None:
    from onnxsim import simplify

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets custom operators
            simplify(str(source), output_path=str(target))
    except Exception as error:  # onnxsim raises what its native part, the checker or ONNX Runtime raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"onnxsim failed: {reason}", "Leave it out with --skip onnxsim.") from error


def _keep_interface(model: ir.Model, result: ir.Model) -> None:
    """Give inputs and outputs of `result` the types and shapes that the model declares."""
    for kind in ("inputs", "outputs"):
        old, new = getattr(model.graph, kind), getattr(result.graph, kind)
        if [value.name for value in old] != [value.name for value in new]:
            raise UnsupportedError(f"onnxsim changed the model's {kind}.", "Leave it out with --skip onnxsim.")
        for declared, value in zip(old, new, strict=True):
            value.type, value.shape = declared.type, declared.shape
