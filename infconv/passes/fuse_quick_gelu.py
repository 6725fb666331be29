"""QuickGelu of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import one_number, single_precision
from infconv.passes._match import Match
from infconv.passes._rewrite import Rule


def _with_alpha(op: Builder, match: Match) -> ir.Value:
    return op.QuickGelu(match["x"], alpha=one_number(match, "a"), _domain="com.microsoft")


class FuseQuickGelu(RewritePass):
    """Replace `x · sigmoid(a·x)` by ONNX Runtime's QuickGelu; a is 1.702 in CLIP, and 1 in SiLU."""

    emits: ClassVar[frozenset[str]] = frozenset({"com.microsoft"})
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x: op.Mul(x, op.Sigmoid(x)),
            build=lambda op, x: op.QuickGelu(x, alpha=1.0, _domain="com.microsoft"),
            when=single_precision,
            name="silu",
        ),
        Rule(
            match=lambda op, x, a: op.Mul(x, op.Sigmoid(op.Mul(x, op.const(a)))),
            build=_with_alpha,
            when=single_precision,
            name="with alpha",
        ),
    )
