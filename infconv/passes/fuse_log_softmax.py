"""LogSoftmax from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import reduced
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule
from infconv.passes.fuse_softmax import softmax_axis


def _difference(op: PatternBuilder, x: Any, axes: Any, axes_input: Any) -> Pattern:
    return op.Sub(
        x,
        op.any_of(
            reduced(op, "ReduceLogSumExp", x, axes_input, axes),
            op.Log(reduced(op, "ReduceSum", op.Exp(x), axes_input, axes)),
            reduced(op, "ReduceLogSum", op.Exp(x), axes_input, axes),
        ),
    )


def _log_softmax(op: Builder, match: Match) -> ir.Value:
    return op.LogSoftmax(match["x"], axis=softmax_axis(match))


class FuseLogSoftmax(RewritePass):
    """Replace `log(softmax(x))` and `x - log Σ exp(x)` by LogSoftmax.

    The operator stays finite where softmax(x) underflows to 0. Of the axes the same holds as for fuse-softmax, which
    also drops a maximum that was subtracted before.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, axis: op.Log(op.Softmax(x, axis=axis)),
            build=lambda op, x, axis: op.LogSoftmax(x, axis=axis),
            name="log of softmax",
        ),
        Rule(match=_difference, build=_log_softmax, name="difference"),
    )
