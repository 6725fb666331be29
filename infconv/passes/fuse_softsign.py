"""Softsign from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._forms import half_or_single
from infconv.passes._rewrite import Rule


class FuseSoftsign(RewritePass):
    """Replace `x / (1 + |x|)` by Softsign."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Div(x, op.Add(op.Abs(x), 1)),
            build=lambda op, x: op.Softsign(x),
            when=half_or_single,
        ),
    )
