"""Arithmetic and logic in fewer or cheaper operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import Context, RewritePass
from infconv.passes._build import Builder
from infconv.passes._match import Match
from infconv.passes._moves import from_front, integer
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule, all_of, is_float, rewrite
from infconv.passes._simpler_shapes import RULES as SHAPE_RULES

_NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sigmoid", "Softmax")
"""Their results are at least 0, or NaN."""
_OPPOSITES = {
    "Less": "GreaterOrEqual", "Greater": "LessOrEqual", "LessOrEqual": "Greater", "GreaterOrEqual": "Less",
}  # fmt: skip


def _exactly(op: PatternBuilder, number: float | bool) -> Pattern:
    return op.literal(number, rtol=0)


def _rule(name: str, match: Any, build: Any, *, floats: bool = False, since: int = 7) -> Rule:
    return Rule(match=match, build=build, when=is_float if floats else None, since_opset=since, name=name)


# --- constants -----------------------------------------------------------------------------------------------------


def _inverse(op: Builder, match: Match) -> ir.Value:
    """Return x (1/c), which is exactly x / c for powers of two: no bit of 1/c is lost."""
    divisor = match.array("c")
    mantissa, _ = np.frexp(np.abs(divisor.astype(np.float64)))
    if not np.all(mantissa == 0.5):
        raise Refuse("1/c would be rounded: c is not a power of two")
    return _times_inverse(op, match)


def _times_inverse(op: Builder, match: Match) -> ir.Value:
    """Return x (1/c), which is x / c rounded twice instead of once."""
    divisor = match.array("c")
    wide = divisor.astype(np.float64)
    if not np.all(wide):
        raise Refuse("c is 0")
    with np.errstate(over="ignore"):
        inverse = (1 / wide).astype(divisor.dtype)
    size = np.abs(inverse.astype(np.float64))
    if not np.all(np.isfinite(size)) or np.any(size < float(ir.DataType.from_numpy(divisor.dtype).tiny)):
        raise Refuse("1/c is out of range")
    return op.Mul(match.value("x"), op.const(ir.tensor(inverse, _values.dtype_of(match.value("c")))))


def _factors(op: Builder, match: Match) -> ir.Value:
    """Return (a ± b) x for a x ± b x, where one of the factors may be absent: 1."""
    a, b = (1.0 if match[name] is None else match.array(name).astype(np.float64) for name in "ab")
    factor = np.asarray(a - b if match["node"].op_type == "Sub" else a + b)
    x = match.value("x")
    dtype = _values.dtype_of(match["a"]) or _values.dtype_of(match["b"])
    if dtype is None:
        raise Refuse("the type of x is not known")
    return op.Mul(x, op.const(factor, dtype=dtype))


def _no_mean_of_it(match: Match) -> str | None:
    """Ask for another use than the variance of a normalization: ONNX Runtime looks for a Pow there."""
    users = match.outputs[0].consumers()
    return "a mean of it is taken" if any(user.op_type == "ReduceMean" for user in users) else None


def _same_number(match: Match) -> str | None:
    a, b = _values.scalar(match["a"]), _values.scalar(match["b"])
    return None if a is not None and a == b else "the factors are not the same number"


def _same_argmax(op: Builder, x: ir.Value, inner: ir.Node, outer: ir.Node) -> ir.Value:
    """The largest element stays the largest: Softmax grows with each of its inputs."""
    axis = integer(outer, "axis", 0)
    normalized = integer(inner, "axis", -1 if op.opset >= 13 else 1)
    rank = _values.rank(x)
    found, over = from_front([axis], rank)[0], from_front([normalized], rank)[0]
    # Before opset 13 it was over its axis and all that follow.
    if not (found == over if op.opset >= 13 else found >= over >= 0):
        raise Refuse(f"ArgMax is along axis {axis}, {inner.op_type} along axis {normalized}")
    return op.ArgMax(x, _attrs=outer.attributes)


# --- logic ---------------------------------------------------------------------------------------------------------


def _opposite(op: Builder, match: Match, a: ir.Value, b: ir.Value, node: ir.Node) -> ir.Value:
    dtype = _values.dtype_of(a)
    if dtype is None or not dtype.is_integer():
        raise Refuse("NaN is neither less nor greater, and a is not known to be an integer")
    return op.call(_OPPOSITES[node.op_type], a, b)


def _to_number(op: Builder, match: Match, c: ir.Value) -> ir.Value:
    dtype = _values.dtype_of(match.outputs[0])
    if dtype is None or not _values.is_real(dtype):
        raise Refuse("the type of the result is not known, or not one of numbers")
    return op.Cast(c, to=int(dtype))


def _of_bool(match: Match) -> str | None:
    return None if _values.dtype_of(match.value("c")) == ir.DataType.BOOL else "c is not known to be boolean"


def _gives_bool(match: Match) -> str | None:
    """Ask for truth values: a number 1 is no True."""
    return None if _values.dtype_of(match.outputs[0]) == ir.DataType.BOOL else "the result is not known to be boolean"


_LOGIC = (
    _rule(
        "Not of a comparison",
        lambda op, a, b, node: op.Not(op.any(*_OPPOSITES)(a, b, _node=node)),
        _opposite,
        since=12,
    ),
    _rule(
        "Where Not",
        lambda op, c, x, y: op.Where(op.Not(c), x, y),
        lambda op, c, x, y: op.Where(c, y, x),
    ),
    Rule(
        match=lambda op, c: op.Where(c, True, False),
        build=lambda op, c: c,
        when=_gives_bool,
        name="Where True False",
    ),
    Rule(
        match=lambda op, c: op.Where(c, False, True),
        build=lambda op, c: op.Not(c),
        when=_gives_bool,
        name="Where False True",
    ),
    _rule("Where 1 0", lambda op, c: op.Where(c, _exactly(op, 1), _exactly(op, 0)), _to_number),
    _rule("Xor True", lambda op, c: op.Xor(c, True), lambda op, c: op.Not(c)),
    Rule(
        match=lambda op, c: op.Equal(op.Cast(c, _attrs=...), _exactly(op, 0)),
        build=lambda op, c: op.Not(c),
        when=_of_bool,
        since_opset=7,
        name="Equal 0",
    ),
    Rule(
        match=lambda op, c: op.any("Equal", "GreaterOrEqual")(op.shared(op.Cast(c, _attrs=...)), _exactly(op, 1)),
        build=lambda op, c: c,
        when=_of_bool,
        since_opset=7,
        name="Equal 1",
    ),
    Rule(
        match=lambda op, c: op.Greater(op.shared(op.Cast(c, _attrs=...)), _exactly(op, 0)),
        build=lambda op, c: c,
        when=_of_bool,
        since_opset=7,
        name="Greater 0",
    ),
)
_SIGNS = (
    _rule("a - (-b)", lambda op, a, b: op.Sub(a, op.Neg(b)), lambda op, a, b: op.Add(a, b)),
    _rule("a + (-b)", lambda op, a, b: op.Add(a, op.Neg(b)), lambda op, a, b: op.Sub(a, b)),
    _rule("a + b (-1)", lambda op, a, b: op.Add(a, op.Mul(b, _exactly(op, -1))), lambda op, a, b: op.Sub(a, b)),
    _rule("a - b (-1)", lambda op, a, b: op.Sub(a, op.Mul(b, _exactly(op, -1))), lambda op, a, b: op.Add(a, b)),
    _rule("-(a - b)", lambda op, a, b: op.Neg(op.Sub(a, b)), lambda op, a, b: op.Sub(b, a)),
    _rule(
        "(-a) (-b)",
        lambda op, a, b, node: op.any("Mul", "Div")(op.Neg(a), op.Neg(b), _node=node),
        lambda op, a, b, node: op.call(node.op_type, a, b),
    ),
    _rule("0 - a", lambda op, a: op.Sub(_exactly(op, 0), a), lambda op, a: op.Neg(a), floats=True),
    _rule("|-a|", lambda op, a: op.Abs(op.Neg(a)), lambda op, a: op.Abs(a)),
    _rule(
        "not negative",
        lambda op, x, others, node: op.any("Abs", "Relu")(
            op.shared(op.any(*_NOT_NEGATIVE)(x, op.rest(others), _attrs=..., _node=node))
        ),
        lambda op, node: node.outputs[0],
    ),
)
_PRODUCTS = (
    Rule(
        match=lambda op, x: op.Pow(x, _exactly(op, 2)),
        build=lambda op, x: op.Mul(x, x),
        when=_no_mean_of_it,
        since_opset=7,
        name="x²",
    ),
    # They differ at -inf, and in the sign of a zero.
    _rule("√x", lambda op, x: op.Pow(x, _exactly(op, 0.5)), lambda op, x: op.Sqrt(x), floats=True),
    _rule("1/x of Pow", lambda op, x: op.Pow(x, _exactly(op, -1)), lambda op, x: op.Reciprocal(x), floats=True),
    _rule("1/x of Div", lambda op, x: op.Div(_exactly(op, 1), x), lambda op, x: op.Reciprocal(x), floats=True),
    _rule("x (1/y)", lambda op, x, y: op.Mul(x, op.Reciprocal(y)), lambda op, x, y: op.Div(x, y)),
    _rule("x / (1/y)", lambda op, x, y: op.Div(x, op.Reciprocal(y)), lambda op, x, y: op.Mul(x, y)),
    _rule("1 / (x/y)", lambda op, x, y: op.Reciprocal(op.Div(x, y)), lambda op, x, y: op.Div(y, x)),
    Rule(
        match=lambda op, x, a, b, node: op.any("Add", "Sub")(
            op.Mul(x, op.const(a)), op.Mul(x, op.const(b)), _node=node
        ),
        build=_factors,
        when=is_float,
        since_opset=7,
        name="a x + b x",
    ),
    Rule(
        match=lambda op, x, a, b, node: op.any_of(
            op.any("Add", "Sub")(op.Mul(x, op.const(a)), x, _node=node),
            op.any("Add", "Sub")(x, op.Mul(x, op.const(b)), _node=node),
        ),
        build=_factors,
        when=is_float,
        since_opset=7,
        name="a x + x",
    ),
    *(
        Rule(
            match=lambda op, x, y, a, b, node, name=name: op.any("Add", "Sub")(
                op.any(name)(x, op.const(a)), op.any(name)(y, op.const(b)), _node=node
            ),
            build=lambda op, x, y, a, node, name=name: op.call(name, op.call(node.op_type, x, y), a),
            when=all_of(is_float, _same_number),
            since_opset=7,
            name=f"a x + a y of {name}",
        )
        for name in ("Mul", "Div")
    ),
    _rule(
        "ArgMax of Softmax",
        lambda op, x, inner, outer: op.ArgMax(
            op.any("LogSoftmax", "Softmax")(x, _attrs=..., _node=inner), _attrs=..., _node=outer
        ),
        _same_argmax,
    ),
    _rule("Sum of two", lambda op, a, b: op.Sum(a, b), lambda op, a, b: op.Add(a, b), since=8),
)  # fmt: skip
_INVERSE = _rule("x / c", lambda op, x, c: op.Div(x, op.const(c)), _inverse, floats=True)
_ROUNDED = _rule("x / c, rounded", lambda op, x, c: op.Div(x, op.const(c)), _times_inverse, floats=True)


class SimplifyAlgebra(RewritePass):
    """Write arithmetic, logic and broadcasting with fewer or cheaper operators.

    x² is x·x, x⁰·⁵ is √x, x/4 is x·0.25 (divisions only by powers of two, whose inverses are exact); x·(1/y) is x/y;
    signs are moved into Add and Sub; a·x + b·x of constants a and b is (a+b)·x, a·x + a·y is a·(x+y); ArgMax needs no
    Softmax before it. Of logic: Not of a comparison of integers, Where of a Not, Where(c, 1, 0), Equal(Cast(c), 0). An
    Expand, Tile, Unsqueeze or Reshape goes that only repeats what an operator broadcasts anyway, and an empty part of a
    Concat; Expand, Squeeze and Unsqueeze by constants take the place of an Expand or Reshape to a computed shape. Shape
    reads what an element-wise operator read. A reduction over axes of size 1 that drops them is a Squeeze.

    `y = Add(x, Expand(b, [4, 8]))` of `x: float[4, 8]` becomes `y = Add(x, b)`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (_INVERSE, *_PRODUCTS, *_SIGNS, *_LOGIC, *SHAPE_RULES)

    allow_rounding: bool = False
    """Turn division by any constant into multiplication; the inverse is rounded, the result may differ by one bit."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Apply the rules to a fixpoint and return the number of rewrites."""
        return rewrite(model, (*self.rules, _ROUNDED) if self.allow_rounding else self.rules, context)
