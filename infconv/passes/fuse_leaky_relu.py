"""LeakyRelu and PRelu from their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import half_or_single, one_number
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _switch(op: PatternBuilder, x: Any, a: Any) -> Pattern:
    below = op.Mul(x, op.const(a))
    return op.any_of(
        op.Where(op.any("Greater", "GreaterOrEqual")(x, 0.0), x, below),
        op.Where(op.any("Less", "LessOrEqual")(x, 0.0), below, x),
    )


def _leaky_relu(op: Builder, match: Match) -> ir.Value:
    return op.LeakyRelu(match["x"], alpha=one_number(match, "a"))


def _larger(op: Builder, match: Match) -> ir.Value:
    slope = one_number(match, "a")
    if not 0 <= slope <= 1:
        raise Refuse(f"max(x, a·x) is LeakyRelu for a between 0 and 1, not for {slope:g}")
    return op.LeakyRelu(match["x"], alpha=slope)


def _equal_slopes(op: Builder, match: Match) -> ir.Value:
    slopes = match.array("a")
    if not slopes.size or np.any(slopes != slopes.flat[0]):
        raise Refuse(f"the slopes '{match.value('a').name}' are not all equal")
    return op.LeakyRelu(match["x"], alpha=float(slopes.flat[0]))


def _two_halves(op: Builder, match: Match) -> ir.Value:
    slope = match.value("a")
    if not _values.fits_inside(slope, match.value("x")):
        raise Refuse(f"'{slope.name}' is not known to broadcast to the shape of x")
    array = match.array("a")
    return op.PRelu(match["x"], op.const(array if match.root.op_type == "Sub" else -array))


class FuseLeakyRelu(RewritePass):
    """Replace the forms of `x > 0 ? x : a·x` by LeakyRelu where a is one number, else by PRelu.

    They are `max(x, a·x)` with a between 0 and 1, Where, and `relu(x) - a·relu(-x)` of Keras. A PRelu whose slopes are
    all equal becomes LeakyRelu.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, a: op.PRelu(x, op.const(a)),
            build=_equal_slopes,
            when=half_or_single,
            since_opset=6,
            name="equal slopes",
        ),
        Rule(
            match=lambda op, x, a: op.Max(x, op.Mul(x, op.const(a))),
            build=_larger,
            when=half_or_single,
            since_opset=6,
            name="larger",
        ),
        Rule(match=_switch, build=_leaky_relu, when=half_or_single, since_opset=9, name="switch"),
        Rule(
            match=lambda op, x, a: op.any("Add", "Sub")(op.Relu(x), op.Mul(op.Relu(op.Neg(x)), op.const(a))),
            build=_two_halves,
            when=half_or_single,
            since_opset=7,
            name="two halves",
        ),
    )
