"""Quantise matrix products to INT8 with scales that are computed at run time: no calibration data is needed."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from infconv.errors import UnsupportedError
from infconv.passes import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import take_over
from infconv.passes._values import constant
from infconv.quantize._placement import Layer, layers_of
from infconv.quantize._schemes import quantise_weight

_COMPUTE = frozenset({"MatMul", "Gemm"})
_OPSET = 11
"""The first opset with DynamicQuantizeLinear."""


class QuantizeDynamic(Pass):
    """Compute products with constant weights in INT8, activations quantised at run time (DynamicQuantizeLinear).

    Convolutions stay float: ConvInteger is several times slower than a float convolution in ONNX Runtime.
    """

    keep: tuple[str, ...] = ()
    """Layers that stay float: names, patterns such as `*/head/*`, operators such as `op:Gemm`."""
    reduce_range: bool = False
    """Use 7 bits for weights: on processors before AVX-512 VNNI products of 8 bits may saturate."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Quantise in place and return the number of products. Raises UnsupportedError for opsets before 11."""
        layers = [layer for layer in layers_of(model, _COMPUTE) if not self._is_kept(layer.node)]
        opset = model.graph.opset_imports.get("", 0)
        if layers and opset < _OPSET:
            raise UnsupportedError(
                f"Dynamic INT8 needs opset {_OPSET} or later; the model has {opset}.", "Add --opset 20."
            )
        names = Names(model)
        quantised: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        for layer in layers:
            _replace(layer, model, names, quantised, 63 if self.reduce_range else 127)
        if any(node.op_type == "Conv" for node in model.graph):
            context.notes.append("Convolutions stay float: INT8 for them needs --calibration.")
        return len(layers)

    def _is_kept(self, node: ir.Node) -> bool:
        name = node.name or node.outputs[0].name or ""
        return any(p == f"op:{node.op_type}" or fnmatchcase(name, p) for p in self.keep)


def _replace(
    layer: Layer,
    model: ir.Model,
    names: Names,
    quantised: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]],
    most: int,
) -> None:
    """Replace a product by the form that ONNX Runtime fuses to one kernel: MatMulInteger, Cast, Mul, Add."""
    weight = constant(layer.weight)
    assert weight is not None
    matrix, axis = (weight.T, 1) if layer.axis == 0 else (weight, layer.axis)  # Gemm with transB
    weights = quantise_weight(np.ascontiguousarray(matrix), axis, most)
    node, graph = layer.node, model.graph
    op = Builder(graph, graph.opset_imports, names, f"{layer.label}/", initializers=True)
    if layer.data not in quantised:
        quantised[layer.data] = op.DynamicQuantizeLinear(layer.data, _outputs=3)
    integers, scale, zero = quantised[layer.data]
    product = op.MatMulInteger(integers, op.const(weights.integers), zero, op.const(np.int8(0)))
    scales = op.Mul(scale, op.const(weights.scales))
    result = op.Mul(op.Cast(product, to=int(ir.DataType.FLOAT)), scales, _like=node.outputs[0])
    third = node.inputs[2] if len(node.inputs) > 2 else None
    if third is not None:
        result = op.Add(result, third, _like=node.outputs[0])
    op.add_to_graph(node)
    take_over(node.outputs[0], result)
    graph.remove(node, safe=True)
