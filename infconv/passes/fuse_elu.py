"""ELU and SELU from their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import half_or_single, one_number
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule

_SELU_ALPHA = 1.6732632423543772
_SELU_GAMMA = 1.0507009873554805


def _elu(op: PatternBuilder, x: Any, a: Any) -> Pattern:
    """Return the pattern of x above 0 and a·(exp(x) - 1) below; exp may be kept from positive values."""
    below = op.any_of(x, op.Min(x, 0.0), op.Where(op.Greater(x, 0.0), 0.0, x))
    less_one = op.any_of(op.Sub(op.Exp(below), 1.0), op.Add(op.Exp(below), -1.0))
    return op.Where(op.Greater(x, 0.0), x, op.any_of(op.Mul(less_one, op.const(a)), less_one))


def _build(op: Builder, match: Match) -> ir.Value:
    return op.Elu(match["x"], alpha=1.0 if match["a"] is None else one_number(match, "a"))


class FuseElu(RewritePass):
    """Replace `x > 0 ? x : a·(exp(x) - 1)` by Elu, and Elu times SELU's constant by Selu."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_elu, build=_build, when=half_or_single, since_opset=6, name="elu"),
        Rule(
            match=lambda op, x: op.Mul(op.Elu(x, alpha=lambda a: abs(a - _SELU_ALPHA) < 1e-5), _SELU_GAMMA),
            build=lambda op, x: op.Selu(x),
            since_opset=6,
            name="selu",
        ),
    )
