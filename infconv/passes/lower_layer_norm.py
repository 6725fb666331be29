"""Layer normalization for targets that have no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_from, reduce
from infconv.passes._match import Match
from infconv.passes._norms import in_float
from infconv.passes._rewrite import Rule


def _parts(op: Builder, match: Match) -> ir.Value:
    x, scale, bias = match.value("x"), match["s"], match["b"]
    axes = axes_from(match)
    wide, back = in_float(op, x)
    centred = op.Sub(wide, reduce(op, "ReduceMean", wide, axes, 1), _like=wide)
    variance = reduce(op, "ReduceMean", op.Mul(centred, centred, _like=wide), axes, 1)
    deviation = op.Sqrt(op.Add(variance, op.const(match["e"], like=wide)))
    scaled = op.Mul(back(op.Div(centred, deviation, _like=wide)), scale, _like=x)
    return scaled if bias is None else op.Add(scaled, bias, _like=x)


class LowerLayerNorm(RewritePass):
    """Replace LayerNormalization by mean, variance, quotient, scale and bias, for targets without it.

    `(x - mean) / √(mean((x - mean)²) + ε) · scale + bias`, of half-precision input computed in float, as the operator
    does.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, b, axis, e: op.LayerNormalization(x, s, op.optional(b), axis=axis, epsilon=e),
            build=_parts,
            since_opset=17,
        ),
    )
