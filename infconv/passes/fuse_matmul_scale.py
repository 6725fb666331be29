"""FusedMatMul of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import single_precision
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule

_ATTRIBUTES = ("alpha", "transA", "transB")


def _product(op: PatternBuilder, a: Any, b: Any, attrs: Any) -> Pattern:
    return op.any_of(
        op.MatMul(a, b, _attrs=attrs),
        op.FusedMatMul(a, b, _domain="com.microsoft", transBatchA=0, transBatchB=0, _attrs=attrs),
    )


def _make(op: Builder, match: Match, a: ir.Value, b: ir.Value, **changed: float) -> ir.Value:
    given: dict[str, ir.Attr] = match["attrs"] or {}
    attributes: dict[str, float] = {name: given[name].value for name in _ATTRIBUTES if name in given}
    attributes |= changed
    return op.FusedMatMul(a, b, _domain="com.microsoft", **attributes)


def _attribute(match: Match, name: str, default: float) -> float:
    given: dict[str, ir.Attr] = match["attrs"] or {}
    return given[name].value if name in given else default


def _scale(op: Builder, match: Match) -> ir.Value:
    number = _values.scalar(match.value("c"))
    if number is None or not _values.fits_inside(match.value("c"), match.outputs[0]):
        raise Refuse(f"'{match.value('c').name}' is not one number")
    if match.root.op_type == "Div":
        number = 1 / number if number else float("inf")
    return _make(op, match, match["a"], match["b"], alpha=_attribute(match, "alpha", 1.0) * number)


def _transpose_left(op: Builder, match: Match) -> ir.Value:
    _check_transpose(match["perm"])
    return _make(op, match, match["a"], match["b"], transA=1 - int(_attribute(match, "transA", 0)))


def _transpose_right(op: Builder, match: Match) -> ir.Value:
    _check_transpose(match["perm"])
    return _make(op, match, match["a"], match["b"], transB=1 - int(_attribute(match, "transB", 0)))


def _check_transpose(perm: Sequence[int] | None) -> None:
    """Raise Refuse when `perm` does anything but swap the last two axes."""
    if perm is None or len(perm) < 2 or list(perm) != [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]:
        raise Refuse(f"perm={perm} is not known to swap the last two axes only")


class FuseMatmulScale(RewritePass):
    """Join a constant factor, and transposes of the last two axes, to MatMul: ONNX Runtime's FusedMatMul."""

    emits: ClassVar[frozenset[str]] = frozenset({"com.microsoft"})
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, a, b, c, attrs: op.any_of(
                op.Mul(_product(op, a, b, attrs), op.const(c)), op.Div(_product(op, a, b, attrs), op.const(c))
            ),
            build=_scale,
            when=lambda match: single_precision(match, "a"),
            name="scale",
        ),
        Rule(
            match=lambda op, a, b, perm, attrs: _product(op, op.Transpose(a, perm=perm), b, attrs),
            build=_transpose_left,
            when=lambda match: single_precision(match, "a"),
            name="left transposed",
        ),
        Rule(
            match=lambda op, a, b, perm, attrs: _product(op, a, op.Transpose(b, perm=perm), attrs),
            build=_transpose_right,
            when=lambda match: single_precision(match, "a"),
            name="right transposed",
        ),
    )
