"""Group normalization from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, same_axes, single_precision
from infconv.passes._match import Match
from infconv.passes._norms import Statistics, epsilon, over_channels, quotient, uniform
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _from_instance_norm(op: PatternBuilder, x: Any, into: Any, s: Any, b: Any, e: Any, back: Any) -> Pattern:
    grouped = op.Reshape(x, op.const(into))
    return op.Reshape(op.InstanceNormalization(grouped, op.const(s), op.const(b), epsilon=e), back)


def _from_statistics(op: PatternBuilder, x: Any, into: Any, back: Any, axes: Any, axes_input: Any, eps: Any) -> Pattern:
    s = Statistics(op, op.Reshape(x, op.const(into)), axes, axes_input, axes, axes_input, eps)
    return op.Reshape(quotient(op, s.centred, s.deviation, s.inverse), back)


def _groups(match: Match) -> int:
    """Return into how many groups of channels `into` reshapes `x`. Raises Refuse when it does something else."""
    x, target = match.value("x"), match.array("into").reshape(-1).tolist()
    batch, channels = _values.static_dim(x, 0), _values.static_dim(x, 1)
    if (_values.rank(x) or 0) < 3 or channels is None:
        raise Refuse(f"'{x.name}' is not known to have a fixed number of channels and more axes")
    if len(target) < 3 or target[0] not in (0, batch) or target[1] < 1 or channels % target[1]:
        raise Refuse(f"'{x.name}' is reshaped to {target}, which is not batch, groups and the rest")
    return target[1]


def _check_back(match: Match) -> None:
    """Raise Refuse when the result does not have the shape of `x`."""
    x, shape = match.value("x"), match.value("back").producer()
    is_own = shape is not None and shape.op_type == "Shape" and not shape.attributes and shape.inputs[0] is x
    if not is_own and not _values.same_shape(match.outputs[0], x):
        raise Refuse(f"the result is not known to have the shape of '{x.name}'")


def _from_grouped(op: Builder, match: Match) -> ir.Value:
    groups = _groups(match)
    _check_back(match)
    repeats = (_values.static_dim(match.value("x"), 1) or 0) // groups
    scale, bias = (op.const(np.repeat(match.array(name), repeats)) for name in ("s", "b"))
    return op.GroupNormalization(match["x"], scale, bias, num_groups=groups, epsilon=match["e"])


def _normalize(op: Builder, match: Match) -> ir.Value:
    x, groups = match.value("x"), _groups(match)
    _check_back(match)
    rank = match.array("into").size
    axes = axes_of(match, "axes_input", "axes")
    if not same_axes(axes, range(2, rank), rank):
        raise Refuse(f"axes {axes} are not all axes after the groups")
    channels = _values.static_dim(x, 1) or 0
    scale, bias = (op.const(uniform(x, (channels,), number)) for number in (1.0, 0.0))
    return op.GroupNormalization(x, scale, bias, num_groups=groups, epsilon=epsilon(match))


def _with_scale(op: Builder, match: Match) -> ir.Value:
    """GroupNormalization(x, s, b) · w = GroupNormalization(x, s·w, b·w)."""
    s, b = match.array("s"), match.array("b")
    w = over_channels(match, "w", len(s))
    scale, bias = op.const(s * w), op.const(b * w)
    return op.GroupNormalization(match["x"], scale, bias, num_groups=match["g"], epsilon=match["e"])


def _with_bias(op: Builder, match: Match) -> ir.Value:
    """GroupNormalization(x, s, b) + c = GroupNormalization(x, s, b + c)."""
    b = match.array("b")
    bias = op.const(b + over_channels(match, "c", len(b)))
    return op.GroupNormalization(match["x"], match["s"], bias, num_groups=match["g"], epsilon=match["e"])


class FuseGroupNorm(RewritePass):
    """Replace normalization over groups of channels, then scale and bias, by one GroupNormalization (opset 21).

    `Reshape(InstanceNormalization(Reshape(x, [0, G, -1])), Shape(x))`, as PyTorch writes it, or the same with mean and
    variance. Constant scales and biases of one number for each channel join the operator. Its older form, of opset 18,
    has one scale for each group and is deprecated.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, b, w, g, e: op.Mul(
                op.GroupNormalization(x, op.const(s), op.const(b), num_groups=g, epsilon=e), op.const(w)
            ),
            build=_with_scale,
            since_opset=21,
            name="scale",
        ),
        Rule(
            match=lambda op, x, s, b, c, g, e: op.Add(
                op.GroupNormalization(x, s, op.const(b), num_groups=g, epsilon=e), op.const(c)
            ),
            build=_with_bias,
            since_opset=21,
            name="bias",
        ),
        Rule(match=_from_instance_norm, build=_from_grouped, since_opset=21, name="instance normalization"),
        Rule(match=_from_statistics, build=_normalize, when=single_precision, since_opset=21, name="statistics"),
    )
