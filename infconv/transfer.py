"""Run a step in a forked child and bring the changed model back; weights that did not change are never copied."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.errors import InfconvError
from infconv.model import from_proto, skeleton, tensor_bytes, view

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.passes import Allowance, Context, Pass


def run_isolated(
    step: Pass, model: ir.Model, context: Context, *, timeout: float | None = None, memory_limit: int | None = None
) -> tuple[ir.Model, int]:
    """Return the model as `step` leaves it and the number of changes; `model` itself is never touched.

    Raises what the step raises, or Crashed, TimedOut, OutOfMemory. The context's notes and documents are brought back.
    """
    import tempfile

    import onnx
    import onnx_ir as ir

    from infconv import isolate

    kept = [*_weights(model)]
    with tempfile.NamedTemporaryFile(prefix="infconv-") as stream:
        path = Path(stream.name)
        changes, proto, places, told = isolate.call(
            lambda: _run(step, model, context, kept, path),
            what=f"Step {step.step_name()}",
            timeout=timeout,
            memory_limit=memory_limit,
        )
        _bring_back(told, context)
        if not changes:
            return model, 0
        new = _map(path)
    result = from_proto(onnx.ModelProto.FromString(proto))
    for name, value in result.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            place = places[name]
            value.const_value = kept[place] if place >= 0 else view(value.const_value, new, ~place)
    return result, changes


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors that a step may keep: initializers, and constants in nodes."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()


@dataclasses.dataclass(frozen=True)
class _Told:
    """What a step told its copy of the context."""

    notes: list[str]
    documents: dict[str, str]
    allowance: Allowance | None


def _bring_back(told: _Told, context: Context) -> None:
    context.notes[:] = told.notes
    context.documents.update(told.documents)
    context.allowance = told.allowance


class Misbehaved(InfconvError):
    """A step does not keep the contract of all steps, on which what follows relies."""


_CONTRACT = "A step returns the number of its changes, 0 for none, and keeps names and types of inputs and outputs."


def _map(path: Path) -> mmap.mmap:
    """Map the file of new weights (which has at least one byte); the mapping outlives the file's name."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _run(
    step: Pass, model: ir.Model, context: Context, kept: Sequence[ir.TensorProtocol], path: Path
) -> tuple[int, bytes, Mapping[str, int], _Told]:
    """Run in the child; return changes, the model without weights, where its weights are, and the context.

    A place >= 0 is an index into `kept`, a place < 0 is the complement of an offset in the file at `path`.
    """
    changes = run_checked(step, model, context)
    told = _Told(context.notes, context.documents, context.allowance)
    if not changes:
        path.write_bytes(b"\0")
        return 0, b"", {}, told
    known = {id(tensor): index for index, tensor in enumerate(kept)}
    parts = skeleton(model)
    places: dict[str, int] = {}
    with path.open("wb") as stream:
        stream.write(b"\0" * 64)
        for name, tensor in parts.weights.items():
            places[name] = known[id(tensor)] if id(tensor) in known else ~stream.tell()
            if places[name] < 0:
                stream.write(tensor_bytes(tensor))
    return changes, parts.proto.SerializeToString(), places, told


def run_checked(step: Pass, model: ir.Model, context: Context) -> int:
    """Run and return the number of changes. A step from elsewhere is held to its contract; raises Misbehaved."""
    if type(step).__module__.startswith("infconv."):  # tests hold ours to it
        return step.run(model, context)
    name, before, declared = step.step_name(), _state(model), _interface(model)
    changes: Any = step.run(model, context)
    if not isinstance(changes, int) or changes < 0:
        raise Misbehaved(f"Step {name} returned {changes!r}, which is no number of changes.", _CONTRACT)
    if (changes > 0) == (_state(model) == before):
        did = "the model is as it was" if changes else "it did change the model"
        raise Misbehaved(f"Step {name} reported {changes} changes, but {did}.", _CONTRACT)
    if _interface(model) != declared:
        raise Misbehaved(f"Step {name} changed the interface {declared} to {_interface(model)}.", _CONTRACT)
    return changes


def _interface(model: ir.Model) -> str:
    """Return the names and types of inputs and outputs."""
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    texts = [", ".join(f"{value.name}: {value.dtype}" for value in values) for values in (inputs, model.graph.outputs)]
    return f"({texts[0]}) => ({texts[1]})"


def _state(model: ir.Model) -> tuple[bytes, list[int]]:
    """Return what a step may change: the model without its large weights, and which objects these are."""
    parts = skeleton(model)
    return parts.proto.SerializeToString(deterministic=True), [id(tensor) for tensor in parts.weights.values()]
