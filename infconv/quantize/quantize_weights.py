"""Store the weights of matrix products in 4 or 8 bits; activations stay float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.errors import UnsupportedError
from infconv.passes import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import take_over
from infconv.passes._values import known_shape, tensor
from infconv.quantize._absorb import weight_by_input
from infconv.quantize._blocks import Blocks, gptq, round_to_nearest
from infconv.quantize._hessians import in_parts, input_moments
from infconv.quantize._placement import Layer, is_kept, layers_of
from infconv.quantize._tables import quantise_tables

Array = np.ndarray[Any, np.dtype[Any]]

_COMPUTE = frozenset({"MatMul", "Gemm"})
_OPSET = 21
"""The first opset whose DequantizeLinear has blocks and 4 bits."""


class QuantizeWeights(Pass):
    """Store the weights of matrix products in blocks of 4 or 8 bits, each with a scale.

    With calibration data rounding errors are made up for by the weights that follow (GPTQ), without it weights are
    rounded to nearest with the scale of least error.
    """

    bits: Literal[4, 8] = 4
    """Of an integer."""
    block: Literal[16, 32, 64, 128, 256] = 32
    """Weights, along the summed dimension, that share a scale."""
    method: Literal["auto", "nearest", "gptq"] = "auto"
    """auto: gptq with calibration data."""
    least: int = Field(4096, ge=1)
    """Weights of fewer elements stay float."""
    least_table: int = Field(65536, ge=0)
    """Embeddings of at least this many elements are stored in 8 bits, a scale for each row; 0: none."""
    keep: tuple[str, ...] = ()
    """Layers that stay float: names, patterns such as `*/head/*`, operators such as `op:Gemm`."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Quantise in place and return how many weights and lookups changed. Raises UnsupportedError below opset 21."""
        layers = [layer for layer in layers_of(model, _COMPUTE) if self._takes(layer, context.target)]
        opset = model.graph.opset_imports.get("", 0)
        if layers and opset < _OPSET:
            raise UnsupportedError(f"INT4 needs opset {_OPSET} or later; the model has {opset}.", "Add --opset 21.")
        if not layers:
            context.notes.append(
                f"No weight is stored in {self.bits} bits: no MatMul or Gemm has a constant of {self.least} elements "
                "or more in float32 that the target has a kernel for."
            )
        names = Names(model)
        symmetric = context.target == "tensorrt"
        for layer, blocks in self._blocks(model, layers, context, symmetric):
            _dequantize(layer, blocks, model, names)
        tables = quantise_tables(model, names, self.least_table, self.keep) if self.least_table else 0
        return len(layers) + tables

    def _takes(self, layer: Layer, target: str) -> bool:
        """Whether the layer is large enough, not to be kept, and of a size that the target has kernels for."""
        weight = tensor(layer.weight)
        size = 0 if weight is None else weight.size
        shape = known_shape(layer.weight) or (0, 0)
        rows = shape[1 - layer.axis]
        if target == "tensorrt" and (rows % self.block or rows == self.block):
            return False  # one block, or a part of one, for a column: measured, TensorRT-RTX 1.7 computes that in float
        return size >= self.least and not is_kept(layer.node, self.keep)

    def _blocks(
        self, model: ir.Model, layers: list[Layer], context: Context, symmetric: bool
    ) -> Iterator[tuple[Layer, Blocks]]:
        """Yield each layer with its blocks; moments are collected for some layers at a time."""
        if self.method == "nearest" or context.calibration is None:
            for layer in layers:
                yield layer, round_to_nearest(weight_by_input(layer), self.block, self.bits, symmetric)
            return
        results: list[tuple[Layer, Blocks]] = []
        for group in in_parts(layers, lambda layer: len(weight_by_input(layer))):
            tensors = list(dict.fromkeys(layer.data.name or "" for layer in group))
            moments = input_moments(model, tensors, context.calibration.batches)
            results += [(layer, self._gptq(layer, moments, symmetric)) for layer in group]
        yield from results

    def _gptq(self, layer: Layer, moments: Mapping[str, Array], symmetric: bool) -> Blocks:
        return gptq(weight_by_input(layer), moments[layer.data.name or ""], self.block, self.bits, symmetric)


def _dequantize(layer: Layer, blocks: Blocks, model: ir.Model, names: Names) -> None:
    """Replace the layer by DequantizeLinear and MatMul (and Add, for a Gemm)."""
    op = Builder(model.graph, model.graph.opset_imports, names, f"{layer.label}/", initializers=True)
    signed = blocks.zeros is None
    dtype = ir.DataType[f"{'INT' if signed else 'UINT'}{blocks.bits}"]
    integers = op.const(ir.tensor(blocks.integers.astype(dtype.numpy()), dtype))
    zeros = [] if blocks.zeros is None else [op.const(ir.tensor(blocks.zeros.astype(dtype.numpy()), dtype))]
    real = op.DequantizeLinear(
        integers, op.const(blocks.scales), *zeros, axis=0, block_size=blocks.size, _like=layer.weight
    )
    real.shape = ir.Shape(blocks.integers.shape)  # of a Gemm with transB the weight's own is the other way round
    product = op.MatMul(layer.data, real, _like=layer.node.outputs[0])
    third = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if third is not None:
        product = op.Add(product, third, _like=layer.node.outputs[0])
    op.add_to_graph(layer.node)
    take_over(layer.node.outputs[0], product)
    model.graph.remove(layer.node, safe=True)
