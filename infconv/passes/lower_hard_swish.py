"""HardSwish for targets that have no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from infconv.passes._base import RewritePass
from infconv.passes._rewrite import Rule


class LowerHardSwish(RewritePass):
    """Replace `HardSwish(x)` by `x · HardSigmoid(x)` with 1/6 and ½, for targets without it."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.HardSwish(x),
            build=lambda op, x: op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5, _like=x)),
            since_opset=14,
        ),
    )
