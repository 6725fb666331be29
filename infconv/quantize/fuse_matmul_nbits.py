"""Products with weights in blocks, as ONNX Runtime's own operator."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import take_over
from infconv.passes._values import constant, tensor

Array = np.ndarray[Any, np.dtype[Any]]


class FuseMatmulNbits(Pass):
    """Replace DequantizeLinear in blocks and MatMul by com.microsoft.MatMulNBits."""

    emits: ClassVar[frozenset[str]] = frozenset({"com.microsoft"})

    def may_apply(self, operators: Collection[tuple[str, str]]) -> bool:
        """Whether there are DequantizeLinear and MatMul."""
        return {("", "DequantizeLinear"), ("", "MatMul")} <= set(operators)

    def run(self, model: ir.Model, context: Context) -> int:
        """Replace in place and return the number of products."""
        names = Names(model)
        found = [(node, dequantise) for node in model.graph if (dequantise := _weight_of(node)) is not None]
        for node, dequantise in found:
            _replace(node, dequantise, model, names)
        return len(found)


def _weight_of(node: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of a MatMul's weight, when it has blocks of 4 or 8 bits along the first axis."""
    weight = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
    producer = None if weight is None else weight.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or any(tensor(v) is None for v in producer.inputs):
        return None
    integers = tensor(producer.inputs[0])
    size = producer.attributes.get_int("block_size", 0)
    if integers is None or len(integers.shape) != 2 or size < 16 or producer.attributes.get_int("axis", 1) != 0:
        return None
    kinds = {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8}
    return producer if integers.dtype in kinds and size & (size - 1) == 0 else None


def _replace(node: ir.Node, dequantise: ir.Node, model: ir.Model, names: Names) -> None:
    place = f"{node.name or node.outputs[0].name}/"
    op = Builder(model.graph, model.graph.opset_imports, names, place, initializers=True)
    integers = tensor(dequantise.inputs[0])
    scales = constant(dequantise.inputs[1])
    assert integers is not None
    assert scales is not None
    bits, size = integers.dtype.bitwidth, dequantise.attributes.get_int("block_size", 0)
    offset = 1 << (bits - 1) if integers.dtype.is_signed() else 0
    values = integers.numpy().astype(np.int16) + offset
    given = constant(dequantise.inputs[2]) if len(dequantise.inputs) > 2 else None
    zeros = np.full(scales.shape, offset, np.int16) if given is None else given.astype(np.int16) + offset
    centred = bool((zeros == 1 << (bits - 1)).all())  # what the operator takes for granted
    rows, columns = values.shape
    product = op.call(
        "MatMulNBits",
        node.inputs[0],
        op.const(_blocks(values, size, bits)),
        op.const(np.ascontiguousarray(scales.T)),
        *([] if centred else [op.const(_packed(np.ascontiguousarray(zeros.T), bits))]),
        _domain="com.microsoft",
        _like=node.outputs[0],
        K=rows,
        N=columns,
        bits=bits,
        block_size=size,
    )
    op.add_to_graph(node)
    take_over(node.outputs[0], product)
    model.graph.remove(node, safe=True)


def _blocks(values: Array, size: int, bits: int) -> Array:
    """Return uint8 [N, blocks, size * bits / 8] of values [K, N]: K is padded, the first of two nibbles is the low."""
    rows, columns = values.shape
    padded = np.zeros((-(-rows // size) * size, columns), np.uint8)
    padded[:rows] = values
    return _packed(np.ascontiguousarray(padded.T).reshape(columns, -1, size), bits)


def _packed(values: Array, bits: int) -> Array:
    """Return bytes of `values`, two to a byte along the last axis when they have 4 bits."""
    if bits == 8:
        return values.astype(np.uint8)
    even = values.shape[-1] + values.shape[-1] % 2
    padded = np.zeros((*values.shape[:-1], even), np.uint8)
    padded[..., : values.shape[-1]] = values
    return padded[..., 0::2] | (padded[..., 1::2] << 4)
