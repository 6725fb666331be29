"""Pointwise convolution as a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Refuse, Rule, constant, static_dim
from infconv.passes._weights import Linear, linear
from infconv.passes._windows import windows


def pointwise(node: ir.Node) -> Linear:
    """Return a Conv whose outputs depend on the inputs at their place only, all channels on all. Raises Refuse."""
    old = linear(node)
    if old.weight.shape[0] != 1:
        raise Refuse("it has groups")
    if not windows(node, old.weight.shape[3:]).is_pointwise:
        raise Refuse("its windows are larger than one element, have strides or padding")
    return old


def _replace(op: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    old = pointwise(node)
    weight = op.const(old.stored(old.weight).reshape(old.outputs, old.inputs))
    places = old.inner
    if places > 1:
        x = op.Reshape(x, np.array([0, 0, -1], np.int64))
    result = op.MatMul(weight, x)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        result = op.Add(result, bias.reshape(-1, 1))
    return op.Reshape(result, _shape(node, old)) if places > 1 else result


def _shape(node: ir.Node, old: Linear) -> np.ndarray:
    """Return the target of a Reshape from [N, M, places] to the shape of the convolution's result."""
    sizes = [static_dim(node.inputs[0], 2 + axis) for axis in range(old.inner)]
    if sizes.count(None) > 1:
        raise Refuse("more than one of the spatial dimensions is not known")
    return np.array([0, 0, *(-1 if size is None else size for size in sizes)], np.int64)


class ReplaceConvByMatmul(RewritePass):
    """Replace a 1x1 Conv without groups, strides and padding by MatMul.

    W [M, C] times x [N, C, places], with Reshapes around it for images; at most one of their spatial dimensions may
    be dynamic. For targets whose matrix product is better than their convolution, and for passes that look for it.

    `y = Conv(x, W, b)` of a sequence [N, C, L] becomes `y = Add(MatMul(W', x), b')`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="pointwise-conv",
            match=lambda op, x, w, b, node: op.Conv(x, op.const(w), op.optional(op.const(b)), _attrs=..., _node=node),
            build=_replace,
            since_opset=7,
        ),
    )
