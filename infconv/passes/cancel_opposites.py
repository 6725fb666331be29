"""Operators in a row of which one undoes the other, or of which one would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._compose import KEEPS_ORDER, cast_type, holds, make_slice, one_reshape, one_slice
from infconv.passes._match import Match
from infconv.passes._moves import (
    FAR,
    Range,
    axes_of,
    from_front,
    integer,
    integers,
    operand,
    permutation,
    slices,
)
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule

_MOST_PARTS = 16
"""Splits with more outputs are not looked at."""


def _in_a_row(outer: Sequence[str], inner: Sequence[str]) -> Any:
    """Return the pattern of outer(inner(x)), whatever their parameters are."""

    def match(op: PatternBuilder, x: Any, p: Any, q: Any, first: Any, second: Any) -> Pattern:
        return op.any(*outer)(
            op.shared(op.any(*inner)(x, op.rest(p), _attrs=..., _node=first)), op.rest(q), _attrs=..., _node=second
        )

    return match


def _unless_shared(node: ir.Node, users: int = 1) -> None:
    """Raise Refuse when the result of `node` has more than these `users`: merging would compute it twice."""
    value = node.outputs[0]
    if value.is_graph_output() or _values.use_count(value) > users:
        raise Refuse(f"'{value.name}' is used elsewhere, too")


# --- axes ----------------------------------------------------------------------------------------------------------


def _transpose(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    if all("perm" not in node.attributes for node in (first, second)):
        return x  # both reverse the axes
    inner, outer = permutation(first), permutation(second)
    perm = [inner[axis] for axis in outer]
    if perm == sorted(perm):
        return x
    _unless_shared(first)
    return op.Transpose(x, perm=perm)


def _reshape(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    if first.op_type == second.op_type == "Transpose":
        raise Refuse("two Transposes")
    result = one_reshape(op, x, first, second)
    if result is not x:
        _unless_shared(first)
    return result


# --- pieces --------------------------------------------------------------------------------------------------------


def _slice(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    _unless_shared(first)
    rank = _values.rank(x)
    merged = _by_axis(first, op.opset, rank)
    for axis, taken in _by_axis(second, op.opset, rank).items():
        size = _values.static_dim(x, axis) if rank is not None else None
        merged[axis] = one_slice(size, merged[axis], taken) if axis in merged else taken
    return make_slice(op, x, merged)


def _by_axis(node: ir.Node, opset: int, rank: int | None) -> dict[int, Range]:
    ranges = slices(node, opset)
    return dict(zip(from_front(list(ranges), rank), ranges.values(), strict=True))


def _gather(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    inner, outer = (_values.constant(node.inputs[1]) for node in (first, second))
    if inner is None or outer is None or inner.ndim != 1 or not inner.size:
        raise Refuse("the indices are not constant, the first ones of one axis")
    axes = [integer(node, "axis", 0) for node in (first, second)]
    if axes[0] != axes[1]:
        raise Refuse(f"the axes are {axes[0]} and {axes[1]}")
    if outer.size and not -inner.size <= outer.min() <= outer.max() < inner.size:
        raise Refuse("an index is out of range")
    _unless_shared(first)
    return op.Gather(x, inner[outer], axis=axes[0])


def _index(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    """Gather or Slice of one position, and Squeeze or Unsqueeze of that axis: a Gather of another shape."""
    axes = axes_of(second)
    if axes is None or len(axes) != 1:
        raise Refuse("not one axis")
    squeezed = second.op_type == "Squeeze"
    axis, position = _position(first, op.opset, squeezed)
    rank = _values.rank(x)
    if axes != [axis] and from_front(axes, rank) != from_front([axis], rank):
        raise Refuse(f"axis {axes[0]} is not axis {axis}")
    _unless_shared(first)
    return op.Gather(x, np.full(() if squeezed else (1,), position, np.int64), axis=axis)


def _position(node: ir.Node, opset: int, keeps_axis: bool) -> tuple[int, int]:
    """Return (axis, position) of a Slice or Gather that takes one position of one axis, which it keeps or not."""
    if node.op_type == "Gather":
        indices = _values.constant(node.inputs[1])
        if indices is None or indices.shape != ((1,) if keeps_axis else ()):
            raise Refuse("the index is not one constant")
        return integer(node, "axis", 0), int(indices.reshape(()))
    (axis, taken), *more = slices(node, opset).items()
    last = taken.start == -1 and taken.end >= FAR
    if not keeps_axis or more or taken.step != 1 or not (last or taken.end == taken.start + 1 != 0):
        raise Refuse("the Slice takes more than one position of one axis")
    return axis, taken.start


# --- parts ---------------------------------------------------------------------------------------------------------


def _axis(node: ir.Node, value: ir.Value, default: int = 0) -> int:
    return from_front([integer(node, "axis", default)], _values.rank(value))[0]


def _flat_concat(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    """Concat(a, Concat(b, c)) = Concat(a, b, c)."""
    axis = integer(node, "axis", 1)
    flat: list[ir.Value] = []
    for part in parts:
        inner = part.producer()
        merges = (
            inner is not None
            and inner.op_type == "Concat"
            and not inner.domain
            and inner.graph is node.graph
            and (integer(inner, "axis", 1) == axis or _axis(inner, part) == _axis(node, part))
            and not part.is_graph_output()
            and _values.use_count(part) == parts.count(part)
        )
        flat += cast("Sequence[ir.Value]", inner.inputs) if inner is not None and merges else [part]
    if len(flat) == len(parts) and all(a is b for a, b in zip(flat, parts, strict=True)):
        raise Refuse("no operand is a Concat along the same axis that has no other users")
    return op.Concat(*flat, axis=axis)


def _concat_of_split(op: Builder, parts: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    split = parts[0].producer()
    if split is None or split.op_type != "Split" or split.domain or split.inputs[0] is None:
        raise Refuse("the operands are not the outputs of a Split")
    if len(parts) != len(split.outputs) or any(a is not b for a, b in zip(parts, split.outputs, strict=True)):
        raise Refuse("the operands are not all outputs of a Split, in their order")
    if _axis(split, split.inputs[0]) != _axis(node, parts[0], 1):
        raise Refuse("the axes differ")
    return split.inputs[0]


def _split_of_concat(op: Builder, match: Match) -> tuple[ir.Value, ...]:
    parts: tuple[ir.Value, ...] = match["parts"]
    concat, split = cast("tuple[ir.Node, ir.Node]", (match["first"], match["second"]))
    axis = _axis(split, concat.outputs[0])
    if axis != _axis(concat, parts[0], 1):
        raise Refuse("the axes differ")
    if len(parts) != len(split.outputs):
        raise Refuse(f"{len(parts)} parts become {len(split.outputs)}")
    lengths = integers(split, 1, "split") if operand(split, 1) is not None or "split" in split.attributes else None
    for i, (part, output) in enumerate(zip(parts, split.outputs, strict=True)):
        sizes = [(_values.dims(value) or {}) for value in (part, output)]
        given = sizes[0][axis] if sizes[0] else None
        wanted = lengths[i] if lengths else sizes[1][axis] if sizes[1] else None
        if given is None or wanted is None or not _values.same_dim(given, wanted):
            raise Refuse(f"'{part.name}' and '{output.name}' may have different sizes")
    return parts


def _split_rule(count: int) -> Rule:
    """Return the rule that Split(Concat(parts)) into `count` outputs is the parts."""
    return Rule(
        match=lambda op, parts, others, first, second: op.Split(
            op.shared(op.Concat(op.rest(parts), _attrs=..., _node=first)),
            op.rest(others),
            _attrs=...,
            _node=second,
            _outputs=count,
        ),
        build=_split_of_concat,
        name=f"Split into {count} of Concat",
    )


def _part(op: Builder, parts: tuple[ir.Value, ...], first: ir.Node, second: ir.Node) -> ir.Value:
    """Slice of a Concat that takes one part: the part."""
    ranges = _by_axis(second, op.opset, _values.rank(first.outputs[0]))
    axis = _axis(first, parts[0], 1)
    if list(ranges) != [axis]:
        raise Refuse("the axes differ")
    sizes = [_values.static_dim(part, axis) for part in parts]
    if None in sizes:
        raise Refuse("the sizes of the parts are not known")
    known = cast("list[int]", sizes)
    taken = ranges[axis].positions(sum(known))
    for i, part in enumerate(parts):
        if known[i] and taken == range(sum(known[:i]), sum(known[: i + 1])):
            return part
    raise Refuse("the Slice does not take one of the parts")


# --- repetition ----------------------------------------------------------------------------------------------------


def _expand(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    _unless_shared(first)
    inner, outer = integers(first, 1) or [], integers(second, 1) or []
    rank = max(len(inner), len(outer))
    pairs = zip([1] * (rank - len(inner)) + inner, [1] * (rank - len(outer)) + outer, strict=True)
    return op.Expand(x, np.array([b if a == 1 else a for a, b in pairs], np.int64))


def _tile(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    _unless_shared(first)
    pairs = zip(integers(first, 1) or [], integers(second, 1) or [], strict=True)
    return op.Tile(x, np.array([a * b for a, b in pairs], np.int64))


def _cast(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    source, middle, result = _values.dtype_of(x), cast_type(first), cast_type(second)
    if source is None or not holds(middle, source):
        raise Refuse(f"the Cast from {source} to {middle} may lose something")
    return x if source == result else op.Cast(x, _attrs=second.attributes)


class CancelOpposites(RewritePass):
    """Remove pairs of operators that undo each other, and merge two in a row where one will do.

    Transpose with Transpose; any of Reshape, Flatten, Squeeze, Unsqueeze (and Transposes of axes of size 1) with any
    other; Split with Concat, Concat with Split, Concat in Concat, a Slice of one part of a Concat; Slice of Slice,
    Gather of Gather, a Slice or Gather of one position with a Squeeze or Unsqueeze; Expand of Expand, Tile of Tile.
    Cast of Cast is the last Cast only if the first loses nothing, as from float16 to float: a Cast to a narrower type
    rounds. DequantizeLinear of QuantizeLinear rounds as well, and stays.

    `y = Transpose(Transpose(x, perm=[0, 2, 1]), perm=[0, 2, 1])` becomes `y = x`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_in_a_row(["Transpose"], ["Transpose"]), build=_transpose, name="Transpose"),
        Rule(match=_in_a_row(KEEPS_ORDER, KEEPS_ORDER), build=_reshape, name="Reshape"),
        Rule(match=_in_a_row(["Slice"], ["Slice"]), build=_slice, name="Slice"),
        Rule(match=_in_a_row(["Gather"], ["Gather"]), build=_gather, name="Gather"),
        Rule(match=_in_a_row(["Squeeze", "Unsqueeze"], ["Slice", "Gather"]), build=_index, name="one position"),
        Rule(
            match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
            build=_concat_of_split,
            name="Concat of Split",
        ),
        Rule(
            match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
            build=_flat_concat,
            name="Concat of Concat",
        ),
        *map(_split_rule, range(2, _MOST_PARTS + 1)),
        Rule(
            match=lambda op, parts, others, first, second: op.Slice(
                op.shared(op.Concat(op.rest(parts), _attrs=..., _node=first)), op.rest(others), _attrs=..., _node=second
            ),
            build=_part,
            name="Slice of Concat",
        ),
        Rule(match=_in_a_row(["Expand"], ["Expand"]), build=_expand, since_opset=8, name="Expand"),
        Rule(match=_in_a_row(["Tile"], ["Tile"]), build=_tile, since_opset=6, name="Tile"),
        Rule(match=_in_a_row(["Cast"], ["Cast"]), build=_cast, name="Cast"),
    )
