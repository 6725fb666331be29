"""Layer normalization from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, require_trailing, same_axes, single_precision
from infconv.passes._match import Match
from infconv.passes._norms import (
    Statistics,
    epsilon,
    exactly,
    has_shape,
    normalized_shape,
    over_last_axes,
    quotient,
    scale_shape,
    uniform,
)
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _normalize(op: Builder, match: Match) -> ir.Value:
    """Make LayerNormalization of `x` with a scale of ones. Raises Refuse when it is not over trailing axes."""
    x, axes = match.value("x"), axes_of(match, "axes_input", "axes")
    if not same_axes(axes, axes_of(match, "axes_input2", "axes2"), _values.rank(x)):
        raise Refuse("mean and variance are over different axes")
    count = require_trailing(match, axes)
    scale = op.const(uniform(x, normalized_shape(x, count), 1.0))
    return op.LayerNormalization(x, scale, axis=-count, epsilon=epsilon(match), _like=x)


def _plain(op: PatternBuilder, x: Any, axes: Any, axes_input: Any, axes2: Any, axes_input2: Any, eps: Any) -> Pattern:
    s = Statistics(op, x, axes, axes_input, axes2, axes_input2, eps)
    return quotient(op, s.centred, s.deviation, s.inverse)


def _scaled_inside(
    op: PatternBuilder, x: Any, w: Any, axes: Any, axes_input: Any, axes2: Any, axes_input2: Any, eps: Any
) -> Pattern:
    s = Statistics(op, x, axes, axes_input, axes2, axes_input2, eps)
    return op.any_of(
        quotient(op, op.Mul(s.centred, op.const(w)), s.deviation, s.inverse),
        op.Mul(s.centred, op.any_of(op.Mul(s.inverse, op.const(w)), op.Div(op.const(w), s.deviation))),
    )


def _as_batch_norm(
    op: PatternBuilder, x: Any, w: Any, b: Any, axes: Any, axes_input: Any, axes2: Any, axes_input2: Any, eps: Any
) -> Pattern:
    """Return the pattern of x·r + (b - mean·r) with r = w / √(var + ε), as tf.nn.batch_normalization computes it."""
    s = Statistics(op, x, axes, axes_input, axes2, axes_input2, eps)
    # simplify-algebra writes w · (1/s) as w / s, and without w the product with 1/s as a quotient.
    r = op.any_of(op.Mul(s.inverse, op.const(w)), op.Div(op.const(w), s.deviation), s.inverse)

    def times_r(value: Any) -> Pattern:
        return op.any_of(op.Mul(value, r), op.Div(value, s.deviation))

    negative = op.any_of(times_r(op.Neg(s.mean)), op.Neg(times_r(s.mean)))
    return op.any_of(
        op.Add(times_r(x), op.any_of(op.Sub(op.const(b), times_r(s.mean)), op.Add(negative, op.const(b)))),
        op.Sub(times_r(x), times_r(s.mean)),
        op.Add(times_r(x), negative),
    )


def _affine(op: Builder, match: Match) -> ir.Value:
    """Make the normalization, then what is left of scale and bias: other rules take them in where they can."""
    made = _normalize(op, match)
    if match["w"] is not None:
        made = op.Mul(made, match["w"], _like=match["x"])
    if match.bindings.get("b") is not None:
        made = op.Add(made, match["b"], _like=match["x"])
    return made


def _with_scale(op: Builder, match: Match) -> ir.Value:
    """LayerNormalization(x, s, b) · w = LayerNormalization(x, s·w, b·w)."""
    shape = scale_shape(match)
    if match["b"] is None and has_shape(match["w"], shape) and np.all(match.array("s") == 1):
        return _again(op, match, match["w"], None)
    w = over_last_axes(match, "w", shape)
    bias = None if match["b"] is None else op.const(match.array("b") * w)
    return _again(op, match, op.const(match.array("s") * w), bias)


def _with_bias(op: Builder, match: Match) -> ir.Value:
    """LayerNormalization(x, s, b) + c = LayerNormalization(x, s, b + c)."""
    shape = scale_shape(match)
    if match["b"] is None and has_shape(match["c"], shape):
        return _again(op, match, match["s"], match["c"])
    if match["b"] is not None and _values.tensor(match["b"]) is None:
        raise Refuse(f"'{match['b'].name}' is not a constant")
    c = over_last_axes(match, "c", shape)
    return _again(op, match, match["s"], op.const(c if match["b"] is None else match.array("b") + c))


def _from_instance_norm(op: Builder, match: Match) -> ir.Value:
    """Of rank 3, with channels that are not scaled, it is the normalization over the last axis."""
    x = match.value("x")
    if _values.rank(x) != 3:
        raise Refuse(f"'{x.name}' is not known to be of rank 3")
    w = over_last_axes(match, "w", normalized_shape(x, 1))
    if match.array("w").size == 1:
        raise Refuse(f"'{match.value('w').name}' does not tell the last axis from the channels")
    return op.LayerNormalization(x, op.const(w), axis=-1, epsilon=match["e"])


def _without_casts(op: Builder, match: Match) -> ir.Value:
    """The operator casts to float itself: its stash_type says so."""
    x = match.value("x")
    dtype = _values.dtype_of(x)
    if dtype is None or dtype.bitwidth != 16 or match["to"] != dtype:
        raise Refuse(f"'{x.name}' of type {dtype} is cast to float and then to {ir.DataType(match['to'])}")
    bias = None if match["b"] is None else op.const(exactly(match.array("b"), dtype))
    return _again(op, match, op.const(exactly(match.array("s"), dtype)), bias)


def _again(op: Builder, match: Match, scale: ir.Value, bias: ir.Value | None) -> ir.Value:
    return op.LayerNormalization(match["x"], scale, bias, axis=match["axis"], epsilon=match["e"])


class FuseLayerNorm(RewritePass):
    """Replace mean, variance, quotient, scale and bias by one LayerNormalization (opset 17).

    `w·(x - mean) / √(mean((x - mean)²) + ε) + b` over the last axes of x, as exporters order it. The variance may be
    written mean(x²) - mean², the whole as `x·r + (b - mean·r)` with r = w / √(var + ε). First the plain normalization
    is replaced, then scales and biases of the normalized shape join it; others stay behind it. Casts of half precision
    to float around it go, as the operator computes in float anyway. tf2onnx writes the normalization of a sequence as
    InstanceNormalization, which is understood by the scale along the last axis.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, b, w, axis, e: op.Mul(
                op.LayerNormalization(x, op.const(s), op.optional(op.const(b)), axis=axis, epsilon=e), w
            ),
            build=_with_scale,
            since_opset=17,
            name="scale",
        ),
        Rule(
            match=lambda op, x, s, b, c, axis, e: op.Add(
                op.LayerNormalization(x, s, op.optional(b), axis=axis, epsilon=e), c
            ),
            build=_with_bias,
            since_opset=17,
            name="bias",
        ),
        Rule(
            match=lambda op, x, s, b, axis, e, to: op.Cast(
                op.LayerNormalization(
                    op.Cast(x, to=ir.DataType.FLOAT.value),
                    op.const(s),
                    op.optional(op.const(b)),
                    axis=axis,
                    epsilon=e,
                ),
                to=to,
            ),
            build=_without_casts,
            since_opset=17,
            name="casts",
        ),
        Rule(
            match=lambda op, x, w, e: op.Mul(op.InstanceNormalization(x, 1.0, 0.0, epsilon=e), op.const(w)),
            build=_from_instance_norm,
            when=single_precision,
            since_opset=17,
            name="instance normalization",
        ),
        Rule(
            match=_as_batch_norm,
            build=_affine,
            when=single_precision,
            since_opset=17,
            name="as batch normalization",
        ),
        Rule(
            match=_plain,
            build=_normalize,
            when=single_precision,
            since_opset=17,
            name="plain",
        ),
        Rule(
            match=_scaled_inside,
            build=_affine,
            when=single_precision,
            since_opset=17,
            name="scaled inside",
        ),
    )
