"""Mish from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._forms import half_or_single
from infconv.passes._rewrite import Rule
from infconv.passes.fuse_softplus import softplus


class FuseMish(RewritePass):
    """Replace `x · tanh(softplus(x))` by Mish (opset 18)."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Mul(x, op.Tanh(softplus(op, x))),
            build=lambda op, x: op.Mish(x),
            when=half_or_single,
            since_opset=18,
        ),
    )
