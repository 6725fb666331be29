"""Root mean square normalization from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, inverse_root, reduced, require_trailing, root, single_precision, square
from infconv.passes._match import Match
from infconv.passes._norms import (
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


def _plain(op: PatternBuilder, x: Any, axes: Any, axes_input: Any, eps: Any) -> Pattern:
    shifted = op.optional(op.Add(reduced(op, "ReduceMean", square(op, x), axes_input, axes), op.const(eps)))
    return quotient(op, x, root(op, shifted), inverse_root(op, shifted))


def _normalize(op: Builder, match: Match) -> ir.Value:
    x = match.value("x")
    count = require_trailing(match, axes_of(match, "axes_input", "axes"))
    scale = op.const(uniform(x, normalized_shape(x, count), 1.0))
    return op.RMSNormalization(x, scale, axis=-count, epsilon=epsilon(match))


def _with_scale(op: Builder, match: Match) -> ir.Value:
    """RMSNormalization(x, s) · w = RMSNormalization(x, s·w)."""
    shape = scale_shape(match)
    if has_shape(match["w"], shape) and np.all(match.array("s") == 1):
        return op.RMSNormalization(match["x"], match["w"], axis=match["axis"], epsilon=match["e"])
    w = over_last_axes(match, "w", shape)
    return op.RMSNormalization(match["x"], op.const(match.array("s") * w), axis=match["axis"], epsilon=match["e"])


def _without_casts(op: Builder, match: Match) -> ir.Value:
    """The operator casts to float itself: its stash_type says so."""
    x = match.value("x")
    dtype = _values.dtype_of(x)
    if dtype is None or dtype.bitwidth != 16 or match["to"] != dtype:
        raise Refuse(f"'{x.name}' of type {dtype} is cast to float and then to {ir.DataType(match['to'])}")
    scale = op.const(exactly(match.array("s"), dtype))
    return op.RMSNormalization(x, scale, axis=match["axis"], epsilon=match["e"])


class FuseRmsNorm(RewritePass):
    """Replace mean square, quotient and scale by one RMSNormalization (opset 23).

    `w · x / √(mean(x²) + ε)` over the last axes of x, as transformers writes it for Llama and T5. First the plain
    normalization is replaced, then a scale of the normalized shape joins it. Casts of half precision to float
    around it go, as the operator computes in float anyway.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, w, axis, e: op.Mul(op.RMSNormalization(x, op.const(s), axis=axis, epsilon=e), w),
            build=_with_scale,
            since_opset=23,
            name="scale",
        ),
        Rule(
            match=lambda op, x, s, axis, e, to: op.Cast(
                op.RMSNormalization(op.Cast(x, to=ir.DataType.FLOAT.value), op.const(s), axis=axis, epsilon=e), to=to
            ),
            build=_without_casts,
            since_opset=23,
            name="casts",
        ),
        Rule(match=_plain, build=_normalize, when=single_precision, since_opset=23, name="plain"),
    )
