"""Padding before a convolution or a pool becomes its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes._attributes import plain_attributes
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._moves import permutation
from infconv.passes._rewrite import Match, Refuse, Rule, constant, dims, dtype_of, scalar
from infconv.passes._windows import Windows, windows

_WINDOWED = frozenset({"Conv", "AveragePool", "MaxPool"})
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt"})


def _padding(pad: ir.Node, rank: int, opset: int) -> tuple[list[int], list[int], float]:
    """Return what `pad` puts before and after each axis, and the value that it puts there. Raises Refuse."""
    attributes = plain_attributes(pad)
    if attributes.get("mode", "constant") != "constant":
        raise Refuse(f"Pad has mode={attributes['mode']}")
    if opset < 11:
        amounts, value = list(attributes.get("pads", ())), attributes.get("value", 0.0)
        axes = range(len(amounts) // 2)
    else:
        _, pads, filler, given = [*pad.inputs, None, None, None][:4]
        amounts = _numbers(pads)
        value = 0.0 if filler is None else scalar(filler)
        axes = range(len(amounts) // 2) if given is None else [axis % rank for axis in _numbers(given)]
    if value is None:
        raise Refuse("Pad has a value that is not constant")
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = amounts[i], amounts[len(axes) + i]
    return begin, end, value


def _numbers(value: ir.Value | None) -> list[int]:
    found = constant(value)
    if found is None:
        raise Refuse("Pad has amounts or axes that are not constant")
    return [int(number) for number in found.ravel()]


def _fuse(op: Builder, x: ir.Value, pad: ir.Node, node: ir.Node, match: Match) -> Any:
    perm = None if match["moved"] is None else permutation(match["moved"])
    if any(user.op_type not in _WINDOWED or user.domain for user in pad.outputs[0].consumers()) and perm is None:
        raise Refuse("another operator uses what is padded")
    old = windows(node, _kernel(node))
    begin, end, value = _padding(pad, len(old.kernel) + 2, match.opset)
    if perm is not None:
        begin, end = [begin[axis] for axis in perm], [end[axis] for axis in perm]
    if any(begin[:2] + end[:2]):
        raise Refuse("Pad pads the batch or the channels")
    if min(begin + end) < 0:
        raise Refuse("Pad crops")
    pads = [amount + more for amount, more in zip(old.pads, begin[2:] + end[2:], strict=True)]
    attributes = {name: a for name, a in node.attributes.items() if name not in ("auto_pad", "pads")}
    count = None
    match node.op_type:
        case "Conv":
            if value:
                raise Refuse(f"Pad pads with {value:g}, Conv with zeros")
        case "AveragePool":
            count = _check_average_pool(node, old, value)
        case _:
            _check_max_pool(x, value)
    if node.op_type != "Conv":
        _check_pool(node, old, pads)
    source = x if perm is None else op.Transpose(x, perm=perm)
    return op.call(node.op_type, source, *node.inputs[1:], _attrs=attributes, pads=pads, count_include_pad=count)


def _kernel(node: ir.Node) -> Sequence[int] | None:
    """Return the spatial shape of a Conv's weight; None for a pool, which has it as an attribute."""
    if node.op_type != "Conv":
        return None
    shape = dims(node.inputs[1])
    if shape is None or not all(isinstance(size, int) for size in shape):
        raise Refuse("the shape of Conv's weight is not known")
    return [size for size in shape[2:] if isinstance(size, int)]


def _check_average_pool(node: ir.Node, old: Windows, value: float) -> int:
    """Return the count_include_pad that counts what Pad put there, as before. Raises Refuse."""
    if value:
        raise Refuse(f"Pad pads with {value:g}, AveragePool with zeros")
    if old.padded and not node.attributes.get_int("count_include_pad", 0):
        raise Refuse("AveragePool does not count its own padding, but has to count that of Pad")
    return 1


def _check_max_pool(x: ir.Value, value: float) -> None:
    """Raise Refuse unless padding with `value` is like MaxPool's own, with the lowest number there is.

    It is when the input has nothing lower and each window has at least one element of it, which _check_pool asks for.
    """
    dtype = dtype_of(x)
    lowest = _lower_bound(x)
    if (dtype is None or value > dtype.min) and (lowest is None or value > lowest):
        raise Refuse(f"Pad pads with {value:g}, MaxPool with the lowest number; '{x.name}' may have numbers between")


def _lower_bound(value: ir.Value) -> float | None:
    """Return a number that no element of `value` is below."""
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Clip":
        attribute = node.attributes.get("min")
        if attribute is not None:
            return None if attribute.is_ref() else attribute.as_float()
        return scalar(node.inputs[1]) if len(node.inputs) > 1 else None
    return 0.0 if node.op_type in _NOT_NEGATIVE else None


def _check_pool(node: ir.Node, old: Windows, pads: Sequence[int]) -> None:
    """Raise Refuse where a window could lie in padding only.

    Without ceil_mode and dilations, and with less padding than the kernel has elements, it cannot.
    """
    if node.attributes.get_int("ceil_mode", 0):
        raise Refuse("ceil_mode is 1: the last window may begin in the padding")
    if any(step != 1 for step in old.dilations):
        raise Refuse("the windows are dilated")
    if any(amount >= size for amount, size in zip(pads, old.kernel * 2, strict=True)):
        raise Refuse("the padding would be as large as the kernel")


class FusePad(RewritePass):
    """Make Pad the padding of the Conv, AveragePool or MaxPool after it.

    Conv pads with zeros, so Pad must, too. AveragePool must count what Pad puts there (count_include_pad=1), which it
    cannot while it pads by itself without counting. MaxPool pads with the lowest number: a Pad with zeros before it
    only does the same after an operator whose results are never negative, such as Relu. Left alone: other modes than
    constant, padding of batch or channels, cropping, auto_pad=SAME_*, pools with ceil_mode or dilations. A Transpose
    between the two, as for an image with channels last, comes before the Pad then.

    `y = Conv(Pad(x, [0, 0, 1, 1, 0, 0, 1, 1]), W)` becomes `y = Conv<pads=[1, 1, 1, 1]>(x, W)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="pad-window",
            match=lambda op, x, more, rest, moved, pad, node: op.any(*_WINDOWED)(
                op.any_of(
                    op.shared(op.Pad(x, op.rest(more), _attrs=..., _node=pad)),
                    op.Transpose(op.Pad(x, op.rest(more), _attrs=..., _node=pad), _attrs=..., _node=moved),
                ),
                op.rest(rest),
                _attrs=...,
                _node=node,
            ),
            build=_fuse,
            since_opset=7,
        ),
    )
