"""What is split and joined: Split, Slice and Concat of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._compose import as_range, by_axis, make_slice, unless_shared
from infconv.passes._match import Match
from infconv.passes._moves import from_front, integer, integers, operand
from infconv.passes._pattern import Refuse

_LEAST_ROW, _MOST_ROWS = 8, 1 << 14
"""Gather copies row by row: with shorter rows than this, or more of them, Slices are faster."""


def _axis(node: ir.Node, value: ir.Value, default: int = 0) -> int:
    return from_front([integer(node, "axis", default)], _values.rank(value))[0]


def flat_concat(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    """Concat(a, Concat(b, c)) = Concat(a, b, c)."""
    axis = integer(node, "axis", 1)
    flat: list[ir.Value] = []
    for part in parts:
        inner = part.producer()
        merges = (
            inner is not None
            and inner.op_type == "Concat"
            and not inner.domain
            and inner.graph is node.graph
            and (integer(inner, "axis", 1) == axis or _axis(inner, part) == _axis(node, part))
            and not part.is_graph_output()
            and _values.use_count(part) == parts.count(part)
        )
        flat += cast("Sequence[ir.Value]", inner.inputs) if inner is not None and merges else [part]
    if len(flat) == len(parts) and all(a is b for a, b in zip(flat, parts, strict=True)):
        raise Refuse("no operand is a Concat along the same axis that has no other users")
    return op.Concat(*flat, axis=axis)


def concat_of_split(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    split = parts[0].producer()
    if split is None or split.op_type != "Split" or split.domain or split.inputs[0] is None:
        raise Refuse("the operands are not the outputs of a Split")
    if len(parts) != len(split.outputs) or any(a is not b for a, b in zip(parts, split.outputs, strict=True)):
        raise Refuse("the operands are not all outputs of a Split, in their order")
    if _axis(split, split.inputs[0]) != _axis(node, parts[0], 1):
        raise Refuse("the axes differ")
    return split.inputs[0]


def split_of_concat(op: Builder, match: Match) -> tuple[ir.Value, ...]:
    parts: tuple[ir.Value, ...] = match["parts"]
    concat, split = cast("tuple[ir.Node, ir.Node]", (match["first"], match["second"]))
    axis = _axis(split, concat.outputs[0])
    if axis != _axis(concat, parts[0], 1):
        raise Refuse("the axes differ")
    if len(parts) != len(split.outputs):
        raise Refuse(f"{len(parts)} parts become {len(split.outputs)}")
    lengths = integers(split, 1, "split") if operand(split, 1) is not None or "split" in split.attributes else None
    for i, (part, output) in enumerate(zip(parts, split.outputs, strict=True)):
        sizes = [(_values.dims(value) or {}) for value in (part, output)]
        given = sizes[0][axis] if sizes[0] else None
        wanted = lengths[i] if lengths else sizes[1][axis] if sizes[1] else None
        if given is None or wanted is None or not _values.same_dim(given, wanted):
            raise Refuse(f"'{part.name}' and '{output.name}' may have different sizes")
    return parts


def rejoined(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    """Return what Slices of one tensor are together: the tensor, a Slice of it, or (a roll) a Gather of rows."""
    first = parts[0].producer()
    x = first.inputs[0] if first is not None and first.op_type == "Slice" and not first.domain else None
    if x is None or len(parts) < 2:
        raise Refuse("the operands are not Slices")
    axis, size = _axis(node, x, 1), _values.static_dim(x, _axis(node, x, 1))
    if size is None:
        raise Refuse("the size of the axis is not known")
    taken = [place for part in parts for place in _positions(part, x, axis, size, op.opset)]
    if not taken:
        raise Refuse("the Slices are empty")
    if taken == list(range(taken[0], taken[0] + len(taken))):
        return x if len(taken) == size else make_slice(op, x, {axis: as_range(range(taken[0], taken[-1] + 1))})
    row = [dim for dim in (_values.dims(x) or ())[axis + 1 :] if isinstance(dim, int)]
    if math.prod(row) < _LEAST_ROW or len(taken) > _MOST_ROWS:
        raise Refuse("a Gather would copy too few elements at a time")
    return op.Gather(x, np.array(taken, np.int64), axis=axis)


def _positions(part: ir.Value, x: ir.Value, axis: int, size: int, opset: int) -> range:
    """Return which of the `size` positions along `axis` of `x` a part is a Slice of."""
    node = part.producer()
    if node is None or node.op_type != "Slice" or node.domain or node.inputs[0] is not x:
        raise Refuse("the operands are not Slices of one tensor")
    unless_shared(node)
    ranges = by_axis(node, opset, _values.rank(x))
    if list(ranges) != [axis]:
        raise Refuse("the Slices are along another axis")
    return ranges[axis].positions(size)


def part(op: Builder, parts: tuple[ir.Value, ...], first: ir.Node, second: ir.Node) -> ir.Value:
    """Slice of a Concat that takes one part: the part."""
    ranges = by_axis(second, op.opset, _values.rank(first.outputs[0]))
    axis = _axis(first, parts[0], 1)
    if list(ranges) != [axis]:
        raise Refuse("the axes differ")
    sizes = [_values.static_dim(part, axis) for part in parts]
    if None in sizes:
        raise Refuse("the sizes of the parts are not known")
    known = cast("list[int]", sizes)
    taken = ranges[axis].positions(sum(known))
    for i, part in enumerate(parts):
        if known[i] and taken == range(sum(known[:i]), sum(known[: i + 1])):
            return part
    raise Refuse("the Slice does not take one of the parts")
