"""Which constants take a factor for each channel of an activation, so that nothing has to be computed for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from infconv.passes._values import constant, dtype_of, known_shape, rank, tensor
from infconv.quantize._constants import set_constant
from infconv.quantize._placement import Layer, layers_of

Array = np.ndarray[Any, np.dtype[Any]]
Site: TypeAlias = tuple[ir.Value, int]
"""A constant, and its axis of channels counted from the end (-1: the last)."""

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity"})
"""f(s x) = s f(x) for s > 0."""


def readers_by_input(model: ir.Model, operators: Collection[str]) -> Iterator[tuple[ir.Value, list[Layer]]]:
    """Yield each activation that layers alone read, with those layers; their weights are used nowhere else."""
    readers: dict[ir.Value, list[Layer]] = {}
    for layer in layers_of(model, operators):
        readers.setdefault(layer.data, []).append(layer)
    for value, layers in readers.items():
        only = not value.is_graph_output() and len(value.uses()) == len(layers)
        if only and all(_is_own(layer.weight) for layer in layers):
            yield value, layers


def sites(value: ir.Value) -> tuple[Site, ...]:
    """Return the constants that, multiplied, multiply each channel (the last axis) of `value`; empty when none do."""
    return _sites(value) or ()


def _sites(value: ir.Value) -> tuple[Site, ...] | None:
    node = value.producer()
    if node is None or node.domain != "" or value.is_graph_output() or dtype_of(value) != ir.DataType.FLOAT:
        return None
    first = node.inputs[0] if node.inputs else None
    if node.op_type in _NORMS:
        return _of_norm(node)
    if node.op_type in _HOMOGENEOUS and first is not None and _has_one_reader(first):
        return _sites(first)
    if node.op_type in {"MatMul", "Gemm"}:
        return _of_product(node)
    if node.op_type == "Mul":
        return next((found for i in (0, 1) if (found := _of_factor(node, i))), None)
    if node.op_type == "Add":
        found = [_of_factor(node, i) for i in (0, 1)]
        return None if found[0] is None or found[1] is None else (*found[0], *found[1])
    return None


def _of_norm(node: ir.Node) -> tuple[Site, ...] | None:
    """Return scale and bias of a norm over the last axis."""
    axis, source = node.attributes.get_int("axis", -1), node.inputs[0]
    if axis != -1 and (rank(source) is None or axis != (rank(source) or 0) - 1):
        return None
    constants = [value for value in node.inputs[1:] if value is not None]
    if not constants or not all(_is_vector(value) and _is_own(value) for value in constants):
        return None
    return tuple((value, -1) for value in constants)


def _of_product(node: ir.Node) -> tuple[Site, ...] | None:
    """Return weight and bias of a layer."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or tensor(weight) is None or len(known_shape(weight) or ()) != 2 or not _is_own(weight):
        return None
    axis = -2 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) else -1
    if bias is None:
        return ((weight, axis),)
    return ((weight, axis), (bias, -1)) if _is_vector(bias) and _is_own(bias) else None


def _of_factor(node: ir.Node, index: int) -> tuple[Site, ...] | None:
    """Return what one of the two operands of a Mul or Add gives: itself, or what makes it."""
    value, output = node.inputs[index], node.outputs[0]
    if value is None:
        return None
    if tensor(value) is not None:
        channels = (known_shape(value) or (1,))[-1]
        shape = output.shape
        whole = shape is not None and len(shape) > 0 and shape[-1] == channels
        return ((value, -1),) if whole and _is_vector(value) and _is_own(value) else None
    same = value.shape is not None and output.shape is not None and value.shape[-1:] == output.shape[-1:]
    return _sites(value) if same and _has_one_reader(value) else None


def _has_one_reader(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _is_own(value: ir.Value) -> bool:
    """Whether one node alone reads a constant, in float."""
    return _has_one_reader(value) and not value.is_graph_input() and dtype_of(value) == ir.DataType.FLOAT


def _is_vector(value: ir.Value) -> bool:
    """Whether a constant has elements along the last axis only."""
    shape = known_shape(value)
    return tensor(value) is not None and bool(shape) and all(size == 1 for size in shape[:-1])


def multiply(found: Collection[Site], factors: Array) -> None:
    """Multiply each constant of `found` by `factors` [channels], in place."""
    for value, axis in found:
        array = constant(value)
        assert array is not None
        shape = [-1, *[1] * (-axis - 1)]
        set_constant(value, ir.tensor((array * factors.reshape(shape)).astype(np.float32), name=value.name))


def weight_by_input(layer: Layer) -> Array:
    """Return a product's weight as [inputs, outputs]."""
    weight = constant(layer.weight)
    assert weight is not None
    return weight.T if layer.axis == 0 else weight


def input_site(layer: Layer) -> Site:
    """Return a product's weight with its axis of inputs."""
    return layer.weight, -1 if layer.axis == 0 else -2
