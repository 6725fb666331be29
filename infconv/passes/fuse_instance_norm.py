"""Instance normalization from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, half_or_single, require_trailing, same_axes
from infconv.passes._match import Match
from infconv.passes._norms import Statistics, epsilon, over_channels, quotient, uniform
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _plain(op: PatternBuilder, x: Any, axes: Any, axes_input: Any, axes2: Any, axes_input2: Any, eps: Any) -> Pattern:
    s = Statistics(op, x, axes, axes_input, axes2, axes_input2, eps)
    return quotient(op, s.centred, s.deviation, s.inverse)


def _normalize(op: Builder, match: Match) -> ir.Value:
    x, axes = match.value("x"), axes_of(match, "axes_input", "axes")
    rank, channels = _values.rank(x), _values.static_dim(x, 1)
    if not same_axes(axes, axes_of(match, "axes_input2", "axes2"), rank):
        raise Refuse("mean and variance are over different axes")
    if rank is None or rank < 4:
        # Of rank 3 it is more often the layer normalization of a sequence, which other fusions look for.
        raise Refuse(f"'{x.name}' is not known to have two or more axes besides batch and channels")
    if require_trailing(match, axes) != rank - 2:
        raise Refuse(f"axes {list(axes or ())} of '{x.name}' are not all but batch and channels")
    if channels is None:
        raise Refuse(f"the number of channels of '{x.name}' is not known")
    scale, bias = (op.const(uniform(x, (channels,), number)) for number in (1.0, 0.0))
    return op.InstanceNormalization(x, scale, bias, epsilon=epsilon(match))


def _with_scale(op: Builder, match: Match) -> ir.Value:
    """InstanceNormalization(x, s, b) · w = InstanceNormalization(x, s·w, b·w)."""
    s, b = match.array("s"), match.array("b")
    w = over_channels(match, "w", len(s))
    return op.InstanceNormalization(match["x"], op.const(s * w), op.const(b * w), epsilon=match["e"])


def _with_bias(op: Builder, match: Match) -> ir.Value:
    """InstanceNormalization(x, s, b) + c = InstanceNormalization(x, s, b + c)."""
    b = match.array("b")
    bias = op.const(b + over_channels(match, "c", len(b)))
    return op.InstanceNormalization(match["x"], match["s"], bias, epsilon=match["e"])


class FuseInstanceNorm(RewritePass):
    """Replace mean, variance, quotient, scale and bias per channel by one InstanceNormalization.

    `w·(x - mean) / √(mean((x - mean)²) + ε) + b` over all axes of x but batch and channels. First the plain
    normalization is replaced, then constant scales and biases of one number for each channel join it.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, b, w, e: op.Mul(
                op.InstanceNormalization(x, op.const(s), op.const(b), epsilon=e), op.const(w)
            ),
            build=_with_scale,
            since_opset=6,
            name="scale",
        ),
        Rule(
            match=lambda op, x, s, b, c, e: op.Add(op.InstanceNormalization(x, s, op.const(b), epsilon=e), op.const(c)),
            build=_with_bias,
            since_opset=6,
            name="bias",
        ),
        Rule(match=_plain, build=_normalize, when=half_or_single, since_opset=6, name="plain"),
    )
