"""Swish for targets that have no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Rule


def _parts(op: Builder, x: ir.Value, a: float) -> ir.Value:
    angle = x if a == 1 else op.Mul(x, op.const(a, like=x), _like=x)
    return op.Mul(x, op.Sigmoid(angle, _like=x))


class LowerSwish(RewritePass):
    """Replace `Swish(x)` by `x · sigmoid(alpha · x)`, for targets without it, as ONNX Runtime 1.32 at opset 25."""

    rules: ClassVar[Sequence[Rule]] = (Rule(match=lambda op, x, a: op.Swish(x, alpha=a), build=_parts, since_opset=24),)
