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

_DEFAULTS = {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}


def _product(op: PatternBuilder, a: Any, b: Any, attrs: Any) -> Pattern:
    return op.any_of(
        op.MatMul(a, b, _attrs=attrs),
        op.FusedMatMul(a, b, _domain="com.microsoft", _attrs=attrs),
    )


def _make(op: Builder, match: Match, **changed: float) -> ir.Value:
    attributes = {name: _attribute(match, name) for name in _DEFAULTS if name in match["attrs"]}
    return op.FusedMatMul(match["a"], match["b"], _domain="com.microsoft", **(attributes | changed))


def _attribute(match: Match, name: str) -> float:
    """Return an attribute of the product. Raises Refuse when it is one of the function that it is in."""
    found: ir.Attr | None = match["attrs"].get(name)
    if found is not None and found.is_ref():
        raise Refuse(f"the attribute '{name}' is one of the function")
    return _DEFAULTS[name] if found is None else found.value


def _scale(op: Builder, match: Match) -> ir.Value:
    number = _values.scalar(match.value("c"))
    if number is None or not _values.fits_inside(match.value("c"), match.outputs[0]):
        raise Refuse(f"'{match.value('c').name}' is not one number")
    if match.root.op_type == "Div":
        number = 1 / number if number else float("inf")
    return _make(op, match, alpha=_attribute(match, "alpha") * number)


def _transpose_left(op: Builder, match: Match) -> ir.Value:
    _check_transpose(match, "transBatchA")
    return _make(op, match, transA=1 - int(_attribute(match, "transA")))


def _transpose_right(op: Builder, match: Match) -> ir.Value:
    _check_transpose(match, "transBatchB")
    return _make(op, match, transB=1 - int(_attribute(match, "transB")))


def _check_transpose(match: Match, other: str) -> None:
    """Raise Refuse when `perm` does anything but swap the last two axes, or the product transposes others itself."""
    perm: Sequence[int] | None = match["perm"]
    if perm is None or len(perm) < 2 or list(perm) != [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]:
        raise Refuse(f"perm={perm} is not known to swap the last two axes only")
    if _attribute(match, other):
        raise Refuse(f"the product has {other}=1")


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
