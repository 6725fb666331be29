"""Synthetic inputs: seeded, within the domains that the graph implies, at several sizes; and cases at the edge."""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from infconv.convert._base import DimRange
from infconv.errors import SourceError

if TYPE_CHECKING:
    import onnx_ir as ir

Role = Literal["", "mask", "length", "image"]
EdgeCase = Literal["zeros", "ones", "large", "denormal", "padding"]
EDGE_CASES: tuple[EdgeCase, ...] = ("zeros", "ones", "large", "denormal", "padding")
_LARGE, _DENORMAL = 1e4, 1e-40


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
    role: Role = ""
    """A mask is ones, then zeros along the last axis; a length counts them; an image holds 0 to 255."""


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
    role = _role(name, dtype, len(dims), value)
    rows = _table_rows(value) if dtype.kind in "iu" else None
    if rows is None and not role and dtype.name in {"uint8", "int8"}:  # pixels, or quantized values
        low = 0 if dtype.kind == "u" else -128
        return InputInfo(name, dtype, dims, low, low + 256)
    return InputInfo(name, dtype, dims, 0, rows or 2, role)


def _role(name: str, dtype: np.dtype[Any], rank: int, value: ir.Value) -> Role:
    if "mask" in name.lower() and dtype.kind in "iubf":
        return "mask"
    if re.search(r"(^|_)len(s|gths?)?$", name.lower()) and dtype.kind in "iu" and rank < 2:
        return "length"
    return "image" if dtype.kind == "f" and rank == 4 and _is_scaled(value) else ""


def _is_scaled(value: ir.Value) -> bool:
    """Whether the graph brings `value` from 0..255 to about 1: what it does first is a division by a large number."""
    for user, index in value.uses():
        operand = user.inputs[1 - index] if len(user.inputs) == 2 else None
        if user.op_type in {"Cast", "Transpose", "Identity"}:
            if _is_scaled(user.outputs[0]):
                return True
        elif operand is not None and operand.const_value is not None and user.op_type in {"Div", "Mul", "Sub"}:
            most = float(np.max(np.abs(operand.const_value.numpy().astype(np.float64)), initial=0.0))
            if (user.op_type == "Mul" and 0 < most < 0.1) or (user.op_type != "Mul" and most > 10):
                return True
    return False


def limited(info: InputInfo, limit: int | None) -> InputInfo:
    """Return `info` with integers below `limit` as well."""
    known = info.high > 2
    return info if limit is None else dataclasses.replace(info, high=min(info.high, limit) if known else limit)


_INDEXED = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterElements": 1, "EmbedLayerNormalization": 0}
"""Operator -> which input holds indices."""
_TABLE = {"EmbedLayerNormalization": 2}
"""Operator -> which input they index; 0 where it is not named."""
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
    """Return the fewest rows of the tables that `value` indexes (Gather's data …), so that samples stay inside."""
    rows: list[int] = []
    todo, seen = [value], {id(value)}
    while todo:
        current = todo.pop()
        for node, index in current.uses():
            data = node.inputs[_TABLE.get(node.op_type, 0)] if node.inputs else None
            if _INDEXED.get(node.op_type) == index and data is not None and data.shape is not None:
                size = data.shape[node.attributes.get_int("axis", 0)]
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
        if any(_is_flag(info) for info in infos):
            yield "fixed shapes, other flags", {}
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


def make_inputs(infos: Sequence[InputInfo], sizes: Mapping[str, int], seed: int, variant: int = 0) -> dict[str, Any]:
    """Return seeded inputs: normal floats, integers within their tables, padding masks, lengths, pixels, booleans.

    `variant` numbers the samples of a run: each has other values, and single flags are on in every second one.
    """
    inputs: dict[str, Any] = {}
    longest = _longest(infos, sizes)
    for info in infos:
        # crc32, not hash(): the same inputs in every process.
        rng = np.random.default_rng([seed, zlib.crc32(info.name.encode()), *([variant] if variant else [])])
        shape = _shape(info, sizes)
        if _is_flag(info):
            inputs[info.name] = np.full(shape, (zlib.crc32(info.name.encode()) + variant) % 2 == 1)
        elif info.role == "length":
            inputs[info.name] = _lengths(shape, longest, rng).astype(info.dtype)
        else:
            inputs[info.name] = _make_value(info, shape, rng)
    return inputs


def _shape(info: InputInfo, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else sizes[d] for d in info.dims)


def _is_flag(info: InputInfo) -> bool:
    return info.dtype.kind == "b" and all(d == 1 for d in info.dims)


def _longest(infos: Sequence[InputInfo], sizes: Mapping[str, int]) -> int:
    """Return the size that lengths count up to: the second dim of the inputs that have one, the least of them."""
    seconds = [_shape(info, sizes)[1] for info in infos if len(info.dims) > 1]
    return max(1, min(seconds, default=1))


def _lengths(shape: tuple[int, ...], longest: int, rng: np.random.Generator) -> np.ndarray:
    """Return lengths from half of the longest on; the first is the longest."""
    lengths = np.asarray(rng.integers((longest + 1) // 2, longest + 1, shape))
    if lengths.size:
        lengths.flat[0] = longest
    return lengths


def _make_value(info: InputInfo, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = info.dtype.kind
    if info.role == "mask" and shape:
        return _padding_mask(shape, rng).astype(info.dtype)
    if kind == "b":
        return np.asarray(rng.random(shape) > 0.5)
    if kind in "iu":
        return np.asarray(rng.integers(info.low, info.high, shape)).astype(info.dtype)
    if kind == "O":
        return np.array([f"s{i}" for i in range(int(np.prod(shape)))], dtype=object).reshape(shape)
    if info.role == "image":
        return np.asarray(rng.uniform(0, 255, shape)).astype(info.dtype)
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


# --- the cases at the edge ----------------------------------------------------------------------------------------


def with_edge_rows(infos: Sequence[InputInfo], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `inputs` with the first row of a dynamic batch all zeros, and the second all ones.

    Beside ordinary rows, which give the outputs their scale, they cost nothing: a forgotten epsilon shows.
    """
    changed = dict(inputs)
    for info in infos:
        value = inputs[info.name]
        if info.role in {"", "image"} and info.dtype.kind in "fiu" and _has_batch(info) and len(value) > 2:
            rows = np.array(value)
            rows[0], rows[1] = _edge(info, "zeros"), _edge(info, "ones")
            changed[info.name] = rows
    return changed


def _has_batch(info: InputInfo) -> bool:
    return bool(info.dims) and isinstance(info.dims[0], str) and DimRange().usual(info.dims[0]) == 2


def edge_samples(
    infos: Sequence[InputInfo], sizes: Mapping[str, int], cases: Sequence[EdgeCase], seed: int
) -> Iterator[tuple[EdgeCase, dict[str, Any], dict[str, Any]]]:
    """Yield (case, inputs, the same inputs moved by about one rounding) for each case that the inputs have.

    `large` is normal numbers times 10,000, `denormal` 1e-40, `padding` masks of zeros; integers take the ends of their
    range. A result that moves much more than the inputs did is no ground to judge by.
    """
    plain = make_inputs(infos, sizes, seed)
    for case in cases:
        roles = {"mask"} if case == "padding" else {"", "image"}
        touched = [i for i in infos if i.role in roles and i.dtype.kind in ("biuf" if case == "padding" else "iuf")]
        if not touched or (case in {"large", "denormal"} and not any(i.dtype.kind == "f" for i in touched)):
            continue
        inputs = dict(plain)
        for info in touched:
            factor = plain[info.name] if case == "large" and info.dtype.kind == "f" else np.ones((), info.dtype)
            full = np.broadcast_to(_edge(info, case) * factor, plain[info.name].shape)
            inputs[info.name] = full.astype(info.dtype)
        yield case, inputs, {name: _nudged(value) for name, value in inputs.items()}


def _edge(info: InputInfo, case: EdgeCase) -> Any:
    """Return the number that stands for a case in an input."""
    if info.dtype.kind == "f":
        ones = 255.0 if info.role == "image" else 1.0
        return {"zeros": 0.0, "ones": ones, "large": _LARGE, "denormal": _DENORMAL, "padding": 0.0}[case]
    if info.dtype.kind == "b" or case in {"zeros", "padding", "denormal"}:
        return max(info.low, 0)
    return info.high - 1 if case == "large" else min(1, info.high - 1)


def _nudged(value: Any) -> Any:
    """Return floats moved by about one rounding of float32: relative to themselves, or, where they are zero, to one."""
    if value.dtype.kind != "f":
        return value
    step = math.ldexp(1.0, -22)
    signs = np.where(np.arange(value.size).reshape(value.shape) % 2, 1.0, -1.0)
    return np.where(np.abs(value) < 1e-30, signs * step, value * (1.0 + signs * step)).astype(value.dtype)
