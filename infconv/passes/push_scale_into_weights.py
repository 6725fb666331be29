"""A number that scales the result of a linear operator further down becomes part of its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Refuse, Rule, constant, rank, use_count
from infconv.passes._weights import LINEAR, Linear, affine, linear, per_channel, rebuilt, rounded

_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_ON_THE_WAY = (*LINEAR, *sorted(_MOVES), "Add")
_MAX_STEPS = 8

Path: TypeAlias = list[tuple[ir.Node, int]]
"""Nodes from the scaled value up to the linear operator, each with the input that leads there."""


def _path(value: ir.Value, graph: ir.Graph, steps: int = _MAX_STEPS) -> Path | None:
    """Return the way from `value` to a linear operator with a constant weight, or None.

    A number commutes with everything on the way: operators that only move elements, and MatMul by either operand.
    """
    node = value.producer()
    if node is None or node.domain or node.graph is not graph or use_count(value) != 1 or value.is_graph_output():
        return None
    if _is_end(node):
        return [(node, 0)]
    inputs = [0] if node.op_type in _MOVES else [0, 1] if node.op_type == "MatMul" else []
    for index in inputs if steps else ():
        found = node.inputs[index]
        above = None if found is None else _path(found, graph, steps - 1)
        if above:
            return [(node, index), *above]
    return None


def _is_end(node: ir.Node) -> bool:
    if node.op_type in LINEAR:
        return all(constant(value) is not None for value in node.inputs[1:])
    return node.op_type == "Add" and _matmul_below(node) is not None


def _matmul_below(add: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the MatMul and the constant bias that `add` adds up."""
    for product, bias in (add.inputs, add.inputs[::-1]):
        node = None if product is None else product.producer()
        if product is None or bias is None or node is None or constant(bias) is None or use_count(product) != 1:
            continue
        if node.op_type == "MatMul" and not node.domain and constant(node.inputs[1]) is not None:
            return None if product.is_graph_output() or node.graph is not add.graph else (node, bias)
    return None


def _push(op: Builder, y: ir.Value, c: ir.Value, root: ir.Node) -> ir.Value:
    number = constant(c)
    if number is None or number.size != 1 or (number.ndim and number.ndim > (rank(y) or 0)):
        raise Refuse(f"'{c.name}' is not one number")
    path = _path(y, op.graph)
    if path is None or len(path) == 1:
        raise Refuse(f"'{y.name}' does not come from a linear operator through others that a number passes")
    scale, _ = affine(root.op_type, number.astype(np.float64).reshape(-1))
    *steps, (end, _) = path
    result = _scaled_end(op, end, scale)
    for node, index in reversed(steps):
        inputs = [*node.inputs]
        inputs[index] = result
        result = op.call(node.op_type, *inputs, _attrs=node.attributes, _like=node.outputs[0])
    return result


def _scaled_end(op: Builder, end: ir.Node, scale: np.ndarray) -> ir.Value:
    """Make the linear operator `end`, scaled by one number."""
    below = _matmul_below(end) if end.op_type == "Add" else None
    old = linear(below[0] if below else end)
    x = old.node.inputs[0]
    assert x is not None
    if below is None:
        bias = None if old.bias is None else old.bias * scale
        return rebuilt(op, old, x, bias, outputs=scale)
    bias = per_channel(below[1], _output_rank(old), old.outputs, 0)
    return op.Add(rebuilt(op, old, x, None, outputs=scale), op.const(rounded(bias * scale, old.weight.dtype)))


def _output_rank(matmul: Linear) -> int | None:
    return rank(matmul.node.outputs[0])


class PushScaleIntoWeights(RewritePass):
    """Push a Mul or Div by one number up into the weight of a linear operator that it is the result of.

    On the way up are Transpose, Reshape and the like, which a number commutes with, and MatMul:
    s (a b) = (s a) b. The scale of attention scores, or of queries and keys, is folded into their projections.
    Passes that look for that scale (attention fusions) go first. `fold-scale-into-weights` is for what is directly
    beside the linear operator.

    `y = Mul(Transpose(MatMul(x, W)), 0.125)` becomes `y = Transpose(MatMul(x, W'))`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="scale-of-linear",
            match=lambda op, y, c, root: op.any_of(
                op.Mul(y, op.const(c), _node=root, _some=_ON_THE_WAY),
                op.Div(y, op.const(c), _node=root, _some=_ON_THE_WAY),
            ),
            build=_push,
            since_opset=7,
        ),
    )
