"""Global pooling from reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, half_or_single, reduced, require_trailing
from infconv.passes._match import Match
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule


def _check(match: Match) -> None:
    """Raise Refuse when the reduction is not over all axes of an image or volume but batch and channels."""
    x = match.value("x")
    rank = _values.rank(x)
    if rank is None or rank < 4:
        # Of rank 3 it may as well be a mean over the features of a sequence, which other fusions look for.
        raise Refuse(f"'{x.name}' is not known to have two or more axes besides batch and channels")
    if require_trailing(match, axes_of(match, "axes_input", "axes")) != rank - 2:
        raise Refuse(f"the reduction is not over the last {rank - 2} axes of '{x.name}'")


def _average(op: Builder, match: Match) -> ir.Value:
    _check(match)
    return op.GlobalAveragePool(match["x"])


def _maximum(op: Builder, match: Match) -> ir.Value:
    _check(match)
    return op.GlobalMaxPool(match["x"])


class FuseGlobalPool(RewritePass):
    """Replace the mean or maximum over all axes but batch and channels by GlobalAveragePool or GlobalMaxPool.

    Only reductions that keep their axes, of rank 4 and up: the pooling operators keep the rank, and runtimes have them
    in the layout of the convolutions before them.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, axes, axes_input: reduced(op, "ReduceMean", x, axes_input, axes),
            build=_average,
            when=half_or_single,
            name="mean",
        ),
        Rule(
            match=lambda op, x, axes, axes_input: reduced(op, "ReduceMax", x, axes_input, axes),
            build=_maximum,
            when=half_or_single,
            name="maximum",
        ),
    )
