"""Sample inputs, and what the source model answers to them: the reference that every artifact is compared with."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infconv.census import all_nodes
from infconv.convert._base import DimRange
from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import Source


@dataclasses.dataclass(frozen=True)
class Sample:
    """Inputs, and the source's outputs for them once it was run."""

    label: str
    """What is particular about it, e.g. `batch=2 seq=8`."""
    inputs: dict[str, Any]
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the source framework computed."""

    producer: str
    samples: Sequence[Sample]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class InputInfo:
    """A graph input, and the values that make sense for it."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    """Names for dynamic dims; an unnamed one is `<input>.<axis>`."""
    low: int = 0
    high: int = 2
    """Integers lie in [low, high)."""
    mask: bool = False
    """Ones, then zeros along the last axis, as padding masks are."""


def make_reference(
    source: Source, model: ir.Model, dims: Mapping[str, DimRange], sample: str | None, seed: int
) -> Reference:
    """Run the source on the user's sample, or on seeded inputs at several sizes of each dynamic dimension.

    A synthetic sample that the source itself refuses (a size that its architecture does not allow) is left out and
    noted. Raises SourceError when the source ran on none.
    """
    _refuse_random(model)
    infos = [_limited(info, source.value_limits.get(info.name)) for info in describe_inputs(model)]
    ranges = {**source.dims, **dims}
    if sample is not None:
        inputs = load_sample(sample, infos)
        return Reference(source.producer, [Sample(Path(sample).name, inputs, source.run(inputs))])
    samples, refused = _run_plans(source, infos, list(size_plans(infos, ranges)), seed)
    if not samples and any(isinstance(d, str) for info in infos for d in info.dims):
        samples, _ = _run_plans(source, infos, list(larger_plans(infos, ranges)), seed)
    if not samples:
        raise SourceError(
            f"The source model ran on none of the synthetic inputs: {next(iter(refused.values()))}",
            "Give real inputs with --sample FILE.npz, or fixed sizes with --input and --dim.",
        )
    notes = [f"Not verified at {label}: the source does not run at that size ({why})" for label, why in refused.items()]
    return Reference(source.producer, samples, notes)


def _refuse_random(model: ir.Model) -> None:
    """Raise UnsupportedError for a model that draws random numbers: two runs of it differ by themselves."""
    for node in all_nodes(model):
        if node.domain == "" and (node.op_type.startswith("Random") or node.op_type in {"Bernoulli", "Multinomial"}):
            raise UnsupportedError(
                f"The model draws random numbers ({node.op_type} '{node.name}'): its outputs cannot be compared.",
                "Convert it with --verify off, or make the noise an input of the model.",
            )


def _run_plans(
    source: Source, infos: Sequence[InputInfo], plans: Sequence[tuple[str, dict[str, int]]], seed: int
) -> tuple[list[Sample], dict[str, str]]:
    """Return the samples that the source accepted, and label -> reason of those that it refused."""
    fed = [(label, make_inputs(infos, sizes, seed)) for label, sizes in plans]
    samples: list[Sample] = []
    refused: dict[str, str] = {}
    for (label, inputs), outcome in zip(fed, source.run_all([inputs for _, inputs in fed]), strict=True):
        if isinstance(outcome, InfconvError):
            refused[label] = outcome.message
        else:
            samples.append(Sample(label, inputs, outcome))
    return samples, refused


# --- what the inputs are ---------------------------------------------------------------------------------------


def describe_inputs(model: ir.Model) -> list[InputInfo]:
    """Return the inputs that a caller must feed, with the value ranges that the graph implies."""
    return [_describe(value) for value in model.graph.inputs if value.name not in model.graph.initializers]


def _describe(value: ir.Value) -> InputInfo:
    import onnx_ir as ir

    name = value.name or ""
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise SourceError(
            f"Input '{name}' is not a tensor of known rank, so no sample can be made for it.",
            "Give real inputs with --sample FILE.npz, or convert with --verify off.",
        )
    dims = tuple(d if isinstance(d, int) else (d.value or f"{name}.{i}") for i, d in enumerate(value.shape))
    dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.type.dtype.numpy()
    mask = "mask" in name.lower() and dtype.kind in "iubf"
    rows = _table_rows(value) if dtype.kind in "iu" else None
    return InputInfo(name, dtype, dims, 0, rows or 2, mask)


def _limited(info: InputInfo, limit: int | None) -> InputInfo:
    """Return `info` with integers below `limit` as well."""
    known = info.high > 2
    return info if limit is None else dataclasses.replace(info, high=min(info.high, limit) if known else limit)


_INDEX_PRESERVING = {
    "Cast",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Flatten",
    "Identity",
    "Slice",
    "Expand",
    "Concat",
}


def _table_rows(value: ir.Value) -> int | None:
    """Return the fewest rows of the tables that `value` indexes (Gather's data), so that samples stay inside."""
    rows: list[int] = []
    todo, seen = [value], {id(value)}
    while todo:
        current = todo.pop()
        for node, index in current.uses():
            data = node.inputs[0] if node.inputs else None
            if node.op_type == "Gather" and index == 1 and data is not None and data.shape is not None:
                axis = node.attributes.get_int("axis", 0)
                size = data.shape[axis]
                rows += [size] if isinstance(size, int) and size > 0 else []
            elif node.op_type in _INDEX_PRESERVING and index == 0 and id(node.outputs[0]) not in seen:
                seen.add(id(node.outputs[0]))
                todo.append(node.outputs[0])
    return min(rows) if rows else None


# --- sizes and values ------------------------------------------------------------------------------------------


def size_plans(infos: Sequence[InputInfo], ranges: Mapping[str, DimRange]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (label, dimension name -> size): the usual size first, then the smallest, then another."""
    names = list(dict.fromkeys(d for info in infos for d in info.dims if isinstance(d, str)))
    if not names:
        yield "fixed shapes", {}
        return
    seen: set[tuple[int, ...]] = set()
    for pick in (_usual, _least, _other):
        sizes = {name: pick(name, ranges.get(name, DimRange())) for name in names}
        key = tuple(sizes.values())
        if key not in seen:
            seen.add(key)
            yield " ".join(f"{name}={size}" for name, size in sizes.items()), sizes


def larger_plans(infos: Sequence[InputInfo], ranges: Mapping[str, DimRange]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield sizes for models that refuse the usual ones: images want multiples of 32, audio hundreds of samples."""
    names = list(dict.fromkeys(d for info in infos for d in info.dims if isinstance(d, str)))
    for size in (32, 64, 224, 512):
        sizes = {n: 1 if DimRange().usual(n) == 2 else _within(size, ranges.get(n, DimRange())) for n in names}
        yield " ".join(f"{name}={size}" for name, size in sizes.items()), sizes


def _within(size: int, given: DimRange) -> int:
    return max(given.min, size if given.max is None else min(size, given.max))


def _usual(name: str, given: DimRange) -> int:
    return given.usual(name)


def _least(_name: str, given: DimRange) -> int:
    return given.min


def _other(name: str, given: DimRange) -> int:
    """Return a size that is neither the usual nor the least, and not a multiple of them where there is room."""
    size = given.usual(name) + (1 if given.usual(name) < 8 else 3)
    return size if given.max is None else min(size, given.max)


def make_inputs(infos: Sequence[InputInfo], sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Return seeded inputs: normal floats, integers within their tables, padding masks, booleans."""
    inputs: dict[str, Any] = {}
    for info in infos:
        # crc32, not hash(): the same inputs in every process.
        rng = np.random.default_rng([seed, zlib.crc32(info.name.encode())])
        shape = tuple(d if isinstance(d, int) else sizes[d] for d in info.dims)
        inputs[info.name] = _make_value(info, shape, rng)
    return inputs


def _make_value(info: InputInfo, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = info.dtype.kind
    if info.mask and shape:
        return _padding_mask(shape, rng).astype(info.dtype)
    if kind == "b":
        return np.asarray(rng.random(shape) > 0.5)
    if kind in "iu":
        return np.asarray(rng.integers(info.low, info.high, shape)).astype(info.dtype)
    if kind == "O":
        return np.array([f"s{i}" for i in range(int(np.prod(shape)))], dtype=object).reshape(shape)
    if kind == "c":
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(info.dtype)
    return np.asarray(rng.standard_normal(shape, dtype=np.float32)).astype(info.dtype)


def _padding_mask(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return ones followed by zeros along the last axis; every row keeps at least half, the first row all."""
    length = shape[-1]
    valid = rng.integers((length + 1) // 2, length + 1, shape[:-1])
    if valid.ndim and valid.size:
        valid.flat[0] = length
    return np.arange(length) < np.asarray(valid)[..., None]


def read_npz(path: str, option: str) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file. Raises UsageError naming the `option` that gave it."""
    if not Path(path).is_file():
        raise UsageError(f"{option} '{path}' does not exist.", "Check the path.")
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{option} '{path}' is not a .npz file of plain arrays: {error}.",
            "Write it with numpy.savez(path, name=array).",
        ) from error


def load_sample(path: str, infos: Sequence[InputInfo]) -> dict[str, Any]:
    """Read a .npz with one array for each input. Raises UsageError that names what is missing or does not fit."""
    arrays = read_npz(path, "--sample")
    names = [info.name for info in infos]
    for name in arrays:
        if name not in names:
            raise UsageError(f"--sample has an array '{name}', which is no input.", did_you_mean(name, names))
    for info in infos:
        if info.name not in arrays:
            raise UsageError(f"--sample has no array for input '{info.name}'.", f"The inputs are: {', '.join(names)}.")
        arrays[info.name] = _fitted(info, arrays[info.name])
    return arrays


def _fitted(info: InputInfo, array: np.ndarray) -> np.ndarray:
    fits = array.ndim == len(info.dims) and all(
        isinstance(want, str) or want == have for want, have in zip(info.dims, array.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"--sample: '{info.name}' has shape {list(array.shape)}, the model wants {list(info.dims)}.")
    if not np.can_cast(array.dtype, info.dtype, "same_kind"):
        raise UsageError(f"--sample: '{info.name}' is {array.dtype}, the model wants {info.dtype}.")
    return array.astype(info.dtype, copy=False)
