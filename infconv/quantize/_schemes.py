"""From a tensor's sketch to a scale and zero point: four schemes, and the error that each would make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from infconv.quantize._sketch import BINS, Sketch

Array = np.ndarray[Any, np.dtype[Any]]
Scheme = Literal["absmax", "percentile", "entropy", "mse"]

_TINY = float(np.finfo(np.float32).tiny)
_PERCENTILE = 99.99
_STEP = 1 / 80
_SHRINKS = np.linspace(0.2, 1.0, 65)
"""The shares of the full range that are tried as a clipping threshold."""
_COARSE = _SHRINKS[::8]
"""Those that are tried first; then those around the best of them."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """An integer type, and whether the zero point must be 0."""

    dtype: str
    symmetric: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Return the smallest and largest integer; symmetric int8 leaves -128 out."""
        if self.dtype == "uint8":
            return 0, 255
        return (-127, 127) if self.symmetric else (-128, 127)


@dataclasses.dataclass(frozen=True)
class Params:
    """Real value = scale * (integer - zero)."""

    scale: float
    zero: int
    grid: Grid
    scheme: Scheme = "absmax"

    def range(self) -> tuple[float, float]:
        """Return the smallest and largest real value that is kept."""
        low, high = self.grid.limits
        return self.scale * (low - self.zero), self.scale * (high - self.zero)


def params_of(low: float, high: float, grid: Grid, scheme: Scheme = "absmax") -> Params:
    """Return the parameters whose grid covers [low, high] and has 0 as one of its points."""
    low, high = min(low, 0.0), max(high, 0.0)
    least, most = grid.limits
    if grid.symmetric:
        scale = max(-low, high) / most if grid.dtype == "int8" else max(-low, high) / 127
        zero = 0 if grid.dtype == "int8" else 128
    else:
        scale = (high - low) / (most - least)
        zero = 0
    scale = float(np.float32(max(scale, _TINY)))
    if not np.isfinite(1.0 / scale):
        scale = 1.0  # a tensor that is always zero
    if not grid.symmetric:
        zero = int(np.clip(round(least - low / scale), least, most))
    return Params(scale, zero, grid, scheme)


def candidates(
    sketch: Sketch, grid: Grid, schemes: Sequence[Scheme] = ("absmax", "percentile", "entropy", "mse")
) -> dict[Scheme, Params]:
    """Return the parameters that each of `schemes` finds for a tensor; only absmax for one that is always zero.

    Sources: S. Migacz, "8-bit Inference with TensorRT", GTC 2017 (entropy); Banner et al., "Post training 4-bit
    quantization of convolutional networks", 2019 (clipping by mean squared error).
    """
    if not sketch.count or sketch.absmax == 0.0:
        return {"absmax": params_of(0.0, 1.0, grid)}
    return {name: _RULES[name](sketch, grid) for name in schemes}


def _absmax(sketch: Sketch, grid: Grid) -> Params:
    return params_of(sketch.low, sketch.high, grid, "absmax")


def _percentile(sketch: Sketch, grid: Grid) -> Params:
    values, counts = sketch.occupied()
    cumulative = np.cumsum(counts) / sketch.count
    tail = (1 - _PERCENTILE / 100) / 2
    low = values[np.searchsorted(cumulative, tail)] if sketch.low < 0 else 0.0
    high = values[min(np.searchsorted(cumulative, 1 - tail), len(values) - 1)] if sketch.high > 0 else 0.0
    return params_of(float(low), float(high), grid, "percentile")


def _mse(sketch: Sketch, grid: Grid) -> Params:
    """Shrink each end of the range in turn to where the squared error is least."""
    values, counts = sketch.occupied()
    full = np.array([min(sketch.low, 0.0), max(sketch.high, 0.0)])
    ends = full.copy()
    for side in [slice(None)] if grid.symmetric else [1, 0, 1, 0]:
        if np.any(full[side]):
            ends[side] = full[side] * _best_share(values, counts, full, ends, side, grid)
    return params_of(float(ends[0]), float(ends[1]), grid, "mse")


def _best_share(values: Array, counts: Array, full: Array, ends: Array, side: int | slice, grid: Grid) -> float:
    """Return the share of `full`, at one side of the range `ends` or both, with the least squared error."""

    def best(shares: Array) -> float:
        ranges = np.tile(ends, (len(shares), 1))
        ranges[:, side] = np.outer(shares, full)[:, side]
        return float(shares[np.argmin(_errors(values, counts, ranges, grid))])

    return best(_SHRINKS[np.abs(_SHRINKS - best(_COARSE)) < 8 * _STEP])


def _errors(values: Array, counts: Array, ranges: Array, grid: Grid) -> Array:
    """Return the sum of squared errors of values that occur `counts` times, for each of several ranges [number, 2]."""
    params = [params_of(float(low), float(high), grid) for low, high in ranges]
    scales = np.array([p.scale for p in params])[:, None]
    zeros = np.array([p.zero for p in params])[:, None]
    integers = np.clip(np.rint(values / scales) + zeros, *grid.limits)
    return np.square((integers - zeros) * scales - values) @ counts


def _entropy(sketch: Sketch, grid: Grid) -> Params:
    """Clip where the distribution that 8 bits can tell apart diverges least (Kullback-Leibler) from the real one."""
    values, counts = sketch.occupied()
    # Zero is a point of every grid, and after a ReLU so frequent that it would drown the rest.
    near = np.abs(values) >= math.ldexp(1.0, sketch.exponent) / BINS * 2
    values, counts = (values[near], counts[near]) if near.any() else (values, counts)
    low, high = min(sketch.low, 0.0), max(sketch.high, 0.0)
    shares = _SHRINKS[::4]
    best = min(shares, key=lambda share: _divergence(values, counts, params_of(low * share, high * share, grid)))
    return params_of(low * best, high * best, grid, "entropy")


def _divergence(values: Array, counts: Array, params: Params) -> float:
    """Return KL(P || Q): P is clipped with its outliers at the ends, Q spreads each level's mass over its bins."""
    low, high = params.grid.limits
    kept = params.range()
    inside = (values >= kept[0]) & (values <= kept[1])
    if not inside.any():
        return np.inf
    levels = np.clip(np.rint(values[inside] / params.scale) + params.zero, low, high).astype(np.intp) - low
    mass = counts[inside].astype(np.float64)
    clipped = mass.copy()
    clipped[0] += counts[values < kept[0]].sum()
    clipped[-1] += counts[values > kept[1]].sum()
    totals = np.bincount(levels, mass, high - low + 1)
    sizes = np.bincount(levels, minlength=high - low + 1)
    spread = (totals / np.maximum(sizes, 1))[levels]
    p, q = clipped / clipped.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / q)))


_RULES: Mapping[Scheme, Callable[[Sketch, Grid], Params]] = {
    "absmax": _absmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A quantised weight: symmetric int8, a scale for each channel of `axis`."""

    integers: Array
    scales: Array
    axis: int

    def real(self) -> Array:
        """Return the values that kernels compute with (float32)."""
        return self.integers.astype(np.float32) * _along(self.scales, self.integers.ndim, self.axis)


def quantise_weight(weight: Array, axis: int, most: int = 127) -> Weights:
    """Quantise each channel of `axis` with the scale of least squared error, symmetric, to -most..most."""
    moved = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.abs(moved).max(1, initial=0.0)
    best_error = np.full(len(moved), np.inf)
    best = np.ones(len(moved), np.float32)
    for share in np.linspace(0.8, 1.0, 11):
        scales = np.maximum(largest * share / most, _TINY).astype(np.float32)
        scales[largest / most < _TINY] = 1.0
        integers = np.clip(np.rint(moved / scales[:, None]), -most, most)
        errors = np.square(integers * scales[:, None] - moved).sum(1)
        better = errors < best_error
        best_error[better], best[better] = errors[better], scales[better]
    integers = np.clip(np.rint(weight / _along(best, weight.ndim, axis)), -most, most).astype(np.int8)
    return Weights(integers, best, axis)


def _along(vector: Array, rank: int, axis: int) -> Array:
    """Return `vector` shaped to broadcast along `axis` of an array of `rank` dimensions."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])
