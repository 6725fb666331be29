"""Run a model on calibration data and keep a sketch of each tensor asked for, never the tensors themselves."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv import isolate
from infconv.errors import UsageError
from infconv.model import save
from infconv.passes import Workers
from infconv.quantize._inputs import cut
from infconv.quantize._sketch import SEGMENTS, Record, merged

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


@dataclasses.dataclass(frozen=True)
class _Group:
    """A model with tensors as further outputs, which are watched in one session."""

    file: str
    wanted: Sequence[Wanted]
    rows: int
    """Samples that are run at a time; 0: a batch as it comes."""


def collect(
    model: ir.Model,
    wanted: Sequence[Wanted],
    batches: Batches,
    group_bytes: int = GROUP_BYTES,
    workers: Workers | None = None,
) -> dict[str, Record]:
    """Return name -> record over all batches. `model` is not changed.

    Only tensors of the main graph can be watched. They become outputs of a session. Where together they would take
    more than `group_bytes`, batches are run in smaller parts, or, of a model with a fixed batch size, the tensors group
    by group, so that memory depends on neither their number nor that of samples.
    Runs in a child process, or by `workers`, among which the batches are divided: the records are the same to the bit.
    Raises UsageError when there is no batch.
    """
    if not wanted:
        return {}
    import onnxruntime  # pyright: ignore[reportUnusedImport]

    count = 1 if workers is None else min(workers.count, SEGMENTS)
    with tempfile.TemporaryDirectory(prefix="infconv-calibration-") as name:
        folder = Path(name)
        groups = isolate.call(lambda: _save(model, wanted, batches, group_bytes, folder), what="Calibration")
        if workers is None or count == 1:
            return isolate.call(lambda: _run(groups, batches, 1, folder, 0), what="Calibration")
        return merged(workers.spread(partial(_run, groups, batches, count), count, folder))


def _save(model: ir.Model, wanted: Sequence[Wanted], batches: Batches, group_bytes: int, folder: Path) -> list[_Group]:
    """Save the models that are run."""
    first = next(iter(batches()), None)
    if first is None:
        raise UsageError("--calibration has no samples.", "Give at least some tens of them.")
    sizes = value_bytes(model, first)
    rows = _rows(model, first, sum(sizes.get(item.name, 0) for item in wanted), group_bytes)
    parts = [wanted] if rows else _groups(sizes, wanted, group_bytes)
    groups = [_Group(f"group{number}.onnx", own, rows) for number, own in enumerate(parts)]
    for group in groups:
        with_outputs(model, [item.name for item in group.wanted], folder / group.file)
    return groups


def _run(groups: Sequence[_Group], batches: Batches, count: int, folder: Path, number: int) -> dict[str, Record]:
    """Return the records of the batches of one of `count` shards, each of which has whole segments."""
    records = {item.name: Record() for group in groups for item in group.wanted}
    for group in groups:
        session = open_for_calibration(folder / group.file)
        inputs = {value.name for value in session.get_inputs()}
        for place, batch in enumerate(batches()):
            if place % SEGMENTS % count != number:
                continue
            feed = {name: array for name, array in batch.items() if name in inputs}
            for part in cut(feed, group.rows) if group.rows else (feed,):
                outputs = session.run([item.name for item in group.wanted], part)
                for item, values in zip(group.wanted, outputs, strict=True):
                    records[item.name].add(values, item.axis, place)
                del outputs
    return records


def open_for_calibration(path: Path) -> Any:
    """Return a session with standard optimizations that keep memory low: no arena, no memory pattern."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # waiting threads leave the processor alone
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


def _rows(model: ir.Model, first: Mapping[str, Array], size: int, most: int) -> int:
    """Return into parts of how many rows a batch like `first` is cut whose tensors take `size` bytes; 0: not at all.

    Only where every input and output has the same dynamic dimension in front do its rows have nothing to do with one
    another.
    """
    values = [*model.graph.inputs, *model.graph.outputs]
    leading = {value.shape[0] if value.shape is not None and len(value.shape) else None for value in values}
    (dim,) = leading if len(leading) == 1 else (None,)
    rows = max((len(array) for array in first.values() if array.ndim), default=0)
    if size <= most or not isinstance(dim, ir.SymbolicDim) or dim.value is None:
        return 0
    return max(1, rows * most // size)


def _groups(sizes: Mapping[str, int], wanted: Sequence[Wanted], group_bytes: int) -> Iterator[list[Wanted]]:
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


def value_bytes(model: ir.Model, first: Mapping[str, Array]) -> dict[str, int]:
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
