"""Between which bounds every INT64 value of a graph lies, as far as the graph itself proves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import onnx_ir as ir

from infconv.quantize._identity import constant_of
from infconv.quantize._schemas import names

LARGEST_DIM = 2**31 - 1
"""No runtime allocates a tensor with a longer dimension."""
_SAME = names(
    "Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather GatherElements GatherND Split Expand Tile Cast",
    "ReduceMax ReduceMin Compress ReverseSequence DepthToSpace SpaceToDepth",
)
"""Their outputs hold elements of their first input."""
_ANY_OF = names("Concat Where")
"""Their outputs hold elements of one of their inputs, the condition of Where aside."""
_INDICES = names("ArgMax ArgMin NonZero")
_INTEGERS = {
    ir.DataType.BOOL: (0, 1),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
    ir.DataType.UINT32: (0, 2**32 - 1),
}


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float

    def fits(self) -> bool:
        """Whether an INT32 holds every number in it."""
        return self.low >= -(2**31) and self.high <= 2**31 - 1


ANYTHING = Interval(-math.inf, math.inf)


def intervals(graph: ir.Graph) -> dict[ir.Value, Interval]:
    """Return the bounds of every integer value that a node of `graph` (its subgraphs aside) writes or a constant holds.

    An input has none, except one that only serves as an index: a model is only defined where it lies in the table.
    """
    known: dict[ir.Value, Interval] = {}
    for value in graph.inputs:
        known[value] = _as_index(value)
    for node in graph:
        inputs = [_of(value, known) for value in node.inputs]
        for position, value in enumerate(node.outputs):
            known[value] = _output(node, position, inputs)
    return known


def _of(value: ir.Value | None, known: Mapping[ir.Value, Interval]) -> Interval:
    if value is None:
        return ANYTHING
    tensor = constant_of(value)
    if tensor is not None:
        if not tensor.dtype.is_integer() or not tensor.size:
            return ANYTHING
        array = tensor.numpy()
        return Interval(int(array.min()), int(array.max()))
    if value in known and known[value] != ANYTHING:
        return known[value]
    bounds = _INTEGERS.get(value.dtype) if value.dtype is not None else None
    return ANYTHING if bounds is None else Interval(*bounds)


def _as_index(value: ir.Value) -> Interval:
    """Return the bounds of an input that every reader uses as an index into a table of known length."""
    lengths: list[int] = []
    for node, position in value.uses():
        table = node.inputs[0] if node.op_type in {"Gather", "GatherElements"} and position == 1 else None
        axis = node.attributes.get_int("axis", 0)
        if table is None or table.shape is None or not isinstance(table.shape[axis], int):
            return ANYTHING
        lengths.append(int(table.shape[axis]))  # type: ignore[arg-type]
    if not lengths or value.is_graph_output():
        return ANYTHING
    return Interval(-min(lengths), min(lengths) - 1)


def _output(node: ir.Node, position: int, inputs: list[Interval]) -> Interval:
    kind = node.op_type
    if node.domain != "" or not inputs:
        return ANYTHING
    if kind in _SAME:
        return inputs[0] if kind != "Cast" or _is_integer(node.inputs[0]) else ANYTHING
    if kind in _ANY_OF:
        parts = inputs[1:] if kind == "Where" else inputs
        return Interval(min(p.low for p in parts), max(p.high for p in parts))
    if kind in {"Min", "Max"}:
        choose = min if kind == "Min" else max
        return Interval(choose(p.low for p in inputs), choose(p.high for p in inputs))
    if kind in {"Shape", "Size"}:
        return _dims(node)
    if kind in _INDICES or (kind == "TopK" and position == 1):
        return Interval(0, LARGEST_DIM)
    if kind == "Clip":
        return _clip(node, inputs)
    rule = _ARITHMETIC.get(kind)
    return rule(*inputs) if rule is not None else ANYTHING


def _is_integer(value: ir.Value | None) -> bool:
    return (
        value is not None and value.dtype is not None and (value.dtype in _INTEGERS or value.dtype == ir.DataType.INT64)
    )


def _dims(node: ir.Node) -> Interval:
    source = node.inputs[0]
    if node.op_type == "Size" or source is None:
        return ANYTHING
    sizes = [] if source.shape is None else [d if isinstance(d, int) else LARGEST_DIM for d in source.shape]
    return Interval(0, max(sizes, default=LARGEST_DIM))


def _add(a: Interval, b: Interval) -> Interval:
    return Interval(a.low + b.low, a.high + b.high)


def _subtract(a: Interval, b: Interval) -> Interval:
    return Interval(a.low - b.high, a.high - b.low)


def _multiply(a: Interval, b: Interval) -> Interval:
    if ANYTHING in (a, b):
        return ANYTHING
    corners = [x * y for x in a for y in b]
    return Interval(min(corners), max(corners))


def _divide(a: Interval, b: Interval) -> Interval:
    """Division rounds towards zero (or down), so that the magnitude never grows, whatever the divisor."""
    if a == ANYTHING:
        return ANYTHING
    largest = max(abs(a.low), abs(a.high))
    return Interval(0, a.high) if a.low >= 0 and b.low >= 0 else Interval(-largest, largest)


def _negate(a: Interval) -> Interval:
    return Interval(-a.high, -a.low)


def _absolute(a: Interval) -> Interval:
    return Interval(0, max(abs(a.low), abs(a.high)))


def _remainder(a: Interval, b: Interval) -> Interval:
    largest = max(abs(b.low), abs(b.high))
    return Interval(-largest, largest)


def _clip(node: ir.Node, inputs: list[Interval]) -> Interval:
    a = inputs[0]
    low, high = (
        inputs[i] if len(inputs) > i and node.inputs[i] is not None else Interval(absent, absent)
        for i, absent in ((1, -math.inf), (2, math.inf))
    )
    return Interval(min(max(a.low, low.low), high.low), min(max(a.high, low.high), high.high))


def _range(start: Interval, limit: Interval, _delta: Interval) -> Interval:
    return Interval(min(start.low, limit.low), max(start.high, limit.high))


_ARITHMETIC: dict[str, Callable[..., Interval]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Neg": _negate,
    "Abs": _absolute,
    "Mod": _remainder,
    "Range": _range,
}
