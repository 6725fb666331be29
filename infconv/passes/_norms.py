"""What the fusions of normalizations share: the statistics in a pattern, and how scale and bias join the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._forms import inverse_root, one_number, reduced, root, square
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse


class Statistics:
    """The parts of (x - mean) / √(var + ε), with mean and variance over axes that are still to be judged.

    The variance is written as mean((x - mean)²) or as mean(x²) - mean². The variables are those of the rule:
    `axes`, `axes_input`, `axes2`, `axes_input2` and `eps`.
    """

    def __init__(self, op: PatternBuilder, x: Any, axes: Any, axes_input: Any, axes2: Any, axes_input2: Any, eps: Any):
        self.mean = reduced(op, "ReduceMean", x, axes_input, axes)
        self.centred = op.Sub(x, self.mean)
        centred = op.any_of(self.centred, op.Sub(x, self.mean), op.Sub(self.mean, x))
        variance = op.any_of(
            reduced(op, "ReduceMean", square(op, centred), axes_input2, axes2),
            op.Sub(reduced(op, "ReduceMean", square(op, x), axes_input2, axes2), square(op, self.mean)),
        )
        shifted = op.optional(op.Add(variance, op.const(eps)))
        self.deviation = root(op, shifted)
        self.inverse = inverse_root(op, shifted)


def quotient(op: PatternBuilder, x: Any, deviation: Pattern, inverse: Pattern) -> Pattern:
    """Return the pattern of x / deviation."""
    return op.any_of(op.Div(x, deviation), op.Mul(x, inverse))


def epsilon(match: Match, x: str = "x") -> float:
    """Return the number bound to `eps`; 0 when there is none. Raises Refuse when it is not one number."""
    return 0.0 if match["eps"] is None else one_number(match, "eps", x)


def normalized_shape(x: ir.Value, count: int) -> tuple[int, ...]:
    """Return the sizes of the last `count` axes of `x`. Raises Refuse when they are not known."""
    sizes = [_values.static_dim(x, axis) for axis in range(-count, 0)]
    if None in sizes:
        raise Refuse(f"the sizes of the last {count} axes of '{x.name}' are not known")
    return tuple(cast("list[int]", sizes))


def in_float(op: Builder, x: ir.Value) -> tuple[ir.Value, Callable[[ir.Value], ir.Value]]:
    """Return `x` in float32 when it is shorter, and what casts the result back. Raises Refuse for unknown types."""
    dtype = _values.dtype_of(x)
    if dtype is None:
        raise Refuse(f"the type of '{x.name}' is not known")
    if dtype.bitwidth >= 32:
        return x, lambda value: value
    wide: ir.Value = op.Cast(x, to=ir.DataType.FLOAT.value, _like=x)
    wide.dtype = ir.DataType.FLOAT
    return wide, lambda value: op.Cast(value, to=dtype.value, _like=x)


# --- scale and bias ------------------------------------------------------------------------------------------------


def scale_shape(match: Match) -> tuple[int, ...]:
    """Return the shape of the scale `s`. Raises Refuse when the normalized axes of `x` may have another."""
    shape = _values.known_shape(match.value("s"))
    if shape is None or normalized_shape(match.value("x"), len(shape)) != shape:
        raise Refuse(f"the scale '{match.value('s').name}' does not have the shape of the normalized axes")
    return shape


def has_shape(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether `value` is known to have exactly this shape, so that it can be a scale or bias without being constant."""
    return _values.known_shape(value) == shape


def over_last_axes(match: Match, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the constant `name` with the `shape` of the normalized axes; it is combined with the value `x`.

    Raises Refuse when it varies along other axes or makes the result larger than `x`.
    """
    array = _fitting(match, name)
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    if array.ndim > len(shape):
        raise Refuse(f"'{match.value(name).name}' varies along axes that are not normalized")
    return np.broadcast_to(array, shape)


def over_channels(match: Match, name: str, channels: int) -> np.ndarray:
    """Return the constant `name`, combined with `x` of shape [N, C, …], as a vector of C elements.

    Raises Refuse when it varies along other axes or makes the result larger than `x`.
    """
    array, rank = _fitting(match, name), cast(int, _values.rank(match.value("x")))
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if array.size != array.shape[1]:
        raise Refuse(f"'{match.value(name).name}' varies along axes other than the channels")
    return np.broadcast_to(array.reshape(-1), (channels,))


def _fitting(match: Match, name: str) -> np.ndarray:
    value, x = match.value(name), match.value("x")
    if _values.tensor(value) is None:
        raise Refuse(f"'{value.name}' is not a constant")
    if not _values.fits_inside(value, x):
        raise Refuse(f"'{value.name}' is not known to broadcast to the shape of '{x.name}'")
    return match.array(name)


def uniform(x: ir.Value, shape: tuple[int, ...], number: float) -> np.ndarray:
    """Return an array full of `number`, of the type of `x`."""
    dtype = _values.dtype_of(x)
    if dtype is None:
        raise Refuse(f"the type of '{x.name}' is not known")
    return np.full(shape, number, dtype.numpy())


def exactly(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Return `array` as `dtype`. Raises Refuse when that would round."""
    converted = array.astype(dtype.numpy())
    if not np.array_equal(converted.astype(array.dtype), array):
        raise Refuse(f"a scale or bias does not fit in {dtype} without rounding")
    return converted
