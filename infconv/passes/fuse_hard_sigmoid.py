"""HardSigmoid from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import half_or_single, one_number, scaled
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule


def clipped(op: PatternBuilder, x: Any, low: float, high: float) -> Pattern:
    """Return the pattern of x between two limits, since opset 11 as inputs, before as attributes."""
    return op.any_of(op.Clip(x, low, high), op.Clip(x, min=float(low), max=float(high)))


def _line(op: PatternBuilder, x: Any, a: Any, b: Any) -> Pattern:
    """Return the pattern of a·x + b."""
    return op.Add(op.any_of(op.Mul(x, op.const(a)), x), op.const(b))


def _hard_sigmoid(op: Builder, match: Match, scale: float) -> ir.Value:
    x = match.value("x")
    a = 1.0 if match["a"] is None else one_number(match, "a")
    return op.HardSigmoid(x, alpha=a * scale, beta=one_number(match, "b") * scale)


class FuseHardSigmoid(RewritePass):
    """Replace a line between two limits by HardSigmoid.

    `clip(a·x + b, 0, 1)` is `HardSigmoid(x, alpha=a, beta=b)`, and `clip(x + 3, 0, 6) / 6` is the one with 1/6 and ½.
    fuse-clip first turns other ways to write the limits into Clip.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, a, b: scaled(op, clipped(op, _line(op, x, a, b), 0.0, 6.0), 1 / 6),
            build=lambda op, match: _hard_sigmoid(op, match, 1 / 6),
            when=half_or_single,
            since_opset=6,
            name="clip to 6, divided by 6",
        ),
        Rule(
            match=lambda op, x, a, b: clipped(op, _line(op, x, a, b), 0.0, 1.0),
            build=lambda op, match: _hard_sigmoid(op, match, 1.0),
            when=half_or_single,
            since_opset=6,
            name="clip to 1",
        ),
    )
