"""BatchNormalization as Mul and Add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._batch_norm import scale_and_shift
from infconv.passes._build import Builder
from infconv.passes._rewrite import Match, Refuse, Rule, rank
from infconv.passes._weights import rounded


def _lower(op: Builder, x: ir.Value, norm: ir.Node, match: Match) -> ir.Value:
    scale, shift = scale_and_shift(norm, match.opset)
    dtype, dimensions = match.outputs[0].dtype or x.dtype, rank(x)
    if dtype is None or dimensions is None:
        raise Refuse(f"the {'rank' if dtype else 'type'} of '{x.name}' is not known")
    shape = (-1, *(1,) * max(dimensions - 2, 0))
    factor, term = (op.const(rounded(c, dtype.numpy()).reshape(shape)) for c in (scale, shift))
    return op.Add(op.Mul(x, factor), term)


class LowerBatchNorm(RewritePass):
    """Replace BatchNormalization by Mul and Add, for targets without it and where they fold further.

    s x + t with s = gamma / sqrt(variance + epsilon) and t = beta - s mean, as constants of shape [channels, 1, ...].
    These are two nodes for one: it only makes a graph smaller where `merge-linear` or `fold-scale-into-weights` take
    them up. The rank of x must be known.

    `y = BatchNormalization(x, gamma, beta, mean, variance)` becomes `y = Add(Mul(x, s), t)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="batch-norm",
            match=lambda op, x, norm, parameters: op.BatchNormalization(x, op.rest(parameters), _attrs=..., _node=norm),
            build=_lower,
            since_opset=7,
        ),
    )
