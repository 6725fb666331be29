"""Operators that do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._match import Match
from infconv.passes._no_ops import CHECKS
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule

_INVOLUTIONS = ("BitwiseNot", "Neg", "Not")
_IDEMPOTENT = ("Abs", "Ceil", "Floor", "Round", "Sign")
_ROUNDING = ("Ceil", "Floor", "Round")
_SELF = ("And", "BitwiseAnd", "BitwiseOr", "Max", "Min", "Or")
"""x op x = x."""


def _by_parameters(name: str) -> Rule:
    """Return the rule that the operator `name` is its first input when its parameters say so."""

    def match(op: PatternBuilder, x: Any, others: Any, node: Any) -> Pattern:
        return op.any(name)(x, op.rest(others), _attrs=..., _node=node)

    return Rule(
        match=match, build=lambda op, x: x, when=lambda match: CHECKS[name](match["node"], match.opset), name=name
    )


def _neutral(name: str, number: float | bool) -> Rule:
    """Return the rule that x op number = x. Only exactly that number: 1.000001 is not neutral."""
    return Rule(
        match=lambda op, x: op.any(name)(x, op.literal(number, rtol=0), _attrs=... if name == "BitShift" else None),
        build=lambda op, x: x,
        name=f"{name} {number}",
    )


def _twice(inner: Sequence[str], outer: Sequence[str]) -> Rule:
    """Return the rule that outer(inner(x)) = inner(x)."""
    return Rule(
        match=lambda op, x, node: op.any(*outer)(op.shared(op.any(*inner)(x, _node=node, _attrs=...))),
        build=lambda op, node: node.outputs[0],
        name=f"{'|'.join(outer)} of {'|'.join(inner)}",
    )


def _decided(op: Builder, c: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """Return the operand that Where takes everywhere."""
    condition = _values.constant(c)
    assert condition is not None
    if condition.all() == condition.any():
        taken, other = (x, y) if condition.all() else (y, x)
        return _unless_broadcast(taken, c, other)
    raise Refuse("the condition is not the same everywhere")


def _unless_broadcast(taken: ir.Value, *others: ir.Value) -> ir.Value:
    """Return `taken`. Raises Refuse when it may be broadcast to the shape of the others."""
    for other in others:
        if not _values.fits_inside(other, taken):
            raise Refuse(f"'{taken.name}' may be broadcast to the shape of '{other.name}'")
    return taken


def _is_integer(match: Match) -> str | None:
    dtype = _values.dtype_of(match.value("x"))
    return None if dtype is not None and dtype.is_integer() else "x is not known to be an integer"


class RemoveNoOps(RewritePass):
    """Remove operators that do nothing, or nothing with these parameters on these shapes.

    Identity, Cast to the same type, Concat and Sum of one input, Split into one output; Reshape, Expand, Squeeze and
    the like to the same shape, Transpose that moves no elements, Slice of everything, Pad by nothing, pooling over
    1x1, reductions over axes of size 1, Resize by 1, Tile by 1, Gather of all elements in order, Einsum `ij->ij`;
    x·1, x/1, x+0, x-0, x¹, Where on a constant condition, -(-x), |(|x|)|. Of floats, x+0 is taken for x although
    -0+0 is +0. A name that is an output of the graph stays: where nothing else can take it, as an Identity.
    QuantizeLinear followed by DequantizeLinear is no such pair: it rounds.

    `y = Mul(Reshape(x, [0, -1]), 1.0)` of `x: float[batch, 8]` becomes `y = Identity(x)`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, x: op.Identity(x), build=lambda op, x: x),
        *(_by_parameters(name) for name in CHECKS),
        *(_neutral(name, 1) for name in ("Mul", "Div", "Pow")),
        *(_neutral(name, 0) for name in ("Add", "Sub", "BitwiseOr", "BitwiseXor", "BitShift")),
        *(_neutral(name, False) for name in ("Or", "Xor")),
        _neutral("And", True),
        Rule(match=lambda op, x: op.any(*_SELF)(x, x), build=lambda op, x: x, name="x op x"),
        Rule(match=lambda op, c, x, y: op.Where(op.const(c), x, y), build=_decided, name="Where of a constant"),
        Rule(
            match=lambda op, c, x: op.Where(c, x, x),
            build=lambda op, c, x: _unless_broadcast(x, c),
            name="Where of equals",
        ),
        *(
            Rule(
                match=lambda op, x, name=name: op.any(name)(op.shared(op.any(name)(x))),
                build=lambda op, x: x,
                name=f"{name} of {name}",
            )
            for name in _INVOLUTIONS
        ),
        *(_twice((name,), (name,)) for name in _IDEMPOTENT),
        _twice(_ROUNDING, _ROUNDING),
        Rule(
            match=lambda op, x, node: op.any(*_ROUNDING)(op.shared(op.Cast(x, _node=node, _attrs=...))),
            build=lambda op, node: node.outputs[0],
            when=_is_integer,
            name="rounding of an integer",
        ),
        # An Expand or Reshape to the shape that was just asked for; fold-shapes sees through longer arithmetic.
        Rule(
            match=lambda op, x: op.any("Expand", "Reshape")(x, op.shared(op.Shape(x)), _attrs=...),
            build=lambda op, x: x,
            name="to its own shape",
        ),
    )
