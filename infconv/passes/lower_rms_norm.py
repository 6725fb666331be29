"""Root mean square normalization for targets that have no operator for it."""

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
    x, axes = match.value("x"), axes_from(match)
    wide, back = in_float(op, x)
    mean = reduce(op, "ReduceMean", op.Mul(wide, wide, _like=wide), axes, 1)
    normalized = op.Div(wide, op.Sqrt(op.Add(mean, op.const(match["e"], like=wide))), _like=wide)
    return op.Mul(back(normalized), match["s"], _like=x)


class LowerRmsNorm(RewritePass):
    """Replace RMSNormalization by mean square, quotient and scale, for targets without it.

    `x / √(mean(x²) + ε) · scale`, of half-precision input computed in float, as the operator does.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, axis, e: op.RMSNormalization(x, s, axis=axis, epsilon=e),
            build=_parts,
            since_opset=23,
        ),
    )
