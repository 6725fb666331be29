"""SkipLayerNormalization of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import single_precision
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _sum(op: PatternBuilder, x: Any, skip: Any, bias: Any) -> Pattern:
    """Return the pattern of x + skip, or (x + bias) + skip with a constant bias."""
    return op.Add(op.any_of(op.Add(x, op.const(bias)), x), skip)


def _layer_norm(op: PatternBuilder, x: Any, skip: Any, bias: Any, s: Any, b: Any, axis: Any, e: Any) -> Pattern:
    return op.LayerNormalization(_sum(op, x, skip, bias), s, op.optional(b), axis=axis, epsilon=e)


def _layer_norm_and_sum(
    op: PatternBuilder, x: Any, skip: Any, bias: Any, s: Any, b: Any, axis: Any, e: Any
) -> tuple[Pattern, Pattern]:
    total = _sum(op, x, skip, bias)
    return op.LayerNormalization(total, s, op.optional(b), axis=axis, epsilon=e), total


def _rms_norm(op: PatternBuilder, x: Any, skip: Any, bias: Any, s: Any, axis: Any, e: Any) -> Pattern:
    return op.RMSNormalization(_sum(op, x, skip, bias), s, axis=axis, epsilon=e)


def _rms_norm_and_sum(
    op: PatternBuilder, x: Any, skip: Any, bias: Any, s: Any, axis: Any, e: Any
) -> tuple[Pattern, Pattern]:
    total = _sum(op, x, skip, bias)
    return op.RMSNormalization(total, s, axis=axis, epsilon=e), total


def _check(match: Match) -> None:
    """Raise Refuse when the operator has no such form: it is over one axis and broadcasts nothing but the bias."""
    x, skip, bias = match.value("x"), match.value("skip"), match["bias"]
    rank = _values.rank(x)
    if rank not in (2, 3):
        raise Refuse(f"'{x.name}' is not known to be of rank 2 or 3")
    if match["axis"] not in (-1, rank - 1):
        raise Refuse(f"the normalization is over more than the last axis, from {match['axis']} on")
    if not _values.same_shape(x, skip):
        raise Refuse(f"'{x.name}' and '{skip.name}' are not known to be of the same shape")
    features = _values.known_shape(match["s"])
    if features is None or features != (_values.static_dim(x, -1),):
        raise Refuse(f"the scale '{match['s'].name}' is not one number for each feature")
    if bias is not None and _values.known_shape(bias) != features:
        raise Refuse(f"the bias '{bias.name}' is not one number for each feature")


def _build(op: Builder, match: Match) -> Any:
    """Make the operator; its fourth output is the sum, for the rules that replace that as well."""
    _check(match)
    is_layer_norm = match.root.op_type == "LayerNormalization"
    made = op.call(
        "SkipLayerNormalization" if is_layer_norm else "SkipSimplifiedLayerNormalization",
        match["x"],
        match["skip"],
        match["s"],
        *((match["b"],) if is_layer_norm else ()),
        match["bias"],
        epsilon=match["e"],
        _domain="com.microsoft",
        _outputs=4 if len(match.outputs) > 1 else 1,
    )
    return (made[0], made[3]) if isinstance(made, tuple) else made


class FuseSkipLayerNorm(RewritePass):
    """Join a residual Add, and the bias before it, to the normalization: ONNX Runtime's SkipLayerNormalization.

    `LayerNormalization(x + skip)` and `LayerNormalization((x + bias) + skip)`; RMSNormalization likewise becomes
    SkipSimplifiedLayerNormalization. The sum stays available to its other users. The two must be of the same shape,
    [batch, features] or [batch, sequence, features].
    """

    emits: ClassVar[frozenset[str]] = frozenset({"com.microsoft"})
    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_layer_norm, build=_build, when=single_precision, since_opset=17, name="layer norm"),
        Rule(match=_layer_norm_and_sum, build=_build, when=single_precision, since_opset=17, name="layer norm and sum"),
        Rule(match=_rms_norm, build=_build, when=single_precision, since_opset=23, name="rms norm"),
        Rule(match=_rms_norm_and_sum, build=_build, when=single_precision, since_opset=23, name="rms norm and sum"),
    )
