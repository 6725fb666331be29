"""SmoothQuant: move the outliers of activations into the weights behind them, where each channel has its own scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.errors import UsageError
from infconv.passes import Context, Pass
from infconv.quantize._absorb import input_site, multiply, readers_by_input, sites, weight_by_input
from infconv.quantize._collect import Wanted, collect
from infconv.quantize._placement import Layer

Array = np.ndarray[Any, np.dtype[Any]]

_LAYERS = frozenset({"MatMul", "Gemm"})
_LARGEST = 1e4
"""Factors stay between 1 / this and this."""


class SmoothActivations(Pass):
    """Scale the channels of activations down and the weights that read them up, before quantisation.

    The model computes the same; one scale for all channels then loses less. Source: Xiao et al., "SmoothQuant", 2022.
    """

    strength: float = Field(0.5, ge=0, le=1)
    """0: nothing is moved; 1: activations have the same range in every channel."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Change weights in place and return the number of activations. Raises UsageError without calibration."""
        found = ((value, layers, sites(value)) for value, layers in readers_by_input(model, _LAYERS))
        groups = [(value, layers, where) for value, layers, where in found if where]
        if not groups:
            return 0
        if context.calibration is None:
            raise UsageError("smooth-activations needs calibration data.", "Give it with --calibration.")
        wanted = [Wanted(value.name or "", -1) for value, _, _ in groups]
        records = collect(model, wanted, context.calibration.batches, workers=context.workers)
        done = 0
        for (_, layers, where), item in zip(groups, wanted, strict=True):
            channels = records[item.name].channels
            factors = None if channels is None else _factors(channels.absmax, layers, self.strength)
            if factors is not None and not np.allclose(factors, 1.0):
                multiply(where, 1 / factors)
                multiply([input_site(layer) for layer in layers], factors)
                done += 1
        return done


def _factors(activations: Array, layers: list[Layer], strength: float) -> Array:
    """Return what each channel is divided by, powers of the ratio between both ranges."""
    weights = np.max([np.abs(weight_by_input(layer)).max(1) for layer in layers], axis=0)
    safe = (activations > 0) & (weights > 0)
    ratio = np.where(safe, activations, 1.0) ** strength / np.where(safe, weights, 1.0) ** (1 - strength)
    ratio = ratio / np.exp(np.mean(np.log(ratio)))
    return np.where(safe, np.clip(ratio, 1 / _LARGEST, _LARGEST), 1.0).astype(np.float32)
