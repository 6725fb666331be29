"""Parallel convolutions whose results are added become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._batch_norm import scale_and_shift
from infconv.passes._build import Builder
from infconv.passes._rewrite import Match, Refuse, Rule
from infconv.passes._weights import Linear, check_unshared, linear, rounded
from infconv.passes._windows import Windows, windows


def _merge(op: Builder, x: ir.Value, n1: ir.Node, n2: ir.Node) -> ir.Value:
    first, second = linear(n1), linear(n2)
    sizes = [windows(old.node, old.weight.shape[3:]) for old in (first, second)]
    large, small = (first, second) if np.prod(sizes[0].kernel) >= np.prod(sizes[1].kernel) else (second, first)
    if first.weight.shape[:3] != second.weight.shape[:3]:
        raise Refuse("the convolutions differ in channels or groups")
    outer, inner = (sizes[0], sizes[1]) if large is first else (sizes[1], sizes[0])
    place = _place(outer, inner)
    for node in (n1, n2):
        check_unshared(cast(ir.Value, node.inputs[1]))
    weight = large.weight.astype(np.float64)
    weight[(..., *place)] += small.weight
    biases = [old.bias for old in (first, second) if old.bias is not None]
    return _conv(op, x, large, weight, np.sum(biases, axis=0) if biases else None)


def _place(outer: Windows, inner: Windows) -> tuple[slice, ...]:
    """Return where in the larger kernel the smaller one lies, so that both see the same elements. Raises Refuse.

    Element i of a kernel is at i * dilation - begin, relative to the place of the window.
    """
    if outer.strides != inner.strides:
        raise Refuse("the convolutions differ in strides")
    places: list[slice] = []
    for axis, (size, small) in enumerate(zip(outer.kernel, inner.kernel, strict=True)):
        step = outer.dilations[axis]
        if small > 1 and inner.dilations[axis] != step:
            raise Refuse("the convolutions differ in dilations")
        before, after = (a[axis] - b[axis] for a, b in ((outer.begin, inner.begin), (outer.end, inner.end)))
        start = before // step
        if before % step or start < 0 or start + small > size or after != (size - small - start) * step:
            raise Refuse("the paddings do not put one kernel inside of the other")
        places.append(slice(start, start + small))
    return tuple(places)


def _merge_identity(op: Builder, x: ir.Value, n1: ir.Node) -> ir.Value:
    return _with_diagonal(op, x, n1, np.ones(1), np.zeros(1))


def _merge_norm(op: Builder, x: ir.Value, n1: ir.Node, norm: ir.Node, match: Match) -> ir.Value:
    return _with_diagonal(op, x, n1, *scale_and_shift(norm, match.opset))


def _with_diagonal(op: Builder, x: ir.Value, n1: ir.Node, scale: np.ndarray, shift: np.ndarray) -> ir.Value:
    """Make a convolution to whose result scale * x + shift is added: a 1x1 kernel with `scale` on its diagonal."""
    old = linear(n1)
    if old.inputs != old.outputs:
        raise Refuse(f"Conv makes {old.outputs} channels of {old.inputs}, so that its input cannot be added")
    window = windows(n1, old.weight.shape[3:])
    ones, zeros = (1,) * len(window.kernel), (0,) * len(window.kernel)
    place = _place(window, Windows(ones, ones, ones, zeros, zeros))
    check_unshared(cast(ir.Value, n1.inputs[1]))
    groups, size = old.weight.shape[:2]
    weight = old.weight.astype(np.float64)
    centre = weight[(..., *(at.start for at in place))]
    centre[:, range(size), range(size)] += np.broadcast_to(scale, old.outputs).reshape(groups, size)
    bias = old.bias
    if shift.any():
        bias = shift if bias is None else bias + shift
    return _conv(op, x, old, weight, bias)


def _conv(op: Builder, x: ir.Value, old: Linear, weight: np.ndarray, bias: np.ndarray | None) -> ir.Value:
    dtype = old.weight.dtype
    inputs = [rounded(old.stored(weight), dtype), *([] if bias is None else [rounded(bias, dtype)])]
    return op.Conv(x, *inputs, _attrs=old.node.attributes)


class MergeKernels(RewritePass):
    """Merge parallel convolutions of one input whose results are added, by adding their kernels.

    The smaller kernel is padded with zeros to the larger one's size (a 1x1 kernel is the centre of a 3x3 one, not
    stretched to it), where strides, groups and channels are equal and the paddings make both see the same elements.
    The input itself, or its BatchNormalization, is a 1x1 convolution with a diagonal kernel: the branches of RepVGG
    (https://arxiv.org/abs/2101.03697, section 3.3) become one 3x3 convolution once their norms are folded.

    `y = Add(Conv<pads=[1, 1, 1, 1]>(x, W3), Conv(x, W1))` becomes `y = Conv<pads=[1, 1, 1, 1]>(x, W)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="conv-conv",
            match=lambda op, x, w1, b1, n1, w2, b2, n2: op.Add(
                op.Conv(x, op.const(w1), op.optional(op.const(b1)), _attrs=..., _node=n1),
                op.Conv(x, op.const(w2), op.optional(op.const(b2)), _attrs=..., _node=n2),
            ),
            build=_merge,
            since_opset=7,
        ),
        Rule(
            name="conv-batch-norm",
            match=lambda op, x, w1, b1, n1, norm, parameters: op.Add(
                op.Conv(x, op.const(w1), op.optional(op.const(b1)), _attrs=..., _node=n1),
                op.BatchNormalization(x, op.rest(parameters), _attrs=..., _node=norm),
            ),
            build=_merge_norm,
            since_opset=7,
        ),
        Rule(
            name="conv-identity",
            match=lambda op, x, w1, b1, n1: op.Add(
                op.Conv(x, op.const(w1), op.optional(op.const(b1)), _attrs=..., _node=n1), x
            ),
            build=_merge_identity,
            since_opset=7,
        ),
    )
