"""Sigmoid from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._forms import reciprocal, scaled
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule


def _one_plus_exp(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of 1 + exp(-x)."""
    return op.Add(op.Exp(op.any_of(op.Neg(x), op.Mul(x, -1.0))), 1.0)


def _from_tanh(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of ½ + ½·tanh(x/2)."""
    tanh = op.Tanh(scaled(op, x, 0.5))
    return op.any_of(op.Add(scaled(op, tanh, 0.5), 0.5), scaled(op, op.Add(tanh, 1.0), 0.5))


def _exp_form(op: PatternBuilder, x: Any) -> Pattern:
    exp = op.Exp(x)
    return op.Div(exp, op.Add(exp, 1.0))


class FuseSigmoid(RewritePass):
    """Replace `1 / (1 + exp(-x))` and its other forms by Sigmoid.

    The others are `exp(x) / (1 + exp(x))` and `½ + ½·tanh(x/2)`. A quotient `y / (1 + exp(-x))` becomes
    `y · Sigmoid(x)`. Where exp overflows, the operator still has the right value.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: reciprocal(op, _one_plus_exp(op, x)),
            build=lambda op, x: op.Sigmoid(x),
            since_opset=6,
            name="reciprocal",
        ),
        Rule(match=_exp_form, build=lambda op, x: op.Sigmoid(x), since_opset=6, name="quotient of exponentials"),
        Rule(match=_from_tanh, build=lambda op, x: op.Sigmoid(x), since_opset=6, name="tanh"),
        Rule(
            match=lambda op, x, y: op.Div(y, _one_plus_exp(op, x)),
            build=lambda op, x, y: op.Mul(y, op.Sigmoid(x, _like=x)),
            since_opset=7,
            name="quotient",
        ),
    )
