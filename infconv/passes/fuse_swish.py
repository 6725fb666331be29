"""Swish, also called SiLU, from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import one_number
from infconv.passes._match import Match
from infconv.passes._rewrite import Rule


def _with_alpha(op: Builder, match: Match) -> ir.Value:
    return op.Swish(match["x"], alpha=one_number(match, "a"))


class FuseSwish(RewritePass):
    """Replace `x · sigmoid(a·x)` by Swish (opset 24); with a = 1 it is SiLU, with a = 1.702 the quick GELU."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Mul(x, op.Sigmoid(x)),
            build=lambda op, x: op.Swish(x),
            since_opset=24,
            name="plain",
        ),
        Rule(
            match=lambda op, x, a: op.Mul(x, op.Sigmoid(op.Mul(x, op.const(a)))),
            build=_with_alpha,
            since_opset=24,
            name="with alpha",
        ),
    )
