"""Mish for targets that have no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._rewrite import Rule


class LowerMish(RewritePass):
    """Replace `Mish(x)` by `x · tanh(softplus(x))`, for targets without it."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Mish(x),
            build=lambda op, x: op.Mul(x, op.Tanh(op.Softplus(x, _like=x), _like=x)),
            since_opset=18,
        ),
    )
