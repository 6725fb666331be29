"""AWQ: scale up the weights that large activations meet, so that rounding them costs the outputs least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.errors import UsageError
from infconv.passes import Context, Pass
from infconv.quantize._absorb import Site, input_site, multiply, readers_by_input, sites, weight_by_input
from infconv.quantize._blocks import round_to_nearest
from infconv.quantize._hessians import in_parts, input_moments, output_error
from infconv.quantize._placement import Layer

Array = np.ndarray[Any, np.dtype[Any]]
Group = tuple[ir.Value, Sequence[Layer], Sequence[Site]]

_LAYERS = frozenset({"MatMul", "Gemm"})
_COLUMNS = 128
"""Outputs of a layer on which a scale is judged: enough to tell scales apart, and time does not grow with the layer."""
_LARGEST = 1e4
"""Factors stay between 1 / this and this."""


class ScaleSalientWeights(Pass):
    """Scale the rows of weights by a power of the activations that they meet, before quantize-weights.

    The power that leaves the least error at the layers' outputs, measured on calibration data, is taken; the inverse
    goes into the norm or the layer in front, so that the model computes the same. Where nothing in front takes it, or
    no power helps, weights stay as they are. Source: Lin et al., "AWQ", 2023.
    """

    bits: Literal[4, 8] = 4
    """As in quantize-weights."""
    block: Literal[16, 32, 64, 128, 256] = 32
    """As in quantize-weights."""
    powers: int = Field(20, ge=1)
    """How many powers from 0 to 1 are tried."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Change weights in place and return the number of activations. Raises UsageError without calibration."""
        groups = list(_groups(model))
        if not groups:
            return 0
        if context.calibration is None:
            raise UsageError("scale-salient-weights needs calibration data.", "Give it with --calibration.")
        symmetric, done = context.target == "tensorrt", 0
        for part in in_parts(groups, lambda group: len(weight_by_input(group[1][0]))):
            moments = input_moments(model, [value.name or "" for value, _, _ in part], context.calibration.batches)
            for value, layers, where in part:
                factors = self._factors(layers, moments[value.name or ""], symmetric)
                if factors is not None:
                    multiply(where, 1 / factors)
                    multiply([input_site(layer) for layer in layers], factors)
                    done += 1
        return done

    def _factors(self, layers: Sequence[Layer], moments: Array, symmetric: bool) -> Array | None:
        """Return what each row is multiplied by; None when nothing is better than no factor."""
        weights = [_some_columns(weight_by_input(layer)) for layer in layers]

        def error(factors: Array) -> float:
            return sum(self._error(weight, factors, moments, symmetric) for weight in weights)

        best, least = None, error(np.ones(len(moments), np.float32))
        for power in range(1, self.powers + 1):
            factors = _scaled(np.sqrt(np.diag(moments)), power / self.powers)
            found = error(factors)
            if found < least:
                best, least = factors, found
        return best

    def _error(self, weight: Array, factors: Array, moments: Array, symmetric: bool) -> float:
        rounded = round_to_nearest(weight * factors[:, None], self.block, self.bits, symmetric)
        return output_error(rounded.real() / factors[:, None] - weight, moments)


def _groups(model: ir.Model) -> Iterator[Group]:
    for value, layers in readers_by_input(model, _LAYERS):
        where = sites(value)
        if where:
            yield value, layers, where


def _some_columns(weight: Array) -> Array:
    """Return at most `_COLUMNS` columns, evenly spread."""
    places = np.linspace(0, weight.shape[1] - 1, min(_COLUMNS, weight.shape[1])).astype(np.intp)
    return weight[:, places].astype(np.float32)


def _scaled(magnitudes: Array, power: float) -> Array:
    """Return magnitudes ** power, centred at 1; 1 where nothing was seen."""
    seen = magnitudes > 0
    factors = np.where(seen, magnitudes, 1.0) ** power
    if seen.any():
        factors = factors / np.sqrt(factors[seen].min() * factors[seen].max())
    return np.where(seen, np.clip(factors, 1 / _LARGEST, _LARGEST), 1.0).astype(np.float32)
