"""Which of the nodes that the rules keep in FP32 are harmless in FP16, as samples and the graph around them show.

The rules think of the worst: squares that overflow, divisors that vanish, long sums. Where every value around a node
stays far inside the range on the samples, and the graph itself sees to it that a divisor cannot vanish on others (an
epsilon is added to something that is not negative), there is nothing of that. Whether the outputs then agree is for a
trial to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from infconv.passes._values import scalar
from infconv.quantize._constants import examine
from infconv.quantize._formats import Format
from infconv.quantize._schemas import names
from infconv.quantize._wires import Wiring, constant_tensor

_SOFT = names("ReduceMean ReduceSum ReduceSumSquare Sum Mean Exp Pow Reciprocal Div Mul Log")
"""Operators whose danger shows in the values around them."""
_PASSES = names("Identity Reshape Unsqueeze Squeeze Expand Cast Transpose")
_NOT_NEGATIVE = names("Abs Relu Exp Sqrt Sigmoid Softmax ReduceSumSquare ReduceL1 ReduceL2")
_AS_ITS_INPUT = _PASSES | names("ReduceMean ReduceSum ReduceMax ReduceMin")
_MARGIN = 64.0
"""How far inside the format's range the values must stay."""
_LEAST = 2.0**-10
"""The least that a divisor may become."""
_DEPTH = 6
TOLERATED_LOSS = 4e-3
"""A constant may lose this share of its norm: eight times the rounding of FP16."""


def calm(wiring: Wiring, nodes: Iterable[ir.Node], maxima: Mapping[ir.Value, float]) -> list[ir.Node]:
    """Return those of `nodes` that are harmless; `maxima`: the largest magnitudes of values on samples."""
    return [node for node in nodes if _is_calm(wiring, node, maxima)]


def is_in_range(wiring: Wiring, node: ir.Node, maxima: Mapping[ir.Value, float], margin: float) -> bool:
    """Whether what `node` reads and writes was measured, and stays `margin` times below the format's limit."""
    wires = (wiring.wires.get(value) for value in (*node.inputs, *node.outputs) if value is not None)
    values = [wire.value for wire in wires if wire is not None and wire.source is not None]
    return all(maxima.get(value, math.inf) <= wiring.narrow.largest / margin for value in values)


def _is_calm(wiring: Wiring, node: ir.Node, maxima: Mapping[ir.Value, float]) -> bool:
    if node.op_type not in _SOFT or node.domain != "" or not is_in_range(wiring, node, maxima, _MARGIN):
        return False
    wires = (wiring.wires.get(value) for value in node.inputs if value is not None)
    constants = [constant_tensor(wire.value) for wire in wires if wire is not None and wire.source is None]
    return _is_bounded(node) and all(_bears(tensor, wiring.narrow) for tensor in constants)


def _is_bounded(node: ir.Node) -> bool:
    """Whether no other input than the samples can make the result of `node` leave the range at a stroke."""
    match node.op_type:
        case "Div":
            return _floor(node.inputs[1]) >= _LEAST
        case "Log" | "Reciprocal":
            return _floor(node.inputs[0]) >= _LEAST
        case "Pow":
            return _is_bounded_power(node)
        case "Exp":
            return _is_below_its_maximum(node.inputs[0])
        case "Mul":
            factors = [value.producer() for value in node.inputs if value is not None]
            return all(_is_bounded(f) for f in factors if f is not None and f.op_type in {"Reciprocal", "Pow"})
        case _:
            return True


def _is_bounded_power(node: ir.Node) -> bool:
    exponent = scalar(node.inputs[1])
    if exponent is None:
        return False
    return 0 <= exponent <= 2 or (exponent < 0 and _floor(node.inputs[0]) ** -exponent >= _LEAST)


def _is_below_its_maximum(value: ir.Value | None) -> bool:
    """Whether `value` is something minus its own maximum."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Sub" or node.inputs[1] is None:
        return False
    maximum = node.inputs[1].producer()
    return maximum is not None and maximum.op_type == "ReduceMax" and maximum.inputs[0] is node.inputs[0]


def _floor(value: ir.Value | None, depth: int = _DEPTH) -> float:
    """Return what `value` is never below; 0 where the graph does not say."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or not depth:
        return 0.0
    if node.op_type in _PASSES:
        return _floor(node.inputs[0], depth - 1)
    if node.op_type == "Sqrt":
        return math.sqrt(_floor(node.inputs[0], depth - 1))
    if node.op_type in {"Add", "Max", "Clip"} and len(node.inputs) > 1:
        first, second = node.inputs[:2]
        least = scalar(second)
        if least is None and node.op_type != "Clip":
            least, first = scalar(first), second
        safe = node.op_type != "Add" or _is_not_negative(first, depth - 1)
        return max(least, 0.0) if least is not None and safe else 0.0
    return 0.0


def _is_not_negative(value: ir.Value | None, depth: int) -> bool:
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or not depth:
        return False
    if node.op_type in _AS_ITS_INPUT:
        return _is_not_negative(node.inputs[0], depth - 1)
    is_square = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    return is_square or node.op_type in _NOT_NEGATIVE or (node.op_type == "Pow" and scalar(node.inputs[1]) == 2)


def _bears(tensor: ir.TensorProtocol, narrow: Format) -> bool:
    loss = examine(tensor, narrow)
    return loss.largest <= narrow.largest / _MARGIN and loss.relative <= TOLERATED_LOSS
