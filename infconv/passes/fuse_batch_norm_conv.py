"""BatchNormalization before a linear operator becomes part of its weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._batch_norm import scale_and_shift
from infconv.passes._build import Builder
from infconv.passes._rewrite import Match, Refuse, Rule
from infconv.passes._weights import LINEAR, linear, rebuilt, shifted_bias


def _fuse(op: Builder, x: ir.Value, node: ir.Node, norm: ir.Node, match: Match) -> ir.Value:
    scale, shift = scale_and_shift(norm, match.opset)
    old = linear(node)
    if old.rank is None and old.stored_rank != 2:
        raise Refuse("the weight of MatMul is no matrix")
    if scale.size != old.inputs:
        raise Refuse(f"{scale.size} channels are normalized, {node.op_type} takes {old.inputs}")
    return rebuilt(op, old, x, shifted_bias(old, x, shift), inputs=scale)


class FuseBatchNormConv(RewritePass):
    """Fold BatchNormalization into the weight and bias of the Conv, ConvTranspose, Gemm or MatMul after it.

    With s = gamma / sqrt(variance + epsilon) and t = beta - s mean: W (s x + t) + b = (W s) x + (W t + b), where the
    scale goes along the input channels. W t is the same everywhere only without zero padding, which would have to be
    padding with -t / s; ConvTranspose pads in effect, so t must be zero there.

    `y = Conv(BatchNormalization(x, gamma, beta, mean, variance), W)` becomes `y = Conv(x, W', b')`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="batch-norm-linear",
            match=lambda op, x, w, b, node, norm, parameters: op.any(*LINEAR)(
                op.BatchNormalization(x, op.rest(parameters), _attrs=..., _node=norm),
                op.const(w),
                op.optional(op.const(b)),
                _attrs=...,
                _node=node,
            ),
            build=_fuse,
            since_opset=7,
        ),
    )
