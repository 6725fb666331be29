"""Operators in a row of which one undoes the other, or of which one would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._compose import (
    KEEPS_ORDER,
    by_axis,
    cast_type,
    holds,
    make_slice,
    one_reshape,
    one_slice,
    one_transpose,
    unless_shared,
)
from infconv.passes._moves import (
    FAR,
    RESHAPING,
    axes_of,
    from_front,
    integer,
    integers,
    permutation,
    slices,
)
from infconv.passes._parts import concat_of_split, flat_concat, part, rejoined, split_of_concat
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


# --- axes ----------------------------------------------------------------------------------------------------------


def _transpose(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    if all("perm" not in node.attributes for node in (first, second)):
        return x  # both reverse the axes
    inner, outer = permutation(first), permutation(second)
    perm = [inner[axis] for axis in outer]
    if perm == sorted(perm):
        return x
    unless_shared(first)
    return op.Transpose(x, perm=perm)


def _reshape(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    if first.op_type == second.op_type == "Transpose":
        raise Refuse("two Transposes")
    result = one_reshape(op, x, first, second)
    if result is not x:
        unless_shared(first)
    return result


def _grouped(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node, third: ir.Node) -> ir.Value:
    unless_shared(first)
    unless_shared(second)
    return one_transpose(op, x, first, second, third)


# --- pieces --------------------------------------------------------------------------------------------------------


def _slice(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    unless_shared(first)
    rank = _values.rank(x)
    merged = by_axis(first, op.opset, rank)
    for axis, taken in by_axis(second, op.opset, rank).items():
        size = _values.static_dim(x, axis) if rank is not None else None
        merged[axis] = one_slice(size, merged[axis], taken) if axis in merged else taken
    return make_slice(op, x, merged)


def _gather(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    inner, outer = (_values.constant(node.inputs[1]) for node in (first, second))
    if inner is None or outer is None or inner.ndim != 1 or not inner.size:
        raise Refuse("the indices are not constant, the first ones of one axis")
    axes = [integer(node, "axis", 0) for node in (first, second)]
    if axes[0] != axes[1]:
        raise Refuse(f"the axes are {axes[0]} and {axes[1]}")
    if outer.size and not -inner.size <= outer.min() <= outer.max() < inner.size:
        raise Refuse("an index is out of range")
    unless_shared(first)
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
    unless_shared(first)
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
        build=split_of_concat,
        name=f"Split into {count} of Concat",
    )


def _padded(op: Builder, x: ir.Value, first: ir.Node, pad: ir.Node, second: ir.Node) -> ir.Value:
    """Pad x as it is, not with further axes that are not padded; Paddle has no padding of images of its own."""
    rank = _values.rank(x)
    added, gone = axes_of(first), axes_of(second)
    if rank is None or added is None or gone is None:
        raise Refuse("the rank or the axes are not known")
    added = from_front(added, rank + len(added))
    amounts = integers(pad, 1, "pads") or []
    if len(pad.inputs) > 3 or len(amounts) != 2 * (rank + len(added)):
        raise Refuse("Pad does not tell the amounts of all axes")
    half = len(amounts) // 2
    if sorted(from_front(gone, half)) != sorted(added) or any(amounts[i] or amounts[i + half] for i in added):
        raise Refuse("other axes are added than taken away, or they are padded")
    kept = [i for i in range(2 * half) if i % half not in added]
    pads = [amounts[i] for i in kept]
    if op.opset < 11:
        return op.Pad(x, _attrs=pad.attributes, pads=pads)
    return op.Pad(x, np.array(pads, np.int64), *pad.inputs[2:], _attrs=pad.attributes)


# --- repetition ----------------------------------------------------------------------------------------------------


def _expand(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    unless_shared(first)
    inner, outer = integers(first, 1) or [], integers(second, 1) or []
    rank = max(len(inner), len(outer))
    pairs = zip([1] * (rank - len(inner)) + inner, [1] * (rank - len(outer)) + outer, strict=True)
    return op.Expand(x, np.array([b if a == 1 else a for a, b in pairs], np.int64))


def _tile(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    unless_shared(first)
    pairs = zip(integers(first, 1) or [], integers(second, 1) or [], strict=True)
    return op.Tile(x, np.array([a * b for a, b in pairs], np.int64))


def _cast(op: Builder, x: ir.Value, first: ir.Node, second: ir.Node) -> ir.Value:
    source, middle, result = _values.dtype_of(x), cast_type(first), cast_type(second)
    if source is None or not holds(middle, source):
        raise Refuse(f"the Cast from {source} to {middle} may lose something")
    return x if source == result else op.Cast(x, _attrs=second.attributes)


class CancelOpposites(RewritePass):
    """Remove pairs of operators that undo each other, and merge two in a row where one will do.

    Transpose with Transpose, also with reshapes around it that only join axes for a while; any of Reshape, Flatten,
    Squeeze, Unsqueeze (and Transposes of axes of size 1) with any other; Split with Concat, Concat with Split, Concat
    in Concat, a Slice of one part of a Concat, Slices of one tensor joined again (a roll is one Gather); Slice of
    Slice, Gather of Gather, a Slice or Gather of one position with a Squeeze or Unsqueeze; Unsqueeze and Squeeze around
    a Pad; Expand of Expand, Tile of Tile.

    Cast of Cast is the last Cast only if the first loses nothing, as from float16 to float: a Cast to a narrower type
    rounds. DequantizeLinear of QuantizeLinear rounds as well, and stays.

    `y = Transpose(Transpose(x, perm=[0, 2, 1]), perm=[0, 2, 1])` becomes `y = x`.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=_in_a_row(["Transpose"], ["Transpose"]), build=_transpose, name="Transpose"),
        Rule(match=_in_a_row(KEEPS_ORDER, KEEPS_ORDER), build=_reshape, name="Reshape"),
        Rule(
            match=lambda op, x, p, q, first, second, third: op.any(*RESHAPING)(
                op.shared(
                    op.Transpose(
                        op.shared(op.any(*RESHAPING)(x, op.rest(p), _attrs=..., _node=first)), _attrs=..., _node=second
                    )
                ),
                op.rest(q),
                _attrs=...,
                _node=third,
            ),
            build=_grouped,
            name="Transpose of a reshape",
        ),
        Rule(match=_in_a_row(["Slice"], ["Slice"]), build=_slice, name="Slice"),
        Rule(match=_in_a_row(["Gather"], ["Gather"]), build=_gather, name="Gather"),
        Rule(match=_in_a_row(["Squeeze", "Unsqueeze"], ["Slice", "Gather"]), build=_index, name="one position"),
        Rule(
            match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
            build=concat_of_split,
            name="Concat of Split",
        ),
        Rule(
            match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
            build=flat_concat,
            name="Concat of Concat",
        ),
        Rule(
            match=lambda op, parts, node: op.Concat(op.rest(parts), _attrs=..., _node=node),
            build=rejoined,
            name="Concat of Slices",
        ),
        *map(_split_rule, range(2, _MOST_PARTS + 1)),
        Rule(
            match=lambda op, parts, others, first, second: op.Slice(
                op.shared(op.Concat(op.rest(parts), _attrs=..., _node=first)), op.rest(others), _attrs=..., _node=second
            ),
            build=part,
            name="Slice of Concat",
        ),
        Rule(
            match=lambda op, x, p, q, r, first, pad, second: op.Squeeze(
                op.Pad(op.Unsqueeze(x, op.rest(p), _attrs=..., _node=first), op.rest(q), _attrs=..., _node=pad),
                op.rest(r),
                _attrs=...,
                _node=second,
            ),
            build=_padded,
            since_opset=7,
            name="Pad with further axes",
        ),
        Rule(match=_in_a_row(["Expand"], ["Expand"]), build=_expand, since_opset=8, name="Expand"),
        Rule(match=_in_a_row(["Tile"], ["Tile"]), build=_tile, since_opset=6, name="Tile"),
        Rule(match=_in_a_row(["Cast"], ["Cast"]), build=_cast, name="Cast"),
    )
