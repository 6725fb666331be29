"""One operator for two in a row: reshapes, slices, casts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._dims import Dim, Dims
from infconv.passes._moves import (
    FAR,
    RESHAPING,
    Range,
    as_target,
    attribute,
    axes_of,
    from_front,
    groups,
    integer,
    integers,
    permutation,
    regrouped,
    reshaped,
    same_sizes,
    sizes,
    slices,
)
from infconv.passes._pattern import Refuse

KEEPS_ORDER = (*RESHAPING, "Transpose")
"""Operators that keep all elements in their order; of the Transposes, those that move axes of size 1 only."""


def unless_shared(node: ir.Node, users: int = 1) -> None:
    """Raise Refuse when the result of `node` has more than these `users`: merging would compute it twice."""
    value = node.outputs[0]
    if value.is_graph_output() or _values.use_count(value) > users:
        raise Refuse(f"'{value.name}' is used elsewhere, too")


# --- reshapes ------------------------------------------------------------------------------------------------------


def one_reshape(op: Builder, x: ir.Value, inner: ir.Node, outer: ir.Node) -> ir.Value:
    """Return x or what one operator makes of it where `inner` and then `outer`, both of `KEEPS_ORDER`, did.

    Raises Refuse when two are needed, or when it is not known whether one will do.
    """
    if {inner.op_type, outer.op_type} == {"Squeeze", "Unsqueeze"} and axes_of(inner) == axes_of(outer) is not None:
        return x
    before = sizes(x)
    middle = _shape_after(inner, op.opset, before)
    after = _shape_after(outer, op.opset, middle)
    if same_sizes(before, after):
        return x
    if inner.op_type == outer.op_type and inner.op_type in ("Squeeze", "Unsqueeze"):
        return _one_squeeze(op, x, inner, outer)
    if op.opset < 5:
        raise Refuse(f"the shape of Reshape is an attribute in opset {op.opset}")
    target = _absolute_target(outer)
    if target is not None:
        return op.Reshape(x, target, allowzero=integer(outer, "allowzero", 0) or None)
    wanted = _wanted(outer, op.opset, middle, after)
    found = None if wanted is None else as_target(before or (), wanted)
    if found is None:
        raise Refuse("a constant cannot say which shape results")
    return op.Reshape(x, np.array(found, np.int64))


def one_transpose(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node, third: ir.Node) -> ir.Value:
    """Return a Transpose of x that does what a reshape, a Transpose and a reshape did; with a Reshape if need be.

    [2, 8, 17, 16] -> [16, 17, 16] -> [16, 16, 17] -> [2, 8, 16, 17] only exchanges the last axes. Raises Refuse.
    """
    before = sizes(x)
    middle = _shape_after(first, op.opset, before)
    perm = permutation(second)
    after = None if middle is None else _shape_after(third, op.opset, tuple(middle[axis] for axis in perm))
    if before is None or middle is None or after is None:
        raise Refuse("the shapes are not known")
    parts = [(after, before) for before, after in groups(before, middle)]
    order = regrouped([axis for axis in perm if middle[axis] != 1], parts)
    ones = [axis for axis, dim in enumerate(before) if dim == 1]
    wanted = tuple(dim for dim in after if dim != 1)
    if same_sizes(wanted, tuple(before[axis] for axis in order)) and len(after) == len(before):
        long, short = iter(order), iter(ones)
        return op.Transpose(x, perm=[next(short) if dim == 1 else next(long) for dim in after])
    target = as_target(tuple(before[axis] for axis in (*ones, *order)), after)
    if target is None or op.opset < 5:
        raise Refuse("a constant cannot say which shape results")
    return op.Reshape(op.Transpose(x, perm=[*ones, *order]), np.array(target, np.int64))


def _shape_after(node: ir.Node, opset: int, before: Dims | None) -> Dims | None:
    """Return the shape that `node` gives, from its parameters, or else as it is declared."""
    if node.op_type == "Transpose":
        return _untouched(node, before)
    try:
        found = reshaped(node, opset, before)
    except Refuse:
        found = None
    return sizes(node.outputs[0]) if found is None else found


def _untouched(node: ir.Node, before: Dims | None) -> Dims:
    perm = permutation(node)
    if before is None:
        raise Refuse("the shape that is transposed is not known")
    moved = [axis for axis in perm if before[axis] != 1]
    if moved != sorted(moved):
        raise Refuse(f"the Transpose changes the order of elements: perm is {list(perm)}")
    return tuple(before[axis] for axis in perm)


def _absolute_target(node: ir.Node) -> ir.Value | None:
    """Return the target of a Reshape when it does not depend on the shape of what is reshaped."""
    if node.op_type != "Reshape":
        return None
    target = node.inputs[1]
    if integer(node, "allowzero", 0):
        return target
    numbers = None if _values.tensor(target) is None else integers(node, 1)
    return target if numbers is not None and 0 not in numbers else None


def _wanted(outer: ir.Node, opset: int, middle: Dims | None, after: Dims | None) -> list[Dim] | None:
    """Return the resulting shape, with the -1 of a Reshape as it is: it is no worse than it was."""
    if outer.op_type == "Reshape" and _values.tensor(outer.inputs[1]) is not None:
        target = integers(outer, 1) or []
        if middle is not None:
            return [middle[axis] if size == 0 and axis < len(middle) else size for axis, size in enumerate(target)]
    return None if after is None else list(after)


def _one_squeeze(op: Builder, x: ir.Value, inner: ir.Node, outer: ir.Node) -> ir.Value:
    """Merge two Squeezes or two Unsqueezes."""
    first, second = axes_of(inner), axes_of(outer)
    if first is None or second is None:
        raise Refuse("the axes are not known")
    if inner.op_type == "Unsqueeze":
        second = from_front(second, _values.rank(outer.outputs[0]))
        first = from_front(first, _values.rank(inner.outputs[0]))
        kept = _others(second, len(first) + len(second) + max(first, default=0))
    else:
        first = from_front(first, _values.rank(x))
        second = from_front(second, _values.rank(inner.outputs[0]))
        kept = _others(first, len(first) + max(second, default=0) + 1)
        first, second = second, first
    axes = sorted([*second, *(kept[axis] for axis in first)])
    if op.opset < 13:
        return op.call(inner.op_type, x, axes=axes)
    return op.call(inner.op_type, x, np.array(axes, np.int64))


def _others(axes: Sequence[int], rank: int) -> list[int]:
    """Return which of at least `rank` axes are none of `axes`: number i of what is left is axis result[i]."""
    return [axis for axis in range(rank + len(axes) + 1) if axis not in set(axes)]


# --- slices --------------------------------------------------------------------------------------------------------


def one_slice(size: int | None, inner: Range, outer: Range) -> Range:
    """Return the range that takes the elements `outer` of the elements `inner` of an axis. Raises Refuse."""
    if size is not None:
        return as_range(inner.positions(size)[slice(*_clamped(outer, len(inner.positions(size))))])
    plain = all(r.step == 1 and r.start >= 0 and r.end >= 0 for r in (inner, outer))
    if not plain:
        raise Refuse("the size of the axis is not known")
    end = inner.end if outer.end >= FAR else min(inner.end, inner.start + outer.end)
    return Range(inner.start + outer.start, end, 1)


def _clamped(taken: Range, size: int) -> tuple[int, int | None, int]:
    positions = taken.positions(size)
    return positions.start, positions.stop if positions.stop >= 0 else None, positions.step


def as_range(positions: range) -> Range:
    """Return the parameters of a Slice that takes these positions."""
    if not positions:
        return Range(0, 0, 1)
    return Range(positions.start, positions.stop if positions.stop >= 0 else -FAR, positions.step)


def make_slice(op: Builder, x: ir.Value, ranges: dict[int, Range]) -> ir.Value:
    """Make a Slice; `ranges` are by axis."""
    starts, ends, steps = (list(column) for column in zip(*ranges.values(), strict=True))
    if op.opset < 10:
        return op.Slice(x, starts=starts, ends=ends, axes=list(ranges))
    operands = [np.array(numbers, np.int64) for numbers in (starts, ends, list(ranges), steps)]
    return op.Slice(x, *(operands if any(step != 1 for step in steps) else operands[:3]))


def by_axis(node: ir.Node, opset: int, rank: int | None) -> dict[int, Range]:
    """Return the ranges of a Slice by axis, counted from the front. Raises Refuse."""
    ranges = slices(node, opset)
    return dict(zip(from_front(list(ranges), rank), ranges.values(), strict=True))


# --- casts ---------------------------------------------------------------------------------------------------------

_MANTISSA = {
    ir.DataType.FLOAT16: (11, 5),
    ir.DataType.BFLOAT16: (8, 8),
    ir.DataType.FLOAT: (24, 8),
    ir.DataType.DOUBLE: (53, 11),
    ir.DataType.FLOAT8E4M3FN: (4, 4),
    ir.DataType.FLOAT8E5M2: (3, 5),
}
"""Significant bits and bits of the exponent."""


def holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether `wide` has every value of `narrow`, so that a Cast to it loses nothing."""
    if narrow in (wide, ir.DataType.BOOL):
        return wide == narrow or wide in _MANTISSA or wide.is_integer()
    if wide in _MANTISSA and narrow in _MANTISSA:
        return all(a >= b for a, b in zip(_MANTISSA[wide], _MANTISSA[narrow], strict=True))
    if not narrow.is_integer():
        return False
    bits = narrow.bitwidth - narrow.is_signed()
    if wide in _MANTISSA:
        return _MANTISSA[wide][0] >= bits
    return (
        wide.is_integer() and (wide.is_signed() or not narrow.is_signed()) and wide.bitwidth - wide.is_signed() >= bits
    )


def cast_type(node: ir.Node) -> ir.DataType:
    """Return the type that a Cast gives. Raises Refuse."""
    to = attribute(node, "to", 0)
    return ir.DataType[to] if isinstance(to, str) else ir.DataType(to)
