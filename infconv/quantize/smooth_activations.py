"""SmoothQuant: move the outliers of activations into the weights behind them, where each channel has its own scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.errors import UsageError
from infconv.passes import Context, Pass
from infconv.passes._values import constant
from infconv.quantize._collect import Wanted, collect
from infconv.quantize._placement import Layer, layers_of

Array = np.ndarray[Any, np.dtype[Any]]

_LAYERS = frozenset({"MatMul", "Gemm"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_LARGEST = 1e4
"""Factors stay between 1 / this and this."""


class SmoothActivations(Pass):
    """Scale the channels of normalised activations down and the weights that read them up, before quantisation.

    The model computes the same; one scale for all channels then loses less. Source: Xiao et al., "SmoothQuant", 2022.
    """

    strength: float = Field(0.5, ge=0, le=1)
    """0: nothing is moved; 1: activations have the same range in every channel."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Change norms and weights in place and return the number of norms. Raises UsageError without calibration."""
        groups = list(_groups(model))
        if not groups:
            return 0
        if context.calibration is None:
            raise UsageError("smooth-activations needs calibration data.", "Give it with --calibration.")
        wanted = [Wanted(layers[0].data.name or "", -1) for _, layers in groups]
        records = collect(model, wanted, context.calibration.batches)
        done = 0
        for (norm, layers), item in zip(groups, wanted, strict=True):
            channels = records[item.name].channels
            if channels is not None:
                done += _smooth(norm, layers, _factors(channels.absmax, layers, self.strength))
        return done


def _groups(model: ir.Model) -> Iterator[tuple[ir.Node, list[Layer]]]:
    """Yield each norm that nothing but layers with constant weights reads, with those layers."""
    readers: dict[ir.Value, list[Layer]] = {}
    for layer in layers_of(model, _LAYERS):
        readers.setdefault(layer.data, []).append(layer)
    for value, layers in readers.items():
        norm = value.producer()
        only = not value.is_graph_output() and len(value.uses()) == len(layers)
        own = all(len(layer.weight.uses()) == 1 for layer in layers)
        if norm is not None and norm.op_type in _NORMS and only and own and _is_scaled_by_channel(norm):
            yield norm, layers


def _is_scaled_by_channel(norm: ir.Node) -> bool:
    """Whether scale and bias are constants of one element for each channel, which no other node reads."""
    if norm.attributes.get_int("axis", -1) != -1:
        shape = norm.inputs[0].shape if norm.inputs[0] is not None else None
        if shape is None or norm.attributes.get_int("axis", -1) != len(shape) - 1:
            return False
    constants = [value for value in norm.inputs[1:] if value is not None]
    arrays = [constant(value) for value in constants]
    return bool(arrays) and all(
        a is not None and a.ndim == 1 and len(v.uses()) == 1 for a, v in zip(arrays, constants, strict=True)
    )


def _factors(activations: Array, layers: list[Layer], strength: float) -> Array:
    """Return what each channel is divided by, powers of the ratio between both ranges."""
    weights = np.max([np.abs(_by_input(layer)).max(1) for layer in layers], axis=0)
    safe = (activations > 0) & (weights > 0)
    ratio = np.where(safe, activations, 1.0) ** strength / np.where(safe, weights, 1.0) ** (1 - strength)
    ratio = ratio / np.exp(np.mean(np.log(ratio)))
    return np.where(safe, np.clip(ratio, 1 / _LARGEST, _LARGEST), 1.0).astype(np.float32)


def _by_input(layer: Layer) -> Array:
    """Return the weight as [inputs, outputs]."""
    weight = constant(layer.weight)
    assert weight is not None
    return weight.T if layer.axis == 0 else weight


def _smooth(norm: ir.Node, layers: list[Layer], factors: Array) -> int:
    if np.allclose(factors, 1.0):
        return 0
    for value in norm.inputs[1:]:
        if value is not None:
            _multiply(value, 1 / factors)
    for layer in layers:
        _multiply(layer.weight, factors if layer.axis == 0 else factors[:, None])
    return 1


def _multiply(value: ir.Value, factors: Array) -> None:
    array = constant(value)
    assert array is not None
    value.const_value = ir.tensor((array * factors).astype(np.float32), name=value.name)
