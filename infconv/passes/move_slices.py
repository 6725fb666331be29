"""Parts taken before computing, and repetitions made after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._elementwise import BROADCASTING, UNARY, is_common
from infconv.passes._moves import from_front, integer, slices
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule

_NORMALIZING = ("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax")


def _earlier(op: Builder, y: ir.Value, inner: ir.Node, node: ir.Node) -> ir.Value:
    """Take the part of the operand of which the rest is not needed."""
    source = _operand(inner)
    rank = _values.rank(y)
    if source is None or rank is None or _values.rank(source) != rank:
        raise Refuse("the operand is not one tensor of the same rank")
    _check_type(source)
    axes = _axes(node, op.opset, rank)
    _check_smaller(node, y, axes)
    for axis in axes:
        _check_axis(inner, source, axis, rank, op.opset)
        if node.op_type == "Gather" and _values.rank(node.inputs[1]) == 0 and inner.op_type in BROADCASTING:
            _check_ranks(inner, source, rank - 1 - axis)
    taken = op.call(node.op_type, source, *node.inputs[1:], _attrs=node.attributes)
    taken.type = None if source.type is None else ir.TensorType(source.type.dtype)
    taken.shape = _shape_of_part(source, node, axes)
    inputs = [taken if value is source else value for value in inner.inputs]
    return op.call(inner.op_type, *inputs, _attrs=_attributes(inner, node, rank))


def _check_type(value: ir.Value) -> None:
    if not is_common(_values.dtype_of(value)):
        raise Refuse(f"the type of '{value.name}' is not known, or moving its elements is not possible everywhere")


def _operand(node: ir.Node) -> ir.Value | None:
    """Return the one operand that is not constant."""
    found = {value for value in node.inputs if value is not None and _values.tensor(value) is None}
    return found.pop() if len(found) == 1 else None


def _shape_of_part(source: ir.Value, node: ir.Node, axes: Sequence[int]) -> ir.Shape | None:
    """Return the shape of what `node` takes of `source`; along its axes, that of what it took before."""
    before, after = _values.dims(source), _values.dims(node.outputs[0])
    if before is None or after is None:
        return None
    if len(before) == len(after):
        return ir.Shape([after[axis] if axis in axes else dim for axis, dim in enumerate(before)])
    return ir.Shape([dim for axis, dim in enumerate(before) if axis not in axes])


def _axes(node: ir.Node, opset: int, rank: int) -> list[int]:
    if node.op_type == "Slice":
        return from_front(list(slices(node, opset)), rank)
    indices = _values.rank(node.inputs[1])
    if indices not in (0, 1) or _values.tensor(node.inputs[1]) is None:
        raise Refuse("the indices are not constant, or have several axes")
    return from_front([integer(node, "axis", 0)], rank)


def _check_smaller(node: ir.Node, y: ir.Value, axes: Sequence[int]) -> None:
    """Raise Refuse unless the part is known to have fewer elements."""
    if node.op_type == "Gather" and _values.known_shape(node.inputs[1]) in ((), (1,)):
        if _values.static_dim(y, axes[0]) == 1:
            raise Refuse("the part is all there is")
        return
    for axis in axes:
        before, after = _values.static_dim(y, axis), _values.static_dim(node.outputs[0], axis)
        if before is None or after is None or after >= before:
            raise Refuse("the part is not known to be smaller")


def _check_axis(inner: ir.Node, source: ir.Value, axis: int, rank: int, opset: int) -> None:
    """Raise Refuse unless the results of `inner` along `axis` do not depend on each other."""
    kind = inner.op_type
    constants = [value for value in inner.inputs if value is not None and value is not source]
    if kind in (*UNARY, *BROADCASTING):
        if not _values.same_dim(*(_dim(value, axis, rank) for value in (source, inner.outputs[0]))):
            raise Refuse("the operand may be broadcast along the axis")
        if any(_dim(value, axis, rank) != 1 for value in constants):
            raise Refuse("a constant varies along the axis")
    elif kind == "MatMul":
        if inner.inputs[0] is not source or axis == rank - 1 or _values.rank(inner.inputs[1]) != 2:
            raise Refuse("the product sums over the axis, or makes it")
    elif kind in _NORMALIZING:
        if inner.inputs[0] is not source or (opset < 13 and "Softmax" in kind):
            raise Refuse("before opset 13, Softmax normalizes over several axes")
        first = integer(inner, "axis", -1) % rank
        if axis == first or (axis > first and "Softmax" not in kind) or any(_values.rank(c) != 1 for c in constants):
            raise Refuse("it normalizes along the axis")
    else:
        raise Refuse(f"{kind} may depend on the rest")


def _check_ranks(inner: ir.Node, source: ir.Value, most: int) -> None:
    """Raise Refuse when a constant has an axis where the result will have none."""
    for value in inner.inputs:
        if value is not None and value is not source and (_values.rank(value) or 0) > most:
            raise Refuse("a constant has the axis that goes")


def _dim(value: ir.Value, axis: int, rank: int) -> int | ir.SymbolicDim:
    """Return the size along an axis, counted as if `value` had `rank` axes; 1 where it has fewer."""
    dims = _values.dims(value)
    if dims is None:
        raise Refuse("a shape is not known")
    position = axis - (rank - len(dims))
    return dims[position] if position >= 0 else 1


def _attributes(inner: ir.Node, node: ir.Node, rank: int) -> dict[str, ir.Attr]:
    """Return the attributes of an operator after a Gather before it, which may have taken away an axis."""
    attributes = dict(inner.attributes)
    if inner.op_type not in _NORMALIZING or node.op_type != "Gather" or _values.rank(node.inputs[1]) == 1:
        return attributes
    axis, gone = integer(inner, "axis", -1) % rank, integer(node, "axis", 0) % rank
    return attributes | {"axis": ir.AttrInt64("axis", axis - (gone < axis))}


def _later(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    """Compute before repeating."""
    _check_type(second.outputs[0])
    shape, repeated = _values.known_shape(x), _values.known_shape(first.outputs[0])
    if shape is not None and shape == repeated:
        raise Refuse("nothing is repeated")
    inputs = [x if value is first.outputs[0] else value for value in second.inputs]
    if any(_values.known_shape(value) != () for value in inputs if value is not x and value is not None):
        raise Refuse("an operand is not a number")
    computed = op.call(second.op_type, *inputs, _attrs=second.attributes, _like=second.outputs[0])
    computed.shape = None if x.shape is None else x.shape.copy()
    return op.call(first.op_type, computed, *first.inputs[1:], _attrs=first.attributes)


class MoveSlices(RewritePass):
    """Compute only what is needed: take parts before computing, repeat after it.

    A Slice or a Gather by constants goes before element-wise operators, before MatMul with a constant matrix and
    before normalizations that work along other axes, as far as nobody else uses the whole. An Expand or Tile goes
    after element-wise operators.

    `y = Gather(Relu(x), 0)` of `x: float[128, 768]` becomes `y = Relu(Gather(x, 0))`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, inputs, others, inner, node: op.any("Slice", "Gather")(
                op.any(*UNARY, *BROADCASTING, *_NORMALIZING, "MatMul")(op.rest(inputs), _attrs=..., _node=inner),
                op.rest(others),
                _attrs=...,
                _node=node,
            ),
            build=lambda op, inner, node: _earlier(op, inner.outputs[0], inner, node),
            since_opset=8,
            name="part",
        ),
        Rule(
            match=lambda op, x, p, q, first, second: op.any(*UNARY)(
                op.any("Expand", "Tile")(x, op.rest(p), _attrs=..., _node=first), op.rest(q), _attrs=..., _node=second
            ),
            build=_later,
            since_opset=8,
            name="repetition",
        ),
        Rule(
            match=lambda op, x, c, p, first, second: op.any_of(
                op.any(*BROADCASTING)(
                    op.any("Expand", "Tile")(x, op.rest(p), _attrs=..., _node=first), op.const(c),
                    _attrs=..., _node=second,
                ),
                op.any(*BROADCASTING)(
                    op.const(c), op.any("Expand", "Tile")(x, op.rest(p), _attrs=..., _node=first),
                    _attrs=..., _node=second,
                ),
            ),
            build=_later,
            since_opset=8,
            name="repetition with a number",
        ),
    )  # fmt: skip
