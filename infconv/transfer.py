"""Run a step in a forked child and bring the changed model back; weights that did not change are never copied."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infconv import isolate
from infconv.model import from_proto, skeleton, tensor_bytes, view

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.passes import Context, Pass


def run_isolated(
    step: Pass, model: ir.Model, context: Context, *, timeout: float | None = None, memory_limit: int | None = None
) -> tuple[ir.Model, int]:
    """Return the model as `step` leaves it and the number of changes; `model` itself is never touched.

    Raises what the step raises, or Crashed, TimedOut, OutOfMemory. The context's notes are brought back too.
    """
    import onnx
    import onnx_ir as ir

    kept = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    with tempfile.NamedTemporaryFile(prefix="infconv-") as stream:
        path = Path(stream.name)
        changes, proto, places, context.notes[:] = isolate.call(
            lambda: _run(step, model, context, kept, path),
            what=f"Step {step.step_name()}",
            timeout=timeout,
            memory_limit=memory_limit,
        )
        if not changes:
            return model, 0
        new = _map(path)
    result = from_proto(onnx.ModelProto.FromString(proto))
    for name, value in result.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            place = places[name]
            value.const_value = kept[place] if place >= 0 else view(value.const_value, new, ~place)
    return result, changes


def _map(path: Path) -> mmap.mmap:
    """Map the file of new weights (which has at least one byte); the mapping outlives the file's name."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _run(
    step: Pass, model: ir.Model, context: Context, kept: Sequence[ir.TensorProtocol], path: Path
) -> tuple[int, bytes, Mapping[str, int], list[str]]:
    """Run in the child; return changes, the model without weights, where its weights are, and the notes.

    A place >= 0 is an index into `kept`, a place < 0 is the complement of an offset in the file at `path`.
    """
    changes = step.run(model, context)
    if not changes:
        path.write_bytes(b"\0")
        return 0, b"", {}, context.notes
    known = {id(tensor): index for index, tensor in enumerate(kept)}
    parts = skeleton(model)
    places: dict[str, int] = {}
    with path.open("wb") as stream:
        stream.write(b"\0" * 64)
        for name, tensor in parts.weights.items():
            places[name] = known[id(tensor)] if id(tensor) in known else ~stream.tell()
            if places[name] < 0:
                stream.write(tensor_bytes(tensor))
    return changes, parts.proto.SerializeToString(), places, context.notes
