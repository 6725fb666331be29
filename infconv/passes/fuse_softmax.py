"""Softmax from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, reciprocal, reduced, require_trailing, same_axes
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _quotient(op: PatternBuilder, x: Any, axes: Any, axes_input: Any) -> Pattern:
    exp = op.Exp(x)
    total = reduced(op, "ReduceSum", exp, axes_input, axes)
    return op.any_of(op.Div(exp, total), op.Mul(exp, reciprocal(op, total)))


def softmax_axis(match: Match) -> int:
    """Return the `axis` of a Softmax that normalizes over the axes that `reduced` bound. Raises Refuse.

    Before opset 13 the operator flattens its input from the axis on, so these must be all axes from there to the last.
    """
    axes = axes_of(match, "axes_input", "axes")
    if match.opset < 13:
        # A negative axis is allowed since opset 11 only, and then means the same.
        count, rank = require_trailing(match, axes), _values.rank(match.value("x"))
        if rank is None and match.opset < 11:
            raise Refuse("the rank of x is not known")
        return -count if rank is None else rank - count
    if axes is None and _values.rank(match.value("x")) == 1:
        return 0
    if axes is None or len(axes) != 1:
        raise Refuse(f"the sum is over {'all axes' if axes is None else list(axes)}, not over one")
    return axes[0]


def _softmax(op: Builder, match: Match) -> ir.Value:
    return op.Softmax(match["x"], axis=softmax_axis(match))


def _without_shift(op: Builder, match: Match) -> ir.Value:
    axis, x = match["axis"], match.value("x")
    rank = _values.rank(x)
    if match.opset < 13 and (rank is None or axis % rank != rank - 1):
        raise Refuse("the Softmax may be over several axes")
    if not same_axes((axis,), axes_of(match, "axes_input", "axes"), rank):
        raise Refuse("the maximum is over other axes than the Softmax")
    return op.call(match["node"].op_type, x, axis=axis)


class FuseSoftmax(RewritePass):
    """Replace `exp(x) / Σ exp(x)` by Softmax, and drop the maximum that was subtracted to keep exp in range.

    `Softmax(x - max(x)) = Softmax(x)`, as the operator subtracts the maximum itself; the same for LogSoftmax. Before
    opset 13 Softmax is over all axes from its own to the last, so only such sums are replaced there; since then over
    one axis.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, axes, axes_input, axis, node: op.any("Softmax", "LogSoftmax")(
                op.Sub(x, reduced(op, "ReduceMax", x, axes_input, axes)), axis=axis, _node=node
            ),
            build=_without_shift,
            name="shifted by the maximum",
        ),
        Rule(match=_quotient, build=_softmax, name="quotient"),
    )
