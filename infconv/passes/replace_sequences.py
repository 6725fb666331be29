"""Sequences and optionals of which every element is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._compose import make_slice
from infconv.passes._match import Match
from infconv.passes._moves import Range, integer, operand
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule


def _element(op: Builder, match: Match) -> ir.Value:
    """Return element i of a sequence that was just made of its elements."""
    elements: tuple[ir.Value, ...] = match["elements"]
    return elements[_position(match, len(elements))]


def _position(match: Match, count: int | None) -> int:
    index = _values.scalar(match.value("i"))
    if index is None:
        raise Refuse("the position is not constant")
    position = int(index) + (count or 0) * (index < 0)
    if position < 0 or (count is not None and position >= count):
        raise Refuse("the position is not one of the sequence")
    return position


def _piece(op: Builder, match: Match) -> ir.Value:
    """Return element i of a tensor that was split: a Slice, or without its axis a Gather."""
    node: ir.Node = match["node"]
    x, axis, lengths = match.value("x"), integer(node, "axis", 0), operand(node, 1)
    size = _values.static_dim(x, axis)
    if lengths is None:
        position = _position(match, size)
        if not integer(node, "keepdims", 1):
            return op.Gather(x, op.const(np.array(position, np.int64)), axis=axis)
        return make_slice(op, x, {axis: Range(position, position + 1, 1)})
    sizes = _values.constant(lengths)
    if sizes is None:
        raise Refuse("the sizes of the pieces are not constant")
    if sizes.ndim:
        position = _position(match, sizes.size)
        start = int(sizes[:position].sum())
        return make_slice(op, x, {axis: Range(start, start + int(sizes[position]), 1)})
    step = int(sizes)
    start = step * _position(match, None if size is None else -(-size // step))
    return make_slice(op, x, {axis: Range(start, start + step if size is None else min(start + step, size), 1)})


def _joined(op: Builder, elements: tuple[ir.Value, ...], node: ir.Node) -> ir.Value:
    axis = integer(node, "axis", 0)
    if not elements:
        raise Refuse("the sequence is empty")
    if not integer(node, "new_axis", 0):
        return op.Concat(*elements, axis=axis)
    if op.opset < 13:
        return op.Concat(*(op.Unsqueeze(element, axes=[axis]) for element in elements), axis=axis)
    return op.Concat(*(op.Unsqueeze(element, np.array([axis], np.int64)) for element in elements), axis=axis)


def _inserted(op: Builder, match: Match) -> ir.Value:
    """SequenceInsert into a sequence that was just made."""
    elements: list[ir.Value] = list(match["elements"] or ())
    value, index = match.value("value"), match["i"]
    number = len(elements) if index is None else _values.scalar(index)
    if number is None or not -len(elements) <= number <= len(elements):
        raise Refuse("the position is not constant, or not one of the sequence")
    elements.insert(int(number), value)
    return op.SequenceConstruct(*elements)


def _made(op: PatternBuilder, elements: Any) -> Pattern:
    return op.shared(op.SequenceConstruct(op.rest(elements)))


class ReplaceSequences(RewritePass):
    """Replace what is put into a sequence or optional and taken out again by the thing itself.

    Elements of a SequenceConstruct, pieces of a SplitToSequence (as Slices, which `merge-slices` makes one Split),
    ConcatFromSequence (a Concat), SequenceLength, SequenceInsert, OptionalGetElement of an Optional. Few targets know
    sequences; exporters write them for `torch.split` and for lists.

    `y = SequenceAt(SequenceConstruct(a, b), 1)` becomes `b`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(match=lambda op, elements, i: op.SequenceAt(_made(op, elements), op.const(i)), build=_element),
        Rule(
            match=lambda op, x, others, i, node: op.SequenceAt(
                op.shared(op.SplitToSequence(x, op.rest(others), _attrs=..., _node=node)), op.const(i)
            ),
            build=_piece,
            name="piece of a split tensor",
        ),
        Rule(
            match=lambda op, elements, node: op.ConcatFromSequence(_made(op, elements), _attrs=..., _node=node),
            build=_joined,
            name="ConcatFromSequence",
        ),
        Rule(
            match=lambda op, elements: op.SequenceLength(_made(op, elements)),
            build=lambda op, elements: op.const(np.array(len(elements), np.int64)),
            name="SequenceLength",
        ),
        Rule(
            match=lambda op, elements, value, i: op.SequenceInsert(
                op.SequenceConstruct(op.rest(elements)), value, op.optional(op.const(i))
            ),
            build=_inserted,
            name="SequenceInsert",
        ),
        Rule(
            match=lambda op, value: op.SequenceInsert(op.SequenceEmpty(_attrs=...), value),
            build=lambda op, value: op.SequenceConstruct(value),
            name="SequenceInsert into nothing",
        ),
        Rule(
            match=lambda op, x: op.OptionalGetElement(op.shared(op.Optional(x, _attrs=...))),
            build=lambda op, x: x,
            name="OptionalGetElement",
        ),
    )
