"""GELU for targets that have no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import SQRT_HALF
from infconv.passes._match import Match
from infconv.passes._rewrite import Rule

_MICROSOFT = "com.microsoft"


def _exact(op: Builder, x: ir.Value) -> ir.Value:
    """½·x·(1 + erf(x/√2))."""
    erf = op.Erf(op.Mul(x, op.const(SQRT_HALF, like=x), _like=x), _like=x)
    return op.Mul(_half(op, x), op.Add(erf, op.const(1.0, like=x), _like=x), _like=x)


def _tanh(op: Builder, x: ir.Value) -> ir.Value:
    """½·x·(1 + tanh(x·(√(2/π) + √(2/π)·0.044715·x²)))."""
    square = op.Mul(op.Mul(x, x, _like=x), op.const(0.035677408136300125, like=x), _like=x)
    angle = op.Mul(x, op.Add(square, op.const(0.7978845608028654, like=x), _like=x), _like=x)
    return op.Mul(_half(op, x), op.Add(op.Tanh(angle, _like=x), op.const(1.0, like=x), _like=x), _like=x)


def _half(op: Builder, x: ir.Value) -> ir.Value:
    return op.Mul(x, op.const(0.5, like=x), _like=x)


def _standard(op: Builder, x: ir.Value, how: str) -> ir.Value:
    return _tanh(op, x) if how == "tanh" else _exact(op, x)


def _biased(op: Builder, match: Match) -> ir.Value:
    x, b = match.value("x"), match["b"]
    summed = x if b is None else op.Add(x, b, _like=x)
    return _exact(op, summed) if match.root.op_type == "BiasGelu" else _tanh(op, summed)


def _quick(op: Builder, x: ir.Value, a: float) -> ir.Value:
    """x·sigmoid(a·x)."""
    angle = x if a == 1 else op.Mul(x, op.const(a, like=x), _like=x)
    return op.Mul(x, op.Sigmoid(angle, _like=x), _like=x)


class LowerGelu(RewritePass):
    """Replace Gelu by what it computes, for targets without it; also ONNX Runtime's variants of it.

    Exact: `½·x·(1 + erf(x/√2))`. With `approximate="tanh"`: `½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`. BiasGelu and
    FastGelu add a bias first, QuickGelu is `x·sigmoid(alpha·x)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, x, how: op.Gelu(x, approximate=how), build=_standard, since_opset=20, name="Gelu"),
        Rule(match=lambda op, x: op.Gelu(x, _domain=_MICROSOFT), build=_exact, since_opset=9, name="Gelu of ORT"),
        Rule(
            match=lambda op, x, b: op.any_of(
                op.BiasGelu(x, b, _domain=_MICROSOFT), op.FastGelu(x, op.optional(b), _domain=_MICROSOFT)
            ),
            build=_biased,
            since_opset=9,
            name="with bias",
        ),
        Rule(
            match=lambda op, x, a: op.QuickGelu(x, alpha=a, _domain=_MICROSOFT),
            build=lambda op, x, a: _quick(op, x, 1.702 if a is None else a),
            since_opset=7,
            name="QuickGelu",
        ),
    )
