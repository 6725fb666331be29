"""Softplus from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._forms import half_or_single
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule


def softplus(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of log(1 + exp(x)), as one operator or several."""
    return op.any_of(op.Softplus(x), op.Log(op.Add(op.Exp(x), 1.0)))


def _is_far(match: Match) -> str | None:
    """Ask that Softplus(x) rounds to x above the threshold: exp(-15) / 15 is about half a unit in the last place."""
    threshold = match.value("t")
    number = _values.scalar(threshold)
    if number is None or not _values.fits_inside(threshold, match.value("x")):
        return f"the threshold '{threshold.name}' is not one number"
    return f"Softplus(x) differs from x at the threshold {number:g}" if number < 15 else None


def _magnitude(op: PatternBuilder, x: Any) -> Pattern:
    return op.Neg(op.Abs(x))


class FuseSoftplus(RewritePass):
    """Replace `log(1 + exp(x))` by Softplus.

    Also the form that does not overflow, `max(x, 0) + log(1 + exp(-|x|))`, and the switch to x itself above a
    threshold that PyTorch writes around either.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, t: op.Where(op.Greater(x, op.const(t)), x, softplus(op, x)),
            build=lambda op, x: op.Softplus(x),
            when=_values.all_of(half_or_single, _is_far),
            name="threshold",
        ),
        Rule(
            match=lambda op, x: op.Add(op.any_of(op.Relu(x), op.Max(x, 0.0)), softplus(op, _magnitude(op, x))),
            build=lambda op, x: op.Softplus(x),
            when=half_or_single,
            name="without overflow",
        ),
        Rule(
            match=lambda op, x: op.Log(op.Add(op.Exp(x), 1.0)),
            build=lambda op, x: op.Softplus(x),
            when=half_or_single,
            name="plain",
        ),
    )
