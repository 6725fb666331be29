"""Cross-layer equalisation: give the channels between two convolutions similar ranges, without changing the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes import Context, Pass
from infconv.passes._values import constant
from infconv.quantize._constants import set_constant
from infconv.quantize._placement import Layer, layers_of

Array = np.ndarray[Any, np.dtype[Any]]

_ROUNDS = 4
_LARGEST = 1e3
"""Factors of one round stay between 1 / this and this."""


class EqualizeChannels(Pass):
    """Scale the channels between two convolutions so that the weights of both have similar ranges.

    Only where nothing or a Relu stands between: a Clip would cut elsewhere afterwards. Pays where weights
    get one scale for a whole tensor, and for activations whose channels differ much. Source: Nagel et al., "Data-Free
    Quantization Through Weight Equalization and Bias Correction", 2019.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Change weights and biases in place and return the number of pairs."""
        pairs = list(_pairs(model))
        changed: set[int] = set()
        for _ in range(_ROUNDS):
            for number, (first, second) in enumerate(pairs):
                factors = _factors(first, second)
                if not np.allclose(factors, 1.0, rtol=0.01):
                    _apply(first, second, factors)
                    changed.add(number)
        return len(changed)


def _pairs(model: ir.Model) -> Iterator[tuple[Layer, Layer]]:
    """Yield convolutions that follow on each other, through a Relu at most, each weight used once."""
    layers = {layer.node: layer for layer in layers_of(model, {"Conv"})}
    for first in layers.values():
        value = first.node.outputs[0]
        follower = _only_reader(value)
        if follower is not None and follower.op_type == "Relu" and follower.domain == "":
            value = follower.outputs[0]
            follower = _only_reader(value)
        second = layers.get(follower) if follower is not None else None
        if second is None or second.data is not value or not (_is_own(first) and _is_own(second)):
            continue
        if _is_plain(second) or _is_depthwise(second):
            yield first, second


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is_own(layer: Layer) -> bool:
    """Whether no other node reads the layer's constants, and its bias, if any, is one."""
    bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    if bias is not None and layer.bias is None:
        return False
    return all(len(value.uses()) == 1 for value in (layer.weight, layer.bias) if value is not None)


def _is_plain(layer: Layer) -> bool:
    return layer.node.attributes.get_int("group", 1) == 1


def _is_depthwise(layer: Layer) -> bool:
    weight = constant(layer.weight)
    return weight is not None and weight.shape[1] == 1 and weight.shape[0] == layer.node.attributes.get_int("group", 1)


def _ranges(first: Layer, second: Layer) -> tuple[Array, Array]:
    """Return the largest magnitude of each channel between the two, in the weight before and the one behind."""
    before, behind = constant(first.weight), constant(second.weight)
    assert before is not None
    assert behind is not None
    outer = np.abs(before).reshape(len(before), -1).max(1)
    moved = behind if _is_depthwise(second) else np.moveaxis(behind, 1, 0)
    return outer, np.abs(moved).reshape(len(moved), -1).max(1)


def _factors(first: Layer, second: Layer) -> Array:
    """Return what each channel is divided by: afterwards both ranges are their geometric mean."""
    before, behind = _ranges(first, second)
    safe = (before > 0) & (behind > 0)
    ratio = np.sqrt(np.where(safe, before, 1.0) / np.where(safe, behind, 1.0))
    return np.where(safe, np.clip(ratio, 1 / _LARGEST, _LARGEST), 1.0).astype(np.float32)


def _apply(first: Layer, second: Layer, factors: Array) -> None:
    rank = len(first.weight.shape or ()) - 1
    _multiply(first.weight, (1 / factors).reshape(-1, *[1] * rank))
    if first.bias is not None:
        _multiply(first.bias, 1 / factors)
    shape = (-1, *[1] * rank) if _is_depthwise(second) else (1, -1, *[1] * (rank - 1))
    _multiply(second.weight, factors.reshape(shape))


def _multiply(value: ir.Value, factors: Array) -> None:
    array = constant(value)
    assert array is not None
    set_constant(value, ir.tensor((array * factors).astype(np.float32), name=value.name))
