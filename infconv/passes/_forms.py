"""Ways of writing one thing that several patterns share, and questions that several rules ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse

SQRT_HALF = 0.7071067811865476


# --- arithmetic ----------------------------------------------------------------------------------------------------


def scaled(op: PatternBuilder, x: Any, factor: float) -> Pattern:
    """Return the pattern of x times a constant, or divided by its inverse."""
    return op.any_of(op.Mul(x, factor), op.Div(x, 1 / factor))


def product(op: PatternBuilder, a: Any, b: Any, c: Any) -> Pattern:
    """Return the pattern of the product of three factors, in any order."""
    return op.any_of(op.Mul(op.Mul(a, b), c), op.Mul(op.Mul(a, c), b), op.Mul(a, op.Mul(b, c)))


def square(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of x²."""
    return op.any_of(op.Mul(x, x), op.Pow(x, 2))


def reciprocal(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of 1 / x."""
    return op.any_of(op.Reciprocal(x), op.Div(1.0, x), op.Pow(x, -1))


def root(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of √x."""
    return op.any_of(op.Sqrt(x), op.Pow(x, 0.5))


def inverse_root(op: PatternBuilder, x: Any) -> Pattern:
    """Return the pattern of 1 / √x."""
    return op.any_of(op.Reciprocal(root(op, x)), op.Div(1.0, root(op, x)), op.Pow(x, -0.5), op.Sqrt(reciprocal(op, x)))


def one_number(match: Match, name: str, x: str = "x") -> float:
    """Return the number in the constant `name`, combined with the value `x`, whose shape it must not change.

    Raises Refuse when it is not one number.
    """
    value = match.value(name)
    number = _values.scalar(value)
    if number is None or not _values.fits_inside(value, match.value(x)):
        raise Refuse(f"'{value.name}' is not one number")
    return number


# --- types ---------------------------------------------------------------------------------------------------------


def single_precision(match: Match, x: str = "x") -> str | None:
    """Ask that the value `x` is float32 or a shorter type that is computed in float32: no operator promises more."""
    dtype = _values.dtype_of(match.value(x)) or _values.dtype_of(match.outputs[0])
    if dtype is None or not dtype.is_floating_point():
        return f"{x} is not known to be float"
    return f"{x} is double, and the operator computes in float" if dtype == ir.DataType.DOUBLE else None


def half_or_single(match: Match) -> str | None:
    """Ask that x is float32, float16, or since opset 22 bfloat16: what activations and pooling are defined for.

    They are for double as well, but ONNX Runtime has no such kernels where it has those of their parts.
    """
    dtype = _values.dtype_of(match.value("x")) or _values.dtype_of(match.outputs[0])
    if dtype == ir.DataType.BFLOAT16 and match.opset < 22:
        return f"x is bfloat16, which opset {match.opset} does not have the operator for"
    if dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return None
    return f"x is of type {dtype}" if dtype is not None else "x is not known to be float"


# --- reductions ----------------------------------------------------------------------------------------------------


def reduced(op: PatternBuilder, name: str, x: Any, axes_input: Any, axes: Any) -> Pattern:
    """Return the pattern of a reduction that keeps its axes; they are an attribute or an input, by the opset."""
    return op.any(name)(x, op.optional(op.const(axes_input)), axes=axes, keepdims=1)


def reduce(op: Builder, name: str, x: ir.Value, axes: Sequence[int] | None, keep: int) -> ir.Value:
    """Make a reduction; its axes (None: all) are an input since opset 18, of ReduceSum since 13."""
    if axes is None or op.opset < (13 if name == "ReduceSum" else 18):
        return op.call(name, x, axes=None if axes is None else list(axes), keepdims=keep)
    return op.call(name, x, op.const(np.array(axes, np.int64)), keepdims=keep)


def axes_of(match: Match, axes_input: str, axes: str) -> tuple[int, ...] | None:
    """Return the axes that `reduced` bound to these variables; None means all of them."""
    given = match[axes] if match[axes_input] is None else match.array(axes_input).reshape(-1).tolist()
    return tuple(int(axis) for axis in given) if given is not None and len(given) else None


def axes_from(match: Match, axis: str = "axis", x: str = "x") -> tuple[int, ...]:
    """Return the axes of the value `x` from the attribute `axis` to the last. Raises Refuse without a known rank."""
    first, rank = int(match[axis]), _values.rank(match.value(x))
    if first >= 0:
        if rank is None:
            raise Refuse(f"the rank of '{match.value(x).name}' is not known")
        first -= rank
    return tuple(range(first, 0))


def same_axes(a: Sequence[int] | None, b: Sequence[int] | None, rank: int | None) -> bool:
    """Whether two reductions of a value of `rank` (None: not known) are over the same axes."""
    if rank is None or a is None or b is None:
        return (a is None) == (b is None) and sorted(a or ()) == sorted(b or ())
    return sorted(axis % rank for axis in a) == sorted(axis % rank for axis in b)


def trailing(axes: Sequence[int] | None, rank: int | None) -> int | None:
    """Return how many trailing axes of a value of `rank` these are, or None when that is not what they are known to be.

    Negative axes need no rank.
    """
    if axes is None:
        return rank
    if rank is not None:
        axes = [axis % rank - rank for axis in axes]
    return len(axes) if sorted(axes) == list(range(-len(axes), 0)) else None


def require_trailing(match: Match, axes: Sequence[int] | None, x: str = "x") -> int:
    """Return how many trailing axes of the value `x` these are. Raises Refuse when they are others."""
    value = match.value(x)
    count = trailing(axes, _values.rank(value))
    if not count:
        shown = "all" if axes is None else list(axes)
        rank = _values.rank(value)
        raise Refuse(
            f"axes {shown} of '{value.name}', whose rank is not known, may not be the last ones"
            if rank is None
            else f"axes {shown} are not the last ones of '{value.name}', which has rank {rank}"
        )
    return count
