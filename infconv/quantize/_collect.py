"""Run a model on calibration data and keep a sketch of each tensor asked for, never the tensors themselves."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv import isolate
from infconv.errors import UsageError
from infconv.model import save
from infconv.quantize._sketch import Record

Array = np.ndarray[Any, np.dtype[Any]]
Batches = Callable[[], Iterable[Mapping[str, Array]]]
"""Gives the calibration batches, from the start at each call."""

GROUP_BYTES = 256 << 20
"""Tensors that are fetched in one run together take at most about this much memory."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A tensor to watch."""

    name: str
    axis: int | None = None
    """The axis whose channels are watched too."""


def collect(
    model: ir.Model, wanted: Sequence[Wanted], batches: Batches, group_bytes: int = GROUP_BYTES
) -> dict[str, Record]:
    """Return name -> record over all batches. `model` is not changed.

    Only tensors of the main graph can be watched. They become outputs of a session, group by group where together
    they would take more than `group_bytes`, so that memory depends on neither their number nor that of samples.
    Runs in a child process. Raises UsageError when there is no batch.
    """
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory(prefix="infconv-calibration-") as folder:
        return isolate.call(lambda: _collect(model, wanted, batches, group_bytes, Path(folder)), what="Calibration")


def _collect(
    model: ir.Model, wanted: Sequence[Wanted], batches: Batches, group_bytes: int, folder: Path
) -> dict[str, Record]:
    first = next(iter(batches()), None)
    if first is None:
        raise UsageError("--calibration has no samples.", "Give at least some tens of them.")
    records = {item.name: Record() for item in wanted}
    for number, group in enumerate(_groups(model, wanted, first, group_bytes)):
        path = with_outputs(model, [item.name for item in group], folder / f"group{number}.onnx")
        session = open_for_calibration(path)
        inputs = {value.name for value in session.get_inputs()}
        for batch in batches():
            feed = {name: array for name, array in batch.items() if name in inputs}
            outputs = session.run([item.name for item in group], feed)
            for item, values in zip(group, outputs, strict=True):
                records[item.name].add(values, item.axis)
            del outputs
    return records


def open_for_calibration(path: Path) -> Any:
    """Return a session with standard optimizations that keep memory low: no arena, no memory pattern."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def with_outputs(model: ir.Model, names: Sequence[str], path: Path) -> Path:
    """Save the model with the tensors `names` as further outputs."""
    clone = model.clone()
    have = {value.name for value in clone.graph.outputs}
    values = {value.name: value for value in main_values(clone)}
    for name in names:
        if name not in have:
            clone.graph.outputs.append(values[name])
    return save(clone, path)[0]


def main_values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the inputs and the values that nodes of the main graph compute."""
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _groups(
    model: ir.Model, wanted: Sequence[Wanted], first: Mapping[str, Array], group_bytes: int
) -> Iterator[list[Wanted]]:
    sizes = _sizes(model, first)
    group: list[Wanted] = []
    used = 0
    for item in wanted:
        size = sizes.get(item.name, 0)
        if group and used + size > group_bytes:
            yield group
            group, used = [], 0
        group.append(item)
        used += size
    yield group


def _sizes(model: ir.Model, first: Mapping[str, Array]) -> dict[str, int]:
    """Return value name -> bytes for a batch like `first`; an unknown dimension counts as the largest known one."""
    dims: dict[str, int] = {}
    for value in model.graph.inputs:
        array = first.get(value.name or "")
        if array is not None and value.shape is not None and len(value.shape) == array.ndim:
            dims |= {
                str(dim.value): size
                for dim, size in zip(value.shape, array.shape, strict=True)
                if isinstance(dim, ir.SymbolicDim)
            }
    usual = max(dims.values(), default=1)
    return {
        value.name or "": 4 * math.prod(d if isinstance(d, int) else dims.get(str(d.value), usual) for d in value.shape)
        for value in main_values(model)
        if value.shape is not None
    }
