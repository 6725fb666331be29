"""Convolution of one place as Gemm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Refuse, Rule, static_dim
from infconv.passes._weights import linear
from infconv.passes._windows import windows


def _replace(op: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    old = linear(node)
    if old.weight.shape[0] != 1:
        raise Refuse("it has groups")
    if any(static_dim(x, 2 + axis) != 1 for axis in range(old.inner)):
        raise Refuse(f"'{x.name}' is not known to have one place")
    window = windows(node, old.weight.shape[3:])
    if window.padded or any(size != 1 for size in window.kernel):
        raise Refuse("its windows are larger than one element or padded")
    weight = op.const(old.stored(old.weight).reshape(old.outputs, old.inputs))
    rows = op.Reshape(x, np.array([0, -1], np.int64))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None and op.opset < 11:
        bias = op.const(np.zeros(old.outputs, old.weight.dtype))
    result = op.Gemm(rows, weight, *([] if bias is None else [bias]), transB=1)
    return op.Reshape(result, np.array([0, -1] + [1] * old.inner, np.int64))


class ReplaceConvAfterPool(RewritePass):
    """Replace a 1x1 Conv of one place, as after a global pool, by Gemm.

    An input [N, C, 1, 1] is a matrix [N, C]: W x + b is Gemm with transB=1, between two Reshapes, which cancel with
    those of neighbours. The spatial dimensions must be known to be 1, the convolution must have no groups or padding.

    `y = Conv(GlobalAveragePool(x), W, b)` becomes `y = Reshape(Gemm<transB=1>(Reshape(GlobalAveragePool(x)), W', b))`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="conv-of-one-place",
            match=lambda op, x, w, b, node: op.Conv(x, op.const(w), op.optional(op.const(b)), _attrs=..., _node=node),
            build=_replace,
            since_opset=7,
        ),
    )
