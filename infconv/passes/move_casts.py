"""Casts moved to where they cancel, or where there is less to convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._compose import cast_type, holds, unless_shared
from infconv.passes._elementwise import is_common
from infconv.passes._moves import RESHAPING
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule

_MOVING = (*RESHAPING, "Expand", "Gather", "GatherND", "Slice", "Tile", "Transpose")
"""Operators that only move elements, of any type; the further inputs say how."""
_SHRINKING = ("Gather", "GatherND", "Slice")
_GROWING = ("Expand", "Tile")
_LONGEST = 16
"""So many operators between two Casts are looked at."""


def _merged(op: Builder, y: ir.Value, node: ir.Node) -> ir.Value:
    """Leave out the first of two Casts between which elements are only moved, when it loses nothing."""
    between: list[ir.Node] = []
    inner = y.producer()
    while inner is not None and inner.op_type in _MOVING and not inner.domain and len(between) < _LONGEST:
        unless_shared(inner)
        between.append(inner)
        inner = inner.inputs[0].producer() if inner.inputs[0] is not None else None
    if inner is None or inner.op_type != "Cast" or inner.domain or not between:
        raise Refuse("there is no Cast before, or it is directly before; see cancel-opposites")
    x = inner.inputs[0]
    source, middle, result = _values.dtype_of(x), cast_type(inner), cast_type(node)
    if x is None or source is None or not holds(middle, source):
        raise Refuse(f"the Cast from {source} to {middle} may lose something")
    _check_type(source)
    moved = x
    for step in reversed(between):
        moved = _again(op, step, moved)
    return moved if source == result else op.Cast(moved, _attrs=node.attributes)


def _again(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    """Make a moving operator again with another operand, which has the same shape and another type."""
    made: ir.Value = op.call(node.op_type, x, *node.inputs[1:], _attrs=node.attributes, _like=node.outputs[0])
    made.type = None if x.type is None else ir.TensorType(x.type.dtype)
    return made


def _after(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    """Convert what is left after taking a part."""
    before, after = _values.known_shape(first.outputs[0]), _values.known_shape(second.outputs[0])
    if before is None or after is None or _size(after) >= _size(before):
        raise Refuse("the part is not known to be smaller")
    _check_type(_values.dtype_of(x))
    return op.Cast(_again(op, second, x), _attrs=first.attributes)


def _before(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    """Convert before repeating."""
    _check_type(cast_type(second))
    converted = op.Cast(x, _attrs=second.attributes)
    return op.call(first.op_type, converted, *first.inputs[1:], _attrs=first.attributes)


def _check_type(dtype: ir.DataType | None) -> None:
    if not is_common(dtype):
        raise Refuse(f"moving elements of {dtype} is not possible everywhere")


def _size(shape: Sequence[int]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size


def _joined(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    """Convert after joining, when all parts are converted alike."""
    casts = [part.producer() for part in parts]
    types = {_values.dtype_of(cast.inputs[0]) for cast in casts if cast is not None and cast.op_type == "Cast"}
    first = casts[0]
    if first is None or len(types) != 1 or None in types or len(parts) < 2:
        raise Refuse("the operands are not Casts from one type")
    for cast in casts:
        if cast is None or cast.op_type != "Cast" or cast.domain or cast_type(cast) != cast_type(first):
            raise Refuse("an operand is not such a Cast")
        unless_shared(cast, parts.count(cast.outputs[0]))
    _check_type(next(iter(types)))
    sources = [cast.inputs[0] for cast in casts if cast is not None]
    return op.Cast(op.Concat(*sources, _attrs=node.attributes), _attrs=first.attributes)


def _moving_after(names: Sequence[str]) -> Any:
    def match(op: PatternBuilder, x: Any, p: Any, first: Any, second: Any) -> Pattern:
        return op.any(*names)(op.Cast(x, _attrs=..., _node=first), op.rest(p), _attrs=..., _node=second)

    return match


def _moving_before(names: Sequence[str]) -> Any:
    def match(op: PatternBuilder, x: Any, p: Any, first: Any, second: Any) -> Pattern:
        return op.Cast(op.any(*names)(x, op.rest(p), _attrs=..., _node=first), _attrs=..., _node=second)

    return match


class MoveCasts(RewritePass):
    """Move Casts to where two become one, or where fewer elements are converted.

    Operators such as Reshape, Transpose and Slice do not mind the type: of two Casts around them, the first goes when
    it loses nothing. A Cast goes after a Slice or Gather that takes a part, before an Expand or Tile, and after a
    Concat whose operands are all converted alike.

    `y = Cast(Expand(x, [64, 8]), to=FLOAT)` becomes `y = Expand(Cast(x, to=FLOAT), [64, 8])`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, y, node: op.Cast(y, _attrs=..., _node=node), build=_merged, name="two Casts"),
        Rule(match=_moving_after(_SHRINKING), build=_after, name="part of a Cast"),
        Rule(match=_moving_before(_GROWING), build=_before, name="Cast of what is repeated"),
        Rule(
            match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
            build=_joined,
            name="Concat of Casts",
        ),
    )
