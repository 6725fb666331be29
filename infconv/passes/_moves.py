"""What operators that move elements do, whichever opset wrote them: their parameters as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias, cast

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._dims import Dim, Dims, Expr, equal, floor_div, is_positive, parse, product, unknown
from infconv.passes._pattern import Refuse

FAR = (1 << 31) - 1
"""Exporters write this, or more, for "to the end"."""


class _Everything:
    """A container of all names: whatever a shape calls a dimension may be calculated with."""

    def __contains__(self, name: object) -> bool:
        return True


@lru_cache(4096)
def _parsed(text: str) -> Expr | None:
    return parse(text, _Everything())


def sizes(value: ir.Value | None) -> Dims | None:
    """Return the shape of `value` as numbers and expressions to calculate with; what has no name equals nothing."""
    known = _values.dims(value)
    return None if known is None else tuple(_size(dim) for dim in known)


def _size(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else unknown()
    return (dim.value and _parsed(dim.value)) or unknown()


def same_sizes(a: Dims | None, b: Dims | None) -> bool:
    """Whether two shapes are known to be equal."""
    return a is not None and b is not None and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """Return the value of an attribute. Raises Refuse when only the function's caller knows it."""
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise Refuse(f"{name} is an attribute of the function")
    return found.value


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return the value of an integer attribute. Raises Refuse when only the function's caller knows it."""
    return cast(int, attribute(node, name, default))


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input, None when it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def integers(node: ir.Node, index: int, name: str = "") -> list[int] | None:
    """Return the numbers that are input `index` or the attribute `name`; None when both are absent.

    Raises Refuse when they are not constant.
    """
    value = operand(node, index)
    if value is None:
        found = attribute(node, name)
        return None if found is None else list(cast("Sequence[int]", found))
    tensor = _values.tensor(value)
    if tensor is None:
        raise Refuse(f"'{value.name}' is not a constant")
    return [int(number) for number in tensor.numpy().reshape(-1)]


def axes_of(node: ir.Node, index: int = 1) -> list[int] | None:
    """Return the axes of a reduction, Squeeze or Unsqueeze as they are written; None when there are none."""
    return integers(node, index, "axes") or None


def from_front(axes: Sequence[int], rank: int | None) -> list[int]:
    """Return `axes` counted from the front. Raises Refuse when that needs a rank and it is not known."""
    if rank is None and any(axis < 0 for axis in axes):
        raise Refuse("negative axes need a rank, which is not known")
    return [axis if axis >= 0 else axis + cast(int, rank) for axis in axes]


def permutation(node: ir.Node) -> tuple[int, ...]:
    """Return what a Transpose does: axis i of the result is axis perm[i] of its input. Raises Refuse."""
    perm = attribute(node, "perm")
    if perm is not None:
        return tuple(cast("Sequence[int]", perm))
    rank = _values.rank(node.inputs[0])
    rank = _values.rank(node.outputs[0]) if rank is None else rank
    if rank is None:
        raise Refuse("a Transpose without perm needs a rank, which is not known")
    return tuple(reversed(range(rank)))


class Range(NamedTuple):
    """What a Slice takes of one axis, as it is written: to be clamped to the size of the axis."""

    start: int
    end: int
    step: int

    def positions(self, size: int) -> range:
        """Return which of `size` elements are taken, in order."""
        return range(*slice(self.start, self.end, self.step).indices(size))

    def is_whole(self, size: int | None) -> bool:
        """Whether an axis of `size` (None: not known) is taken as it is."""
        if size is not None:
            return self.positions(size) == range(size)
        return self.start == 0 and self.end >= FAR and self.step == 1


def slices(node: ir.Node, opset: int) -> dict[int, Range]:
    """Return axis -> range of a Slice, axes as they are written. Raises Refuse when one is not constant."""
    if opset < 10:
        starts, ends = integers(node, 9, "starts"), integers(node, 9, "ends")
        axes, steps = integers(node, 9, "axes"), None
    else:
        starts, ends, axes, steps = (integers(node, index) for index in (1, 2, 3, 4))
    if starts is None or ends is None:
        raise Refuse("a Slice without starts or ends")
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    return {axis: Range(*taken) for axis, *taken in zip(axes, starts, ends, steps, strict=True)}


RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep all elements and their order."""


def reshaped(node: ir.Node, opset: int, source: Dims | None) -> Dims | None:
    """Return what a node of `RESHAPING` makes of the shape `source`; None when that is not known. Raises Refuse."""
    match node.op_type:
        case "Reshape":
            target = integers(node, 1 if opset >= 5 else 9, "shape")
            return None if target is None else _to_target(source, target, integer(node, "allowzero", 0) == 1)
        case "Flatten":
            return None if source is None else _flattened(source, integer(node, "axis", 1))
        case "Squeeze":
            return None if source is None else _squeezed(source, axes_of(node))
        case _:
            return None if source is None else _unsqueezed(source, axes_of(node) or [])


def _to_target(source: Dims | None, target: Sequence[int], allow_zero: bool) -> Dims | None:
    """Return the shape that Reshape gives; a -1 that cannot be calculated is an unknown."""
    result: list[Dim] = []
    for axis, element in enumerate(target):
        copied = source[axis] if source is not None and axis < len(source) else unknown()
        result.append(copied if element == 0 and not allow_zero else element)
    if -1 in target:
        hole = target.index(-1)
        others = product(dim for axis, dim in enumerate(result) if axis != hole)
        result[hole] = unknown() if source is None or others == 0 else floor_div(product(source), others)
    return tuple(result)


def _flattened(source: Dims, axis: int) -> Dims:
    axis = axis if axis >= 0 else axis + len(source)
    return product(source[:axis]), product(source[axis:])


def _squeezed(source: Dims, axes: Sequence[int] | None) -> Dims | None:
    if axes is None:
        fixed = all(isinstance(dim, int) or is_positive(dim - 1) for dim in source)
        return tuple(dim for dim in source if dim != 1) if fixed else None
    gone = set(from_front(axes, len(source)))
    return tuple(dim for axis, dim in enumerate(source) if axis not in gone)


def _unsqueezed(source: Dims, axes: Sequence[int]) -> Dims:
    rank = len(source) + len(axes)
    new, rest = set(from_front(axes, rank)), iter(source)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


Group: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"
"""Axes of a tensor before a reshape, and the axes that the same elements have after it."""


def groups(before: Dims, after: Dims) -> list[Group]:
    """Return the smallest groups of axes that a reshape makes of each other, axes of size 1 left out.

    `[8, 3, 4, 5]` to `[8, 12, 1, 5]` is `(0,) -> (0,)`, `(1, 2) -> (1,)`, `(3,) -> (3,)`. Raises Refuse.
    """
    left, right = _longer(before), _longer(after)
    found: list[Group] = []
    while left and right:
        counts = next(
            (
                (m, total - m)
                for total in range(2, len(left) + len(right) + 1)
                for m in range(max(1, total - len(right)), min(total, len(left) + 1))
                if equal(product(before[a] for a in left[:m]), product(after[a] for a in right[: total - m]))
            ),
            None,
        )
        if counts is None:
            break
        found.append((tuple(left[: counts[0]]), tuple(right[: counts[1]])))
        left, right = left[counts[0] :], right[counts[1] :]
    if left or right:
        raise Refuse(f"the shape {list(before)} is not known to be {list(after)} by axes")
    return found


def _longer(dims: Dims) -> list[int]:
    if any(isinstance(dim, int) and dim == 0 for dim in dims):
        raise Refuse("the tensor is empty")
    return [axis for axis, dim in enumerate(dims) if dim != 1]


def regrouped(order: Sequence[int], parts: Sequence[Group]) -> list[int]:
    """Return where axes in this order go in a reshape: the axes after it, for those before it, group by group.

    Raises Refuse when a group is torn apart or its axes change their order.
    """
    first = {own[0]: (own, other) for own, other in parts}
    result: list[int] = []
    position = 0
    while position < len(order):
        own, other = first.get(order[position], ((), ()))
        if not own or tuple(order[position : position + len(own)]) != own:
            raise Refuse("axes that are reshaped together are transposed apart")
        result += other
        position += len(own)
    return result


def as_target(source: Dims, wanted: Sequence[Dim]) -> list[int] | None:
    """Return a constant target for Reshape that gives the shape `wanted`; a -1 in it stays what it is.

    A size that is that of the same axis of `source` is written 0, one other -1: only where the rest is known not to be
    0, since Reshape cannot tell what -1 stands for in an empty tensor.
    """
    result = [
        size if isinstance(size, int) else 0 if axis < len(source) and equal(size, source[axis]) else -1
        for axis, size in enumerate(wanted)
    ]
    holes = result.count(-1)
    if holes > 1 or any(isinstance(size, int) and size == 0 for size in wanted):
        return None
    rest = product(size for size, number in zip(wanted, result, strict=True) if number != -1)
    return result if not holes or -1 in wanted or is_positive(rest) else None
