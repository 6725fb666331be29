"""Count what a graph holds: operators, weights, and in which types its heavy operators compute."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from infconv.model import all_graphs

if TYPE_CHECKING:
    import onnx_ir as ir

COMPUTE = frozenset(
    {
        *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv"),
        *("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "FusedGemm", "DynamicQuantizeMatMul"),
        *("MatMulNBits", "Attention", "MultiHeadAttention", "GroupQueryAttention", "Einsum", "LSTM", "GRU", "RNN"),
    }
)
"""Operators that take the time of nearly every network; the precision of a model is the precision of these."""


@dataclasses.dataclass(frozen=True)
class Census:
    """What a model holds."""

    nodes: int
    operators: Mapping[str, int]
    """Operator (with its domain, when not the standard one) -> count, most frequent first."""
    weights_bytes: int
    parameters: int
    """Elements of floating-point and quantised initializers."""


def take_census(model: ir.Model) -> Census:
    """Count nodes (subgraphs and functions included), operators and weights."""
    operators = collections.Counter(operator_name(node) for node in all_nodes(model))
    tensors = [
        value.const_value for graph in all_graphs(model) for value in graph.initializers.values() if value.const_value
    ]
    return Census(
        nodes=sum(operators.values()),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        weights_bytes=sum(tensor.nbytes for tensor in tensors),
        parameters=sum(
            tensor.size for tensor in tensors if not tensor.dtype.is_integer() or tensor.dtype.bitwidth <= 8
        ),
    )


def operator_name(node: ir.Node) -> str:
    """Return `Conv`, or `com.microsoft.FusedConv` outside the standard domain."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the graph, its subgraphs and the functions."""
    for graph in all_graphs(model):
        yield from graph


def compute_depth(model: ir.Model) -> int:
    """Return the most compute operators that follow on each other in the main graph."""
    depth: dict[ir.Value, int] = {}
    for node in model.graph:
        below = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        depth.update(dict.fromkeys(node.outputs, below + (node.op_type in COMPUTE)))
    return max((depth.get(value, 0) for value in model.graph.outputs), default=0)


def compute_types(model: ir.Model) -> dict[str, int]:
    """Return type name -> number of compute operators that run in it, e.g. {"float16": 53}.

    The type is that of the first operand; one that comes from a DequantizeLinear counts as its quantised type, since
    that pattern is how ONNX writes an integer kernel.
    """
    counts: collections.Counter[str] = collections.Counter()
    for node in all_nodes(model):
        if node.op_type in COMPUTE and node.inputs:
            counts[compute_type(node)] += 1
    return dict(counts)


def compute_type(node: ir.Node) -> str:
    """Return the type that a compute operator runs in, as `compute_types` counts it."""
    operand = node.inputs[0]
    if operand is None:
        return "unknown"
    producer = None if _has_float_weight(node) else _behind_moves(operand)
    if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
        operand = producer.inputs[0]
    if node.op_type == "MatMulNBits":
        return f"int{node.attributes.get_int('bits', 4)}"
    if _is_4_bit(node):
        return "int4"
    name = _UNSIGNED.get(_type_name(operand), _type_name(operand))
    if name != "unknown":
        return name
    # A value without type information: the operator's weight has the type of its activation.
    return next((_type_name(v) for v in node.inputs[1:] if v is not None and v.const_value is not None), "unknown")


_UNSIGNED = {"uint8": "int8", "uint4": "int4"}
"""The sign is a matter of the zero point."""


_MOVES = frozenset(
    {
        *("MaxPool", "AveragePool", "Concat", "Split", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"),
        *("Resize", "Slice", "Gather", "Tile", "Expand", "DepthToSpace", "SpaceToDepth", "Identity", "ReduceMax"),
    }
)
"""What a compiler moves a DequantizeLinear through, to the operator that computes."""


def _behind_moves(value: ir.Value) -> ir.Node | None:
    """Return what computes `value`, operators that only move elements aside."""
    producer = value.producer()
    while producer is not None and producer.op_type in _MOVES and producer.inputs and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer


def _has_float_weight(node: ir.Node) -> bool:
    """Whether the second operand is a constant in a float type: then there is no integer kernel for the node."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return weight is not None and weight.const_value is not None and weight.const_value.dtype.is_floating_point()


def _is_4_bit(node: ir.Node) -> bool:
    """Whether the weight comes from a DequantizeLinear of 4-bit integers."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    producer = None if weight is None else weight.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return False
    dtype = producer.inputs[0].dtype
    return dtype is not None and dtype.bitwidth == 4


def _type_name(value: ir.Value) -> str:
    if value.dtype is None:
        return "unknown"
    return numpy_name(value.dtype)


def numpy_name(dtype: ir.DataType) -> str:
    """Return the type's name as numpy spells it."""
    return {"FLOAT": "float32", "DOUBLE": "float64", "STRING": "str"}.get(dtype.name, dtype.name.lower())
