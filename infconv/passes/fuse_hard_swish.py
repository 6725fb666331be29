"""HardSwish from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._forms import half_or_single, scaled
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule
from infconv.passes.fuse_hard_sigmoid import clipped


def _clip_form(op: PatternBuilder, x: Any) -> Pattern:
    gate = clipped(op, op.Add(x, 3.0), 0.0, 6.0)
    return op.any_of(
        scaled(op, op.Mul(x, gate), 1 / 6),
        op.Mul(scaled(op, x, 1 / 6), gate),
        op.Mul(x, scaled(op, gate, 1 / 6)),
    )


class FuseHardSwish(RewritePass):
    """Replace `x · clip(x + 3, 0, 6) / 6`, and `x · HardSigmoid(x)` with 1/6 and ½, by HardSwish (opset 14).

    fuse-clip first turns other ways to write the limits into Clip.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Mul(x, op.HardSigmoid(x, alpha=lambda a: abs(a - 1 / 6) < 1e-5, beta=0.5)),
            build=lambda op, x: op.HardSwish(x),
            when=half_or_single,
            since_opset=14,
            name="hard sigmoid",
        ),
        Rule(
            match=_clip_form,
            build=lambda op, x: op.HardSwish(x),
            when=half_or_single,
            since_opset=14,
            name="clip",
        ),
    )
