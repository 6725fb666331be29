"""Reshapes moved to where they cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._compose import one_reshape, unless_shared
from infconv.passes._dims import Dims
from infconv.passes._elementwise import BROADCASTING, UNARY
from infconv.passes._moves import RESHAPING, attribute, integer, same_sizes, sizes
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule

_ALONG_LAST = ("LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax")
_LONGEST = 16
"""So many operators between two reshapes are looked at."""


def _cancelled(op: Builder, y: ir.Value, node: ir.Node) -> ir.Value:
    """Leave out a reshape, and the one that it undoes: in between are operators that do not mind the shape."""
    between, first, by_rows = _chain(y, op.opset)
    x = first.inputs[0]
    if x is None:
        raise Refuse("a reshape of nothing")
    if by_rows:
        _check_rows(x, first, node)
    result = x
    for inner in between:
        result = _again(op, inner, result)
        result.shape = None if by_rows or x.shape is None else x.shape.copy()
    if by_rows:
        return result
    final = one_reshape(op, result, first, node)
    if final is not result:
        unless_shared(first)
    return final


def _chain(value: ir.Value, opset: int) -> tuple[list[ir.Node], ir.Node, bool]:
    """Return the operators before `value` in order, the reshape before them, and whether one works along the last axis.

    None of them may have other users. Raises Refuse.
    """
    between: list[ir.Node] = []
    by_rows = False
    while len(between) <= _LONGEST:
        node = value.producer()
        if node is None or node.domain:
            raise Refuse("there is no reshape before")
        if node.op_type in RESHAPING:
            if not between:
                raise Refuse("nothing is in between; see cancel-opposites")
            return between[::-1], node, by_rows
        unless_shared(node)
        if any(_values.is_used(output) for output in node.outputs[1:]):
            raise Refuse(f"{node.op_type} has further outputs")
        by_rows |= _works_on_rows(node, opset)
        between.append(node)
        source = _operand(node)
        if source is None:
            raise Refuse("there is no reshape before")
        value = source
    raise Refuse("there is no reshape near")


def _operand(node: ir.Node) -> ir.Value | None:
    """Return the one operand that is not constant."""
    found = [value for value in node.inputs if value is not None and _values.tensor(value) is None]
    return found[0] if len(found) == 1 else None


def _works_on_rows(node: ir.Node, opset: int) -> bool:
    """Return whether `node` works along the last axis, False when on each element. Raises Refuse for anything else."""
    kind, source = node.op_type, _operand(node)
    constants = [value for value in node.inputs if value is not None and value is not source]
    if kind in UNARY or (kind in BROADCASTING and all(_values.known_shape(c) == () for c in constants)):
        return False
    if kind in BROADCASTING and all(_values.rank(c) == 1 and _values.fits_inside(c, source) for c in constants):
        return True
    first = node.inputs[0] is source
    if kind in ("MatMul", "Gemm") and first and _is_plain_product(node):
        return True
    if kind in _ALONG_LAST and first and (opset >= 13 or kind not in ("Softmax", "LogSoftmax")):
        last = integer(node, "axis", -1) in (-1, (_values.rank(source) or 0) - 1)
        if last and all(_values.rank(c) == 1 for c in constants):
            return True
    raise Refuse(f"{kind} may depend on the shape")


def _is_plain_product(node: ir.Node) -> bool:
    """Whether a product is x W + b, with W a matrix and b a vector."""
    if node.op_type == "Gemm":
        plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        vector = len(node.inputs) < 3 or node.inputs[2] is None or _values.rank(node.inputs[2]) == 1
        if not plain or not vector or integer(node, "transA", 0) or integer(node, "transB", 0):
            return False
    return _values.rank(node.inputs[1]) == 2 and _values.tensor(node.inputs[1]) is not None


def _again(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """Make `node` again with another operand. Gemm takes matrices only, so that it becomes MatMul and Add."""
    source = _operand(node)
    like = node.outputs[0]
    if node.op_type == "Gemm":
        product: ir.Value = op.MatMul(x, node.inputs[1], _like=like)
        product.shape = None
        biased = len(node.inputs) > 2 and node.inputs[2] is not None
        return op.Add(product, node.inputs[2], _like=like) if biased else product
    inputs = [x if value is source else value for value in node.inputs]
    # counted from the end, since there may be another number of axes now
    axis = -1 if node.op_type in _ALONG_LAST else None
    attributes = {name: a for name, a in node.attributes.items() if axis is None or name != "axis"}
    return op.call(node.op_type, *inputs, _attrs=attributes, axis=axis, _like=like)


def _check_rows(x: ir.Value, first: ir.Node, last: ir.Node) -> None:
    """Raise Refuse unless both reshapes leave rows alone, and the last one brings back the axes of x before them."""
    before, middle = sizes(x), sizes(first.outputs[0])
    inner, after = sizes(last.inputs[0]), sizes(last.outputs[0])
    if before is None or middle is None or inner is None or after is None:
        raise Refuse("the shapes are not known")
    if not before or not middle or not inner or not after:
        raise Refuse("a number has no rows")
    rows_kept = _same_end(before, middle) and _same_end(inner, after)
    if not rows_kept or not same_sizes(before[:-1], after[:-1]):
        raise Refuse(f"the shape {list(before)} becomes {list(after)}")


def _same_end(a: Dims, b: Dims) -> bool:
    return same_sizes(a[-1:], b[-1:])


def _joined(op: Builder, a: ir.Value, b: ir.Value, first: ir.Node, second: ir.Node, node: ir.Node) -> ir.Value:
    """Do arithmetic before a reshape that both operands undergo."""
    before, after = (sizes(a), sizes(b)), (sizes(first.outputs[0]), sizes(second.outputs[0]))
    if not same_sizes(*before) or not same_sizes(*after):
        raise Refuse("the operands are not known to be reshaped alike")
    result = op.call(node.op_type, a, b, _attrs=node.attributes)
    return op.call(first.op_type, result, *first.inputs[1:], _attrs=first.attributes)


def _batches(op: Builder, first: ir.Node, second: ir.Node, product: ir.Node, node: ir.Node) -> ir.Value:
    """Multiply stacks of matrices as they are: the reshapes only join the axes before the last two for a while."""
    inner, after = sizes(product.outputs[0]), sizes(node.outputs[0])
    stacks: list[Dims] = []
    for reshape in (first, second):
        before, middle = sizes(reshape.inputs[0]), sizes(reshape.outputs[0])
        if before is None or middle is None or inner is None or after is None:
            raise Refuse("the shapes are not known")
        if min(map(len, (before, middle, after))) < 3 or not same_sizes(before[-2:], middle[-2:]):
            raise Refuse(f"the shape {list(before)} becomes {list(middle)}: no stack of the same matrices")
        if not same_sizes(before[:-2], after[:-2]):
            raise Refuse(f"the stack {list(before[:-2])} becomes {list(after[:-2])}")
        stacks.append(middle[:-2])
    joined = all(len(stack) == 1 for stack in stacks)  # to as many, since they were alike before
    if not (joined or same_sizes(*stacks)) or not same_sizes((inner or ())[-2:], (after or ())[-2:]):
        raise Refuse("the product is reshaped to other matrices, or one stack is repeated")
    return op.MatMul(first.inputs[0], second.inputs[0])


class MoveReshapes(RewritePass):
    """Move reshapes across operators that do not mind the shape, where that makes one of them unnecessary.

    Element-wise operators do not mind at all. MatMul and Gemm with a constant weight, vectors as operands, Softmax and
    normalizations along the last axis do not mind how the other axes are joined: `x W + b` between a Reshape to a
    matrix and one back needs neither. Two operands that are reshaped alike are reshaped once, after the operator. A
    product of stacks of matrices is made without joining the axes of the stacks, as torch.export takes it apart.

    `y = Reshape(Relu(Reshape(x, [-1, 8])), [2, 4, 8])` of `x: float[2, 4, 8]` becomes `y = Relu(x)`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, y, others, node: op.any(*RESHAPING)(y, op.rest(others), _attrs=..., _node=node),
            build=_cancelled,
            since_opset=8,
            name="two reshapes",
        ),
        Rule(
            match=lambda op, a, b, p, q, first, second, node: op.any(*BROADCASTING)(
                op.any(*RESHAPING)(a, op.rest(p), _attrs=..., _node=first),
                op.any(*RESHAPING)(b, op.rest(q), _attrs=..., _node=second),
                _attrs=...,
                _node=node,
            ),
            build=_joined,
            since_opset=8,
            name="operands reshaped alike",
        ),
        Rule(
            match=lambda op, p, q, r, first, second, product, node: op.any(*RESHAPING)(
                op.MatMul(
                    op.shared(op.any(*RESHAPING)(op.rest(p), _attrs=..., _node=first)),
                    op.shared(op.any(*RESHAPING)(op.rest(q), _attrs=..., _node=second)),
                    _node=product,
                ),
                op.rest(r),
                _attrs=...,
                _node=node,
            ),
            build=_batches,
            since_opset=8,
            name="stacks of matrices",
        ),
    )
