"""Operators that repeat or reshape, and that are not needed or can be told more simply how."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._dims import Dims, equal
from infconv.passes._elementwise import BROADCASTING, SAME_SHAPE, is_needless
from infconv.passes._match import Match
from infconv.passes._moves import attribute, axes_of, from_front, integer, sizes
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule

_REPEATING = ("Expand", "Tile", "Unsqueeze", "Reshape")


def _unexpanded(op: Builder, operands: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    """Give `node` what its operands were before they were repeated, where it repeats them itself."""
    made = list(operands)
    for i, value in enumerate(operands):
        source = _before_expansion(value, node)
        others = [*made[:i], *made[i + 1 :]]
        slope_only = node.op_type == "PRelu" and i == 0
        if source is not None and not slope_only and is_needless(source, value, others, 2 * (node.op_type == "MatMul")):
            made[i] = source
    if all(a is b for a, b in zip(made, operands, strict=True)):
        raise Refuse("no operand is repeated to a shape that it would be broadcast to anyway")
    return op.call(node.op_type, *made, _attrs=node.attributes)


def _before_expansion(value: ir.Value, node: ir.Node) -> ir.Value | None:
    """Return what was repeated; a reshape counts only where it goes then: patterns look for one value, not for two."""
    producer = value.producer()
    if producer is None or producer.domain or producer.op_type not in _REPEATING:
        return None
    if producer.op_type in ("Unsqueeze", "Reshape") and (
        value.is_graph_output() or _values.use_count(value) > sum(other is value for other in node.inputs)
    ):
        return None
    return producer.inputs[0]


def _squeeze(op: Builder, match: Match) -> ir.Value:
    """A reduction over axes of size 1 that drops them is a Squeeze."""
    node, x = match["node"], match.value("x")
    rank, axes = _values.rank(x), axes_of(node)
    if rank is None or integer(node, "keepdims", 1) or (axes is None and integer(node, "noop_with_empty_axes", 0)):
        raise Refuse("the axes stay, or are not known")
    gone = from_front(axes if axes is not None else range(rank), rank)
    if any(_values.static_dim(x, axis) != 1 for axis in gone):
        raise Refuse("an axis may not be of size 1")
    return op.Squeeze(x, axes=gone) if op.opset < 13 else op.Squeeze(x, np.array(gone, np.int64))


def _as_reshape(op: Builder, x: ir.Value, indices: ir.Value) -> ir.Value:
    """GatherND that takes every element in order."""
    found, shape = _values.constant(indices), _values.known_shape(x)
    if found is None or shape is None or not found.size or found.shape[-1] != len(shape):
        raise Refuse("the indices are not constant, or not those of single elements")
    if found.size // len(shape) != math.prod(shape):
        raise Refuse("it does not take all elements")
    positions = np.ravel_multi_index(tuple(np.moveaxis(found % shape, -1, 0)), shape).reshape(-1)
    if not np.array_equal(positions, np.arange(positions.size)):
        raise Refuse("it changes the order")
    return op.Reshape(x, np.array(found.shape[:-1], np.int64))


def _overwritten(op: Builder, match: Match, node: ir.Node) -> ir.Value:
    """ScatterND that replaces everything gives the updates: as many rows as there are, in order."""
    data, updates, indices = match.value("data"), match.value("updates"), node.inputs[1]
    if attribute(node, "reduction", "none") != "none" or not _values.same_shape(data, updates):
        raise Refuse("not all of it is replaced")
    if _values.rank(indices) != 2 or _values.static_dim(indices, -1) != 1:
        raise Refuse("the indices are not those of whole rows")
    found = _values.constant(indices)
    # A Range from 0 by 1 has as many elements as there are updates.
    if found is not None and not np.array_equal(found.reshape(-1), np.arange(found.size)):
        raise Refuse("it changes the order")
    return updates


def _without_empty(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    """Concat of fewer parts: an empty one adds nothing."""
    axis = integer(node, "axis", 1)
    kept = [value for value in parts if _values.static_dim(value, axis) != 0]
    if len(kept) == len(parts) or not kept:
        raise Refuse("no part of several is known to be empty")
    return op.Concat(*kept, axis=axis)


def _expanded_by_numbers(op: Builder, match: Match, x: ir.Value, target: ir.Value) -> ir.Value:
    """Write 1 where Expand keeps a size: its target need not be computed then."""
    before, after = sizes(x), sizes(match.outputs[0])
    if _values.tensor(target) is not None:
        raise Refuse("the target is constant")
    if match.outputs[0].is_graph_output():
        raise Refuse("its shape is what the graph declares, which callers may contradict")
    if before is None or after is None or len(before) > len(after):
        raise Refuse("the shapes are not known")
    new = len(after) - len(before)
    numbers = [1 if i >= new and equal(before[i - new], size) else size for i, size in enumerate(after)]
    fixed = [number for number in numbers if isinstance(number, int)]
    if len(fixed) != len(numbers):
        raise Refuse(f"the shape {list(before)} becomes {list(after)}")
    return op.Expand(x, np.array(fixed, np.int64))


def _squeezed_by_numbers(op: Builder, match: Match, x: ir.Value, target: ir.Value) -> ir.Value:
    """Take a Squeeze or Unsqueeze for a Reshape to a computed shape that only drops or adds axes of size 1."""
    before, after = sizes(x), sizes(match.outputs[0])
    if _values.tensor(target) is not None:
        raise Refuse("the target is constant")
    if before is None or after is None or len(before) == len(after):
        raise Refuse("the shapes are not known, or have as many axes")
    longer, shorter = (before, after) if len(before) > len(after) else (after, before)
    axes = _ones_between(longer, shorter)
    name = "Squeeze" if longer is before else "Unsqueeze"
    return op.call(name, x, axes=axes) if op.opset < 13 else op.call(name, x, np.array(axes, np.int64))


def _ones_between(longer: Dims, shorter: Dims) -> list[int]:
    """Return the axes of size 1 that only `longer` has. Raises Refuse when there is another difference."""
    extra: list[int] = []
    position = 0
    for axis, size in enumerate(longer):
        if position < len(shorter) and equal(size, shorter[position]):
            position += 1
        elif size == 1:
            extra.append(axis)
        else:
            raise Refuse(f"the shapes {list(longer)} and {list(shorter)} differ by more than axes of size 1")
    if position < len(shorter):
        raise Refuse(f"the shapes {list(longer)} and {list(shorter)} differ by more than axes of size 1")
    return extra


RULES: Sequence[Rule] = (
    Rule(
        match=lambda op, operands, node: op.any(*BROADCASTING, "PRelu", "MatMul")(
            op.rest(operands), _attrs=..., _node=node, _some=_REPEATING
        ),
        build=_unexpanded,
        since_opset=8,
        name="Expand before broadcasting",
    ),
    Rule(
        match=lambda op, x, others, attrs: op.Shape(
            op.shared(op.any(*SAME_SHAPE)(x, op.rest(others), _attrs=...)), _attrs=attrs
        ),
        build=lambda op, x, attrs: op.Shape(x, _attrs=attrs),
        name="Shape of the same shape",
    ),
    Rule(
        match=lambda op, x, others, node: op.any("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")(
            x, op.rest(others), _attrs=..., _node=node
        ),
        build=_squeeze,
        name="reduction of single elements",
    ),
    Rule(
        match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
        build=_without_empty,
        name="Concat with nothing",
    ),
    Rule(
        match=lambda op, data, limit, axes, indices, updates, node: op.ScatterND(
            data,
            op.any_of(
                op.shared(op.any("Unsqueeze", "Reshape")(op.shared(op.Range(0, limit, 1)), op.rest(axes), _attrs=...)),
                op.const(indices),
            ),
            updates,
            _attrs=...,
            _node=node,
        ),
        build=_overwritten,
        since_opset=11,
        name="ScatterND of everything",
    ),
    Rule(
        match=lambda op, x, indices: op.GatherND(x, op.const(indices)),
        build=_as_reshape,
        since_opset=11,
        name="GatherND of all elements",
    ),
    Rule(
        match=lambda op, x, target: op.Expand(x, target),
        build=_expanded_by_numbers,
        since_opset=8,
        name="Expand to a computed shape",
    ),
    Rule(
        match=lambda op, x, target: op.Reshape(x, target, _attrs=...),
        build=_squeezed_by_numbers,
        since_opset=5,
        name="Reshape to a computed shape",
    ),
)
