"""Means over an image as pooling, which has an integer kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes import RewritePass, _values
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, half_or_single, require_trailing
from infconv.passes._match import Match
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule


def _pool(op: Builder, match: Match) -> ir.Value:
    x, axes = match.value("x"), axes_of(match, "axes_input", "axes")
    rank = _values.rank(x)
    if rank is None or rank < 4:
        raise Refuse(f"'{x.name}' is not known to have two or more axes besides batch and channels")
    if require_trailing(match, axes) != rank - 2:
        raise Refuse(f"the reduction is not over the last {rank - 2} axes of '{x.name}'")
    return op.Flatten(op.GlobalAveragePool(x), axis=1)


class ReplaceMeanByPool(RewritePass):
    """Replace a mean over all axes but batch and channels, which drops them, by GlobalAveragePool and Flatten.

    One operator more, but ONNX Runtime has an 8-bit kernel for it, and none for ReduceMean.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, axes, axes_input: op.ReduceMean(
                x, op.optional(op.const(axes_input)), axes=axes, keepdims=0
            ),
            build=_pool,
            when=half_or_single,
            name="mean",
        ),
    )
