"""BiasGelu and FastGelu of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._forms import single_precision
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder
from infconv.passes._rewrite import Rule


def _biased(op: PatternBuilder, x: Any, b: Any) -> Pattern:
    return op.Add(x, op.const(b))


def _is_bias(match: Match) -> str | None:
    """Ask that b is one number for each feature of x."""
    x, b = match.value("x"), match.value("b")
    if _values.rank(b) != 1 or _values.static_dim(b, 0) != _values.static_dim(x, -1):
        return f"'{b.name}' is not known to be one number for each feature of '{x.name}'"
    return None


class FuseBiasGelu(RewritePass):
    """Join the bias of the layer before to Gelu: ONNX Runtime's BiasGelu, or FastGelu for the form with tanh."""

    emits: ClassVar[frozenset[str]] = frozenset({"com.microsoft"})
    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, b: op.any_of(
                op.Gelu(_biased(op, x, b)), op.Gelu(_biased(op, x, b), _domain="com.microsoft")
            ),
            build=lambda op, x, b: op.BiasGelu(x, b, _domain="com.microsoft"),
            when=_values.all_of(single_precision, _is_bias),
            name="exact",
        ),
        Rule(
            match=lambda op, x, b: op.any_of(
                op.Gelu(_biased(op, x, b), approximate="tanh"), op.FastGelu(_biased(op, x, b), _domain="com.microsoft")
            ),
            build=lambda op, x, b: op.FastGelu(x, b, _domain="com.microsoft"),
            when=_values.all_of(single_precision, _is_bias),
            name="tanh",
        ),
    )
