"""BatchNormalization after a linear operator becomes part of its weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._batch_norm import scale_and_shift
from infconv.passes._build import Builder
from infconv.passes._rewrite import Match, Refuse, Rule
from infconv.passes._weights import LINEAR, linear, rebuilt


def _fuse(op: Builder, x: ir.Value, node: ir.Node, norm: ir.Node, match: Match) -> ir.Value:
    scale, shift = scale_and_shift(norm, match.opset)
    old = linear(node)
    if scale.size != old.outputs:
        raise Refuse(f"{scale.size} channels are normalized, {node.op_type} has {old.outputs}")
    bias = shift if old.bias is None else scale * old.bias + shift
    return rebuilt(op, old, x, bias, outputs=scale)


class FuseConvBatchNorm(RewritePass):
    """Fold BatchNormalization into the weight and bias of the Conv, ConvTranspose, Gemm or MatMul before it.

    With s = gamma / sqrt(variance + epsilon): s (W x + b - mean) + beta = (s W) x + (s (b - mean) + beta). The scale
    goes along the output channels: axis 0 of Conv's weight, whatever its groups; axis 1 within each group of
    ConvTranspose's. Gemm's alpha and beta become part of the weight and the bias. MatMul of matrices becomes Gemm.

    Left alone: BatchNormalization that trains, weights that are not constant, results that another node uses, large
    weights that several nodes share.

    `y = BatchNormalization(Conv(x, W), gamma, beta, mean, variance)` becomes `y = Conv(x, W', b')`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="linear-batch-norm",
            match=lambda op, x, w, b, node, norm, parameters: op.BatchNormalization(
                op.any(*LINEAR)(x, op.const(w), op.optional(op.const(b)), _attrs=..., _node=node),
                op.rest(parameters),
                _attrs=...,
                _node=norm,
            ),
            build=_fuse,
            since_opset=7,
        ),
    )
