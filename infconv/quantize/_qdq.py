"""Write QuantizeLinear and DequantizeLinear into a graph, as a placement and its parameters say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes._values import constant, scalar
from infconv.quantize._names import unique
from infconv.quantize._placement import Layer, Placed, Placement
from infconv.quantize._schemes import Params, Weights

Array = np.ndarray[Any, np.dtype[Any]]

_BIAS_LIMIT = float(1 << 30)
"""INT32 biases stay below this, so that adding the products cannot overflow."""


@dataclasses.dataclass(frozen=True)
class QuantisedLayer:
    """What a layer's constants become."""

    weights: Weights
    bias: Array | None
    """In float32, corrected; None: the layer has none."""


class Inserter:
    """Changes a model in place."""

    def __init__(self, model: ir.Model, placement: Placement) -> None:
        self._graph, self._placement = model.graph, placement
        self._names = {value.name for value in (*self._graph.inputs, *self._graph.initializers.values())}
        for node in self._graph.all_nodes():
            self._names |= {node.name, *(value.name for value in node.outputs)}
        self._weights: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def insert(self, placed: Placed, params: Mapping[int, Params], constants: Mapping[ir.Node, QuantisedLayer]) -> int:
        """Insert a pair at each tensor of `placed`, quantise the layers' constants; return the number of pairs."""
        pairs = [(value, group) for value, group in placed.tensors.items() if placed.readers[value]]
        for value, group in pairs:
            self._quantise_tensor(value, params[group], placed)
        for layer in placed.layers:
            self._quantise_layer(layer, constants[layer.node], params[placed.tensors[layer.data]])
        return len(pairs) + len(placed.layers)

    def _quantise_tensor(self, value: ir.Value, params: Params, placed: Placed) -> None:
        source = value
        activation = placed.folded.get(value)
        if activation is not None and is_redundant(activation, params):
            assert activation.inputs[0] is not None
            source = activation.inputs[0]
        scale = self._constant(f"{value.name}_scale", np.float32(params.scale))
        zero = self._constant(f"{value.name}_zero_point", np.dtype(params.grid.dtype).type(params.zero))
        quantised = self._node("QuantizeLinear", [source, scale, zero], value, "quantized", zero.dtype)
        real = self._node("DequantizeLinear", [quantised, scale, zero], value, "dequantized", ir.DataType.FLOAT)
        for node, index in placed.readers[value]:
            node.replace_input_with(index, real)
        _insert(self._graph, source, [quantised, real])
        if source is not value and not value.uses() and not value.is_graph_output() and activation is not None:
            self._graph.remove(activation, safe=True)

    def _quantise_layer(self, layer: Layer, constants: QuantisedLayer, params: Params) -> None:
        weights = constants.weights
        if constants.bias is not None and self._placement.bias:
            weights = widened(weights, constants.bias, params.scale)
        layer.node.replace_input_with(1, self._weight(layer, weights))
        if constants.bias is None:
            return
        if self._placement.bias:
            bias = self._integer_bias(layer, constants.bias, params.scale * weights.scales.astype(np.float64))
        elif layer.bias is not None and np.array_equal(constants.bias, constant(layer.bias)):  # pyright: ignore
            return
        else:
            bias = self._constant(f"{layer.name}_bias", constants.bias)
        if len(layer.node.inputs) < 3:
            layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, bias)

    def _weight(self, layer: Layer, weights: Weights) -> ir.Value:
        key = (layer.weight, weights.scales.tobytes())
        if key not in self._weights:
            name = layer.weight.name or layer.name
            integers = self._constant(f"{name}_quantized", weights.integers)
            scales = self._constant(f"{name}_scale", weights.scales)
            zeros = self._constant(f"{name}_zero_point", np.zeros(len(weights.scales), np.int8))
            attributes = [ir.AttrInt64("axis", weights.axis)]
            real = self._node(
                "DequantizeLinear",
                [integers, scales, zeros],
                layer.weight,
                "dequantized",
                ir.DataType.FLOAT,
                attributes,
            )
            _insert(self._graph, None, [real])
            self._weights[key] = real
        return self._weights[key]

    def _integer_bias(self, layer: Layer, bias: Array, scales: Array) -> ir.Value:
        name = (layer.bias.name if layer.bias is not None else None) or f"{layer.name}_bias"
        scales = scales.astype(np.float32)
        integers = self._constant(f"{name}_quantized", np.rint(bias / scales.astype(np.float64)).astype(np.int32))
        zeros = self._constant(f"{name}_zero_point", np.zeros(len(scales), np.int32))
        inputs = [integers, self._constant(f"{name}_scale", scales), zeros]
        real = self._node(
            "DequantizeLinear", inputs, None, f"{name}_dequantized", ir.DataType.FLOAT, [ir.AttrInt64("axis", 0)]
        )
        real.shape = ir.Shape([len(scales)])
        _insert(self._graph, None, [real])
        return real

    def _constant(self, name: str, array: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(array), name=unique(name, self._names))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(list(np.shape(array))),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        like: ir.Value | None,
        suffix: str,
        dtype: ir.DataType | None,
        attributes: list[ir.Attr] | None = None,
    ) -> ir.Value:
        """Return the output of a new node, which is not in the graph yet."""
        name = unique(f"{like.name}_{suffix}" if like is not None else suffix, self._names)
        shape = like.shape.copy() if like is not None and like.shape is not None else None
        output = ir.Value(name=name, type=ir.TensorType(dtype or ir.DataType.FLOAT), shape=shape)
        ir.Node("", op_type, inputs, attributes or [], outputs=[output], name=unique(f"{name}_{op_type}", self._names))
        return output


def _insert(graph: ir.Graph, source: ir.Value | None, outputs: list[ir.Value]) -> None:
    """Put the nodes of `outputs` right behind the one that computes `source`; in front of all where none does."""
    nodes = [node for node in (output.producer() for output in outputs) if node is not None]
    producer = None if source is None else source.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    elif len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)


def is_redundant(activation: ir.Node, params: Params) -> bool:
    """Whether a quantiser with `params` cuts where `activation` (Relu or Clip) does."""
    low, high = params.range()
    if activation.op_type == "Relu":
        return low >= 0.0
    ends = [scalar(value) if value is not None else None for value in (*activation.inputs[1:3], None, None)][:2]
    given = [value is not None for value in (*activation.inputs[1:3], None, None)][:2]
    if any(is_there and end is None for is_there, end in zip(given, ends, strict=True)):
        return False
    half = params.scale / 2
    least, most = ends
    return (least is None or low >= least - 1e-9) and (most is None or high <= most + half)


def widened(weights: Weights, bias: Array, scale: float) -> Weights:
    """Return weights whose scales are large enough for the bias to fit INT32 in steps of `scale` times theirs.

    A channel of tiny weights beside a large bias would overflow: its weights may as well be coarser.
    """
    needed = (np.abs(bias.astype(np.float64)) / (_BIAS_LIMIT * scale)).astype(np.float32)
    short = needed > weights.scales
    if not short.any():
        return weights
    scales = np.where(short, needed, weights.scales).astype(np.float32)
    shape = [-1 if i == weights.axis else 1 for i in range(weights.integers.ndim)]
    ratio = (weights.scales / scales).reshape(shape)
    integers = np.clip(np.rint(weights.integers * ratio), -127, 127).astype(np.int8)
    return Weights(integers, scales, weights.axis)
