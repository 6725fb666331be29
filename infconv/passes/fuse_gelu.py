"""GELU, exact and approximated by tanh, from what exporters write for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._forms import SQRT_HALF, product, scaled, square
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule

_C = 0.044715
_SQRT_2_PI = 0.7978845608028654


def _times_half_of(op: PatternBuilder, x: Any, one_plus: Any, half_plus: Any) -> Pattern:
    """Return the pattern of x · ½(1 + t): `one_plus` is 1 + t, `half_plus` is ½ + ½t."""
    return op.any_of(
        op.Mul(scaled(op, x, 0.5), one_plus),
        scaled(op, op.Mul(x, one_plus), 0.5),
        op.Mul(x, op.any_of(scaled(op, one_plus, 0.5), half_plus)),
    )


def _half_plus(op: PatternBuilder, t: Any) -> Any:
    return op.Add(scaled(op, t, 0.5), 0.5)


def _erf_form(op: PatternBuilder, x: Any) -> Pattern:
    erf = op.Erf(scaled(op, x, SQRT_HALF))
    return _times_half_of(op, x, op.Add(erf, 1.0), _half_plus(op, erf))


def _cubic(op: PatternBuilder, x: Any, c: float) -> Pattern:
    """Return the pattern of c·x³."""
    cube = op.any_of(op.Pow(x, 3), op.Mul(x, square(op, x)))
    c_square = op.any_of(op.Mul(square(op, x), c), op.Mul(x, op.Mul(x, c)))
    return op.any_of(op.Mul(cube, c), op.Mul(x, c_square), op.Mul(square(op, x), op.Mul(x, c)))


def _angle(op: PatternBuilder, x: Any, k: float) -> Pattern:
    """Return the pattern of k·(x + 0.044715·x³)."""
    one_plus = op.Add(op.any_of(op.Mul(square(op, x), _C), op.Mul(x, op.Mul(x, _C))), 1.0)
    return op.any_of(
        op.Mul(op.Add(x, _cubic(op, x, _C)), k),
        product(op, x, k, one_plus),
        op.Add(op.Mul(x, k), _cubic(op, x, k * _C)),
        op.Mul(x, op.Add(op.Mul(square(op, x), k * _C), k)),
    )


def _tanh_form(op: PatternBuilder, x: Any) -> Pattern:
    tanh = op.Tanh(_angle(op, x, _SQRT_2_PI))
    return _times_half_of(op, x, op.Add(tanh, 1.0), _half_plus(op, tanh))


class FuseGelu(RewritePass):
    """Replace what exporters write for GELU by one Gelu (opset 20).

    Exact: `½·x·(1 + erf(x/√2))`. Approximated: `½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, or with a sigmoid, as
    `½·(1 + tanh u) = sigmoid(2u)`. The factors may come in any order. `x·sigmoid(1.702·x)` is another function,
    and stays: see fuse-quick-gelu.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_erf_form, build=lambda op, x: op.Gelu(x), since_opset=20, name="erf"),
        Rule(match=_tanh_form, build=lambda op, x: op.Gelu(x, approximate="tanh"), since_opset=20, name="tanh"),
        Rule(
            match=lambda op, x: op.Mul(x, op.Sigmoid(_angle(op, x, 2 * _SQRT_2_PI))),
            build=lambda op, x: op.Gelu(x, approximate="tanh"),
            since_opset=20,
            name="sigmoid",
        ),
    )
