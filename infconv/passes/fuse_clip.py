"""Limits: Relu, Clip, Max and Min with a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


class _Limits(NamedTuple):
    """What one operator does: min(max(x, low), high), or the other way round."""

    low: np.generic | None
    high: np.generic | None


def _limit(op: PatternBuilder, x: Any, low: Any, high: Any, node: Any) -> Pattern:
    """Return the pattern of an operator that limits x."""
    return op.any_of(
        op.Relu(x, _node=node),
        op.Clip(x, op.optional(op.const(low)), op.optional(op.const(high)), _attrs=..., _node=node),
        op.Max(x, op.const(low), _node=node),
        op.Min(x, op.const(high), _node=node),
    )


def _two_limits(op: PatternBuilder, x: Any, lo1: Any, hi1: Any, node1: Any, lo2: Any, hi2: Any, node2: Any) -> Pattern:
    return _limit(op, _limit(op, x, lo1, hi1, node1), lo2, hi2, node2)


def _limits(match: Match, which: str) -> _Limits:
    """Return the limits of the operator with the variables `which`. Raises Refuse when one is not a single number."""
    node: ir.Node = match[f"node{which}"]
    dtype = _values.dtype_of(match.value("x")) or _values.dtype_of(match.outputs[0])
    if dtype is None:
        raise Refuse("the type of x is not known")
    kind = dtype.numpy().type
    if node.op_type == "Relu":
        return _Limits(kind(0), None)
    if node.op_type == "Clip" and match.opset < 11:
        return _Limits(_attribute(node, "min", kind), _attribute(node, "max", kind))
    return _Limits(_number(match, f"lo{which}"), _number(match, f"hi{which}"))


def _attribute(node: ir.Node, name: str, kind: type[np.generic]) -> np.generic | None:
    found = node.attributes.get(name)
    if found is None:
        return None
    if found.is_ref():
        raise Refuse(f"the limit '{name}' is an attribute of the function")
    return kind(found.as_float())


def _number(match: Match, name: str) -> np.generic | None:
    value: ir.Value | None = match[name]
    if value is None:
        return None
    if _values.scalar(value) is None or not _values.fits_inside(value, match.value("x")):
        raise Refuse(f"the limit '{value.name}' is not one number")
    number: np.generic = match.array(name).reshape(-1)[0]
    if np.isnan(number):
        raise Refuse(f"the limit '{value.name}' is not a number")
    return number


def _largest(*numbers: np.generic | None) -> np.generic | None:
    return max((n for n in numbers if n is not None), default=None)  # pyright: ignore[reportArgumentType]


def _smallest(*numbers: np.generic | None) -> np.generic | None:
    return min((n for n in numbers if n is not None), default=None)  # pyright: ignore[reportArgumentType]


def _merge(op: Builder, match: Match) -> ir.Value:
    """min(max(min(max(x, a), b), c), d) = min(max(x, max(a, c)), min(max(b, c), d))."""
    inner, outer = _limits(match, "1"), _limits(match, "2")
    high = None if inner.high is None else _largest(inner.high, outer.low)
    return _clip(op, match, _Limits(_largest(inner.low, outer.low), _smallest(high, outer.high)))


def _clip(op: Builder, match: Match, limits: _Limits) -> ir.Value:
    low, high = limits
    x, dtype = match.value("x"), ir.DataType.from_numpy(np.asarray(low if low is not None else high).dtype)
    # Of integers the operator has signed ones since opset 14, but not every runtime does.
    if high is None and low == 0 and dtype.is_floating_point():
        return op.Relu(x)
    if match.opset < 11:
        return op.Clip(x, min=None if low is None else float(low), max=None if high is None else float(high))
    if match.opset < 12 and not dtype.is_floating_point():
        raise Refuse(f"opset {match.opset} has no Clip of {dtype}")
    return op.Clip(x, None if low is None else op.const(low), None if high is None else op.const(high))


class FuseClip(RewritePass):
    """Merge chains of Relu, Clip, Max and Min with constants into one Clip or Relu.

    `min(max(min(max(x, a), b), c), d) = min(max(x, max(a, c)), min(max(b, c), d))`, where each part may be absent and
    Relu(x) is max(x, 0): `Min(Relu(x), 6)` is `Clip(x, 0, 6)`, `Relu(Relu(x))` is `Relu(x)`. `Max(x, 0)` alone is
    `Relu(x)`. Limits must be single constant numbers.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_two_limits, build=_merge, since_opset=6, name="two limits"),
        Rule(
            match=lambda op, x: op.Max(x, 0.0),
            build=lambda op, x: op.Relu(x),
            when=_values.is_float,
            since_opset=6,
            name="max with 0",
        ),
    )
