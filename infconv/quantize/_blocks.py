"""Weights in blocks of a few bits: round to nearest with the scale of least error, and GPTQ."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from infconv.quantize._descent import descend

Array = np.ndarray[Any, np.dtype[Any]]

_SHRINKS = np.linspace(0.75, 1.1, 15)
"""Shares of a block's range that are tried."""
_CHUNK = 1 << 22
"""Elements quantised in one go."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A matrix [K, N] in blocks of `size` along K: real = scale * (integer - zero)."""

    integers: Array
    """int16 [K, N], from 0 to 2**bits - 1, or signed when symmetric."""
    scales: Array
    """float32 [ceil(K / size), N]."""
    zeros: Array | None
    """uint8 like `scales`; None: 0, the integers are signed."""
    size: int
    bits: int

    def real(self) -> Array:
        """Return the values that kernels compute with (float32)."""
        rows = np.arange(len(self.integers)) // self.size
        zeros = 0 if self.zeros is None else self.zeros.astype(np.float32)[rows]
        return (self.integers.astype(np.float32) - zeros) * self.scales[rows]


def block_params(block: Array, bits: int, symmetric: bool, weights: Array | None = None) -> tuple[Array, Array]:
    """Return (scales, zeros), both [columns], of least error for a block [rows, columns].

    `weights` [rows] says how much the square of each row's error counts. Without them cubes are summed: large weights,
    which clipping would cut, mostly meet the activations that count. Zeros are real numbers of integer value, 0 if
    symmetric.
    """
    low, high = np.minimum(block.min(0), 0.0), np.maximum(block.max(0), 0.0)
    best = np.full(block.shape[1], np.inf)
    scales, zeros = np.ones(block.shape[1], np.float32), np.zeros(block.shape[1], np.float32)
    for share in _SHRINKS:
        for tried, zero in _trials(low * share, high * share, bits, symmetric):
            scale = np.where(np.abs(tried) < 1e-30, 1.0, tried).astype(np.float32)
            least, most = _limits(bits, symmetric)
            integers = np.clip(np.rint(block / scale) + zero, least, most)
            off = np.abs((integers - zero) * scale - block)
            errors = np.sum(off * off * (off if weights is None else weights[:, None]), axis=0)
            better = errors < best
            best[better], scales[better], zeros[better] = (
                errors[better],
                scale[better],
                np.broadcast_to(zero, scale.shape)[better],
            )
    return scales, zeros


def _limits(bits: int, symmetric: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if symmetric else (0, (1 << bits) - 1)


def _trials(low: Array, high: Array, bits: int, symmetric: bool) -> list[tuple[Array, Array]]:
    """Return candidates (scale, zero). Signed integers reach one step further down: a scale may be negative for it."""
    if not symmetric:
        scale = (high - low) / ((1 << bits) - 1)
        safe = np.where(scale < 1e-30, 1.0, scale)
        return [(scale, np.clip(np.rint(-low / safe), 0, (1 << bits) - 1).astype(np.float32))]
    half, zero = 1 << (bits - 1), np.zeros_like(low, np.float32)
    further = np.where(-low >= high, low, high)
    return [(np.maximum(-low, high) / (half - 1), zero), (further / -half, zero)]


def round_to_nearest(weight: Array, size: int, bits: int, symmetric: bool) -> Blocks:
    """Quantise [K, N], each block of `size` rows of a column with the scale of least squared error."""
    columns = max(1, _CHUNK // max(len(weight), 1))
    parts = [_round_part(weight[:, i : i + columns], size, bits, symmetric) for i in range(0, weight.shape[1], columns)]
    integers, scales, zeros = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return _blocks(integers, scales, zeros, size, bits, symmetric)


def _round_part(weight: Array, size: int, bits: int, symmetric: bool) -> tuple[Array, Array, Array]:
    integers = np.empty(weight.shape, np.int16)
    all_scales: list[Array] = []
    all_zeros: list[Array] = []
    for start in range(0, len(weight), size):
        block = weight[start : start + size].astype(np.float32)
        scales, zeros = block_params(block, bits, symmetric)
        integers[start : start + size] = np.clip(np.rint(block / scales) + zeros, *_limits(bits, symmetric)).astype(
            np.int16
        )
        all_scales.append(scales)
        all_zeros.append(zeros)
    return integers, np.stack(all_scales), np.stack(all_zeros)


def _blocks(integers: Array, scales: Array, zeros: Array, size: int, bits: int, symmetric: bool) -> Blocks:
    return Blocks(integers, scales, None if symmetric else zeros.astype(np.uint8), size, bits)


def gptq(weight: Array, hessian: Array, size: int, bits: int, symmetric: bool, damping: float = 0.01) -> Blocks:
    """Quantise [K, N] row by row, each row's error made up for by those that follow.

    `hessian` [K, K] is the mean of x x^T over the layer's inputs. Coordinate descent, up or down from each weight, has
    the last word. Source: Frantar et al., "GPTQ", 2022.
    """
    rows = weight.astype(np.float64).copy()
    factor = _inverse_factor(hessian, damping)
    importance = np.maximum(np.diag(hessian), 1e-12)
    integers = np.empty(weight.shape, np.int16)
    all_scales: list[Array] = []
    all_zeros: list[Array] = []
    limits = _limits(bits, symmetric)
    for start in range(0, len(rows), size):
        end = min(start + size, len(rows))
        scales, zeros = block_params(
            rows[start:end].astype(np.float32), bits, symmetric, importance[start:end].astype(np.float32)
        )
        all_scales.append(scales)
        all_zeros.append(zeros)
        errors = np.zeros((end - start, rows.shape[1]))
        for row in range(start, end):
            chosen = np.clip(np.rint(rows[row] / scales) + zeros, *limits)
            integers[row] = chosen.astype(np.int16)
            error = (rows[row] - (chosen - zeros) * scales) / factor[row, row]
            rows[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
            errors[row - start] = error
        rows[end:] -= factor[start:end, end:].T @ errors
    scales, zeros = np.stack(all_scales), np.stack(all_zeros)
    integers = _descended(integers, scales, zeros, weight, hessian, size, limits)
    return _blocks(integers, scales, zeros, size, bits, symmetric)


def _descended(
    integers: Array, scales: Array, zeros: Array, weight: Array, hessian: Array, size: int, limits: tuple[int, int]
) -> Array:
    """Return integers that are at most one step from the weights and leave less error than those found row by row."""
    places = np.arange(len(weight)) // size
    scale, zero = scales[places], zeros[places]
    lowest = np.clip(np.floor(weight / scale), limits[0] - zero, limits[1] - zero)
    highest = np.clip(lowest + 1, limits[0] - zero, limits[1] - zero)
    start = np.clip(integers - zero, lowest, highest)
    return (descend(start, scale, weight, hessian, lowest, highest) + zero).astype(np.int16)


def _inverse_factor(hessian: Array, damping: float) -> Array:
    """Return the upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.astype(np.float64).copy()
    dead = np.diag(damped) <= 0
    damped[dead, dead] = 1.0
    damped[np.diag_indices_from(damped)] += damping * float(np.mean(np.diag(damped)))
    inverse = np.linalg.inv(damped)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T
