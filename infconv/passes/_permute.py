"""What becomes of an operator when its operands are transposed: the same operator, with its axes renamed.

A permutation is that of Transpose: axis i of the result is axis perm[i] of the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias, cast

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._dims import Dims
from infconv.passes._elementwise import BROADCASTING, UNARY
from infconv.passes._moves import (
    Group,
    as_target,
    attribute,
    axes_of,
    from_front,
    groups,
    integer,
    integers,
    operand,
    regrouped,
    reshaped,
    sizes,
    slices,
)
from infconv.passes._pattern import Refuse

Perm: TypeAlias = tuple[int, ...]
Change: TypeAlias = Callable[[Builder, ir.Node], None]
"""Gives the node its new attributes and constant operands."""


def then(first: Sequence[int], second: Sequence[int]) -> Perm:
    """Return the permutation that does `first` and then `second`."""
    return tuple(first[axis] for axis in second)


def inverse(perm: Sequence[int]) -> Perm:
    """Return the permutation that undoes `perm`."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


def between(start: Sequence[int], end: Sequence[int]) -> Perm:
    """Return the permutation that does what is missing after `start` to have done `end`."""
    return tuple(start.index(axis) for axis in end)


@cache
def is_identity(perm: Perm) -> bool:
    """Whether `perm` changes nothing."""
    return perm == tuple(range(len(perm)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a node looks in another layout."""

    inputs: tuple[Perm | None, ...]
    """By input, how it must be transposed; None for those that stay as they are."""
    outputs: tuple[Perm | None, ...]
    """By output, how it is transposed then; None for one that is the same."""
    change: Change


@dataclasses.dataclass(frozen=True)
class Place:
    """A node of which an input or output is to be transposed."""

    node: ir.Node
    perm: Perm
    of_output: bool
    opset: int

    @property
    def rank(self) -> int:
        """The rank of what is transposed."""
        return len(self.perm)

    def moved(self, axes: Sequence[int]) -> list[int]:
        """Return where `axes`, of a tensor of this rank, are afterwards."""
        return [self.perm.index(axis) for axis in from_front(axes, self.rank)]

    def plan(self, change: Change, *, operands: int = 1) -> Plan:
        """Return the plan in which the first `operands` inputs and all outputs are transposed alike."""
        rest = (None,) * (len(self.node.inputs) - operands)
        return Plan((self.perm,) * operands + rest, (self.perm,) * len(self.node.outputs), change)

    def dropping(self, axes: Sequence[int], change: Callable[[list[int]], Change]) -> Plan:
        """Return the plan of a node whose output lacks `axes` of its first input; `change` gets the new ones."""
        if self.of_output:
            small, large = self.perm, widened(self.perm, from_front(axes, self.rank + len(axes)))
        else:
            small, large = narrowed(self.perm, from_front(axes, self.rank)), self.perm
        gone = [large.index(axis) for axis in from_front(axes, len(large))]
        inputs = (large,) + (None,) * (len(self.node.inputs) - 1)
        return Plan(inputs, (None if is_identity(small) else small,), change(gone))


def narrowed(perm: Perm, axes: Sequence[int]) -> Perm:
    """Return what is left of `perm` without `axes` of the tensor that it transposes."""
    kept = [axis for axis in range(len(perm)) if axis not in axes]
    return tuple(kept.index(axis) for axis in perm if axis in kept)


def widened(perm: Perm, axes: Sequence[int]) -> Perm:
    """Return the permutation that moves the other axes by `perm` and leaves the new `axes` where they are."""
    others = iter([axis for axis in range(len(perm) + len(axes)) if axis not in axes])
    moved = list(others)
    rest = iter(moved[axis] for axis in perm)
    return tuple(axis if axis in axes else next(rest) for axis in range(len(perm) + len(axes)))


def plan(node: ir.Node, perm: Perm, *, of_output: bool, opset: int) -> Plan | None:
    """Return how `node` looks when its first input (or its output) is transposed; None when that is not possible."""
    rule = _RULES.get(node.op_type) if not node.domain else None
    if rule is None:
        return None
    try:
        return rule(Place(node, perm, of_output, opset))
    except Refuse:
        return None


# --- changes -------------------------------------------------------------------------------------------------------


def _nothing(op: Builder, node: ir.Node) -> None:
    """Leave the node as it is."""


def _set_int(name: str, value: int) -> Change:
    def change(op: Builder, node: ir.Node) -> None:
        node.attributes[name] = ir.AttrInt64(name, value)

    return change


def _set_ints(index: int | None, name: str, values: Sequence[int], like: int = 0) -> Change:
    """Return the change of integers that are input `index`, or the attribute `name` when that is None.

    A new input has the type of the input `like`, int64 when that is 0.
    """

    def change(op: Builder, node: ir.Node) -> None:
        if index is None:
            node.attributes[name] = ir.AttrInt64s(name, list(values))
            return
        old = operand(node, index) or (operand(node, like) if like else None)
        dtype = _values.dtype_of(old) or ir.DataType.INT64
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, op.const(np.array(values, np.int64), dtype=dtype))

    return change


def _input_or_attribute(node: ir.Node, index: int, name: str) -> int | None:
    return None if operand(node, index) is None and name in node.attributes else index


def _transposed(values: Sequence[ir.Value], perm: Perm, positions: Sequence[int]) -> Change:
    """Return the change that transposes the constants at these inputs."""

    def change(op: Builder, node: ir.Node) -> None:
        for index in positions:
            array = _values.constant(values[index])
            assert array is not None
            full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm)
            while full.ndim and full.shape[0] == 1 and array.ndim < len(perm):
                full = full[0]
            node.replace_input_with(index, op.const(ir.tensor(np.ascontiguousarray(full), values[index].dtype)))

    return change


def _all(*changes: Change) -> Change:
    def change(op: Builder, node: ir.Node) -> None:
        for single in changes:
            single(op, node)

    return change


# --- operators -----------------------------------------------------------------------------------------------------


def _unary(place: Place) -> Plan:
    return place.plan(_nothing)


def _operands(place: Place, change: Change = _nothing) -> Plan:
    """All inputs are broadcast, or joined: constants are transposed here and now."""
    inputs: list[Perm | None] = []
    constants: list[int] = []
    for index, value in enumerate(place.node.inputs):
        shape = _values.dims(value)
        if value is None or shape is None or len(shape) > place.rank:
            raise Refuse("an operand of which the rank is not known")
        single = all(dim == 1 for dim in shape)
        if _values.tensor(value) is not None and not single:
            constants.append(index)
            inputs.append(None)
        elif single:
            inputs.append(None)
        elif len(shape) == place.rank:
            inputs.append(place.perm)
        else:
            raise Refuse("an operand of lower rank")
    values = cast("Sequence[ir.Value]", tuple(place.node.inputs))
    outputs = (place.perm,) * len(place.node.outputs)
    return Plan(tuple(inputs), outputs, _all(change, _transposed(values, place.perm, constants)))


def _concat(place: Place) -> Plan:
    return _operands(place, _set_int("axis", place.moved([integer(place.node, "axis", 1)])[0]))


def _axis(default: int) -> Callable[[Place], Plan]:
    """Return the rule of operators that work along the attribute `axis`."""

    def rule(place: Place) -> Plan:
        return place.plan(_set_int("axis", place.moved([integer(place.node, "axis", default)])[0]))

    return rule


def _softmax(place: Place) -> Plan:
    if place.opset < 13:
        raise Refuse("before opset 13, it normalizes over all axes from `axis` on")
    return _axis(-1)(place)


def _cumulative(place: Place) -> Plan:
    axes = integers(place.node, 1) or [0]
    if len(axes) != 1 or _values.rank(place.node.inputs[1]) != 0:
        raise Refuse("the axis is not a number")
    moved = place.moved(axes)[0]

    def change(op: Builder, node: ir.Node) -> None:
        node.replace_input_with(1, op.const(np.array(moved), dtype=_values.dtype_of(node.inputs[1])))

    return place.plan(change)


def _reduction(place: Place) -> Plan:
    node, axes = place.node, axes_of(place.node)
    keep = integer(node, "keepdims", 1)
    if axes is None:
        if integer(node, "noop_with_empty_axes", 0) or place.of_output:
            raise Refuse("no axes")
        return Plan((place.perm,) + (None,) * (len(node.inputs) - 1), (None,), _nothing)
    where = _input_or_attribute(node, 1, "axes")
    if not keep:
        return place.dropping(axes, lambda moved: _set_ints(where, "axes", moved))
    return place.plan(_set_ints(where, "axes", place.moved(axes)))


def _arg(place: Place) -> Plan:
    axis = integer(place.node, "axis", 0)
    if not integer(place.node, "keepdims", 1):
        return place.dropping([axis], lambda moved: _set_int("axis", moved[0]))
    return place.plan(_set_int("axis", place.moved([axis])[0]))


def _squeeze(place: Place) -> Plan:
    axes = axes_of(place.node)
    if axes is None:
        raise Refuse("no axes")
    where = _input_or_attribute(place.node, 1, "axes")
    return place.dropping(axes, lambda moved: _set_ints(where, "axes", moved))


def _unsqueeze(place: Place) -> Plan:
    axes = axes_of(place.node)
    if axes is None:
        raise Refuse("no axes")
    where = _input_or_attribute(place.node, 1, "axes")
    reverse = dataclasses.replace(place, of_output=not place.of_output)
    mirrored = reverse.dropping(axes, lambda moved: _set_ints(where, "axes", moved))
    (large, *rest), (small,) = mirrored.inputs, mirrored.outputs
    return Plan((small, *rest), (large,), mirrored.change)


def _reshape(place: Place) -> Plan:
    """Axes that are split or joined move together; the target is that of the transposed shape."""
    node = place.node
    before = sizes(node.inputs[0])
    after = sizes(node.outputs[0]) if before is None else reshaped(node, place.opset, before)
    if before is None or after is None or place.opset < 5:
        raise Refuse("the shapes are not known")
    parts = groups(before, after)
    if place.of_output:
        outer, inner = place.perm, _along(place.perm, after, before, [(b, a) for a, b in parts])
    else:
        outer, inner = _along(place.perm, before, after, parts), place.perm
    target = as_target(tuple(before[axis] for axis in inner), [after[axis] for axis in outer])
    if target is None:
        raise Refuse("a constant cannot say which shape results")

    def change(op: Builder, node: ir.Node) -> None:
        node.op_type = "Reshape"
        node.attributes.clear()
        node.resize_inputs(2)
        node.replace_input_with(1, op.const(np.array(target, np.int64)))

    return Plan((None if is_identity(inner) else inner, None), (None if is_identity(outer) else outer,), change)


def _along(perm: Perm, own: Dims, other: Dims, parts: Sequence[Group]) -> Perm:
    """Return how `other`, into which `own` is reshaped, is permuted by `perm`; its axes of size 1 stay in place."""
    moved = iter(regrouped([axis for axis in perm if own[axis] != 1], parts))
    return tuple(axis if dim == 1 else next(moved) for axis, dim in enumerate(other))


def _gather(place: Place) -> Plan:
    rank, axis = _values.rank(place.node.inputs[1]), integer(place.node, "axis", 0)
    if rank == 0:
        return place.dropping([axis], lambda moved: _set_int("axis", moved[0]))
    if rank != 1:
        raise Refuse("the indices have several axes")
    return place.plan(_set_int("axis", place.moved([axis])[0]))


def _pad(place: Place) -> Plan:
    node = place.node
    if operand(node, 3) is not None:
        return place.plan(_set_ints(3, "axes", place.moved(integers(node, 3) or [])))
    index = 1 if place.opset >= 11 else None
    pads = integers(node, 1 if index else 9, "pads")
    if pads is None or len(pads) != 2 * place.rank:
        raise Refuse("the pads are not known")
    before, after = pads[: place.rank], pads[place.rank :]
    return place.plan(_set_ints(index, "pads", [*then(before, place.perm), *then(after, place.perm)]))


def _slice(place: Place) -> Plan:
    moved = place.moved(list(slices(place.node, place.opset)))
    return place.plan(_set_ints(3 if place.opset >= 10 else None, "axes", moved, like=1))


def _by_axis(index: int) -> Callable[[Place], Plan]:
    """Return the rule of operators one of whose inputs has a number for each axis."""

    def rule(place: Place) -> Plan:
        numbers = integers(place.node, index) or []
        if len(numbers) > place.rank or _values.rank(place.node.inputs[0]) != place.rank or place.opset < 8:
            raise Refuse("it adds axes")
        numbers = [1] * (place.rank - len(numbers)) + numbers
        return place.plan(_set_ints(index, "", then(numbers, place.perm)))

    return rule


def _quantize(place: Place) -> Plan:
    node = place.node
    scale = _values.dims(node.inputs[1])
    if scale is None or len(scale) > 1:
        raise Refuse("the scale is not a number or a vector")
    per_axis = len(scale) == 1 and scale[0] != 1
    change = _set_int("axis", place.moved([integer(node, "axis", 1)])[0]) if per_axis else _nothing
    if node.inputs[0] is not None and _values.tensor(node.inputs[0]) is not None:
        moved = _transposed([node.inputs[0]], place.perm, [0])
        return Plan((None,) * len(node.inputs), (place.perm,), _all(change, moved))
    return place.plan(change)


def _resize(place: Place) -> Plan:
    """Only to a layout in which the last axes are resized: that is what runtimes have fast code for, or any at all."""
    node = place.node
    index = 3 if operand(node, 3) is not None else 1 if place.opset < 11 else 2
    numbers = _values.constant(operand(node, index))
    roi = None if index == 1 else operand(node, 1)
    if numbers is None or _values.known_shape(roi) not in (None, (0,)) or attribute(node, "axes") is not None:
        raise Refuse("not constant, or of some axes only")
    shape = _values.dims(node.inputs[0])
    if shape is None or len(shape) != place.rank or numbers.size != place.rank:
        raise Refuse("the shape is not known")
    resized = [axis for axis, n in enumerate(numbers.tolist()) if n != (shape[axis] if index == 3 else 1)]
    if any(place.perm.index(axis) < 2 for axis in resized):
        raise Refuse("the first axes would be resized")
    permuted = numbers[list(place.perm)]

    def change(op: Builder, node: ir.Node) -> None:
        node.replace_input_with(index, op.const(ir.tensor(permuted)))

    return place.plan(change)


_Rule: TypeAlias = Callable[[Place], Plan]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys((*BROADCASTING, "PRelu"), _operands),
    "Concat": _concat,
    "Split": _axis(0),
    **dict.fromkeys(("LpNormalization", "TopK"), _axis(-1)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    "CumSum": _cumulative,
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        _reduction,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Expand": _by_axis(1),
    "Tile": _by_axis(1),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "Resize": _resize,
}  # fmt: skip
