"""Tanh from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._forms import scaled
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule


def _less_one(op: PatternBuilder, x: Any) -> Pattern:
    return op.any_of(op.Sub(x, 1.0), op.Add(x, -1.0))


def _two_exponentials(op: PatternBuilder, x: Any) -> Pattern:
    up, down = op.Exp(x), op.Exp(op.Neg(x))
    return op.Div(op.Sub(up, down), op.Add(up, down))


def _one_exponential(op: PatternBuilder, x: Any) -> Pattern:
    exp = op.Exp(scaled(op, x, 2.0))
    return op.Div(_less_one(op, exp), op.Add(exp, 1.0))


class FuseTanh(RewritePass):
    """Replace `(exp(x) - exp(-x)) / (exp(x) + exp(-x))` and its other forms by Tanh.

    The others are `(exp(2x) - 1) / (exp(2x) + 1)` and `2·sigmoid(2x) - 1`. Where exp overflows, the operator still has
    the right value.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_two_exponentials, build=lambda op, x: op.Tanh(x), since_opset=6, name="two exponentials"),
        Rule(match=_one_exponential, build=lambda op, x: op.Tanh(x), since_opset=6, name="one exponential"),
        Rule(
            match=lambda op, x: _less_one(op, scaled(op, op.Sigmoid(scaled(op, x, 2.0)), 2.0)),
            build=lambda op, x: op.Tanh(x),
            since_opset=6,
            name="sigmoid",
        ),
    )
