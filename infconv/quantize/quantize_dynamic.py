"""Quantise matrix products to INT8 with scales that are computed at run time: no calibration data is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.errors import UnsupportedError
from infconv.passes import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import take_over
from infconv.passes._values import constant
from infconv.quantize._latency import RUNTIMES
from infconv.quantize._never_slower import leave_slow_groups
from infconv.quantize._placement import Layer, is_kept, layers_of
from infconv.quantize._schemes import quantise_weight
from infconv.quantize._tables import quantise_tables

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
    never_slower: bool = True
    """Leave groups of layers float that are not faster in INT8, measured where the target runs on this machine."""

    least_table: int = Field(65536, ge=0)
    """Embeddings of at least this many elements are stored in 8 bits, a scale for each row; 0: none."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Quantise in place and return how many operators changed. Raises UnsupportedError below opset 11."""
        layers = [layer for layer in layers_of(model, _COMPUTE) if not is_kept(layer.node, self.keep)]
        opset = model.graph.opset_imports.get("", 0)
        if layers and opset < _OPSET:
            raise UnsupportedError(
                f"Dynamic INT8 needs opset {_OPSET} or later; the model has {opset}.", "Add --opset 20."
            )
        if self.never_slower and context.target in RUNTIMES and context.samples and layers:
            verdict = leave_slow_groups(
                context.target, model, layers, lambda floats: self._clone(model, layers, floats), context.samples[0]
            )
            context.notes.extend(verdict.notes)
            layers = [layer for layer in layers if verdict.pays and layer.name not in verdict.floats]
        self._quantise(model, layers)
        tables = quantise_tables(model, Names(model), self.least_table, self.keep) if self.least_table else 0
        if any(node.op_type == "Conv" for node in model.graph):
            context.notes.append("Convolutions stay float: INT8 for them needs --calibration.")
        return len(layers) + tables

    def _clone(self, model: ir.Model, layers: Sequence[Layer], floats: frozenset[str]) -> ir.Model:
        """Return a copy with all layers but those named `floats` quantised."""
        clone = model.clone()
        names = {layer.name for layer in layers} - floats
        self._quantise(clone, [layer for layer in layers_of(clone, _COMPUTE) if layer.name in names])
        return clone

    def _quantise(self, model: ir.Model, layers: Sequence[Layer]) -> None:
        names = Names(model)
        quantised: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        for layer in layers:
            _replace(layer, model, names, quantised, 63 if self.reduce_range else 127)


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
