"""Choose how each weight is rounded so that a layer's output changes least: coordinate descent on a quadratic error."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_SWEEPS = 20
_FEW = 1e-3
"""A sweep that changes no more than this share of the weights is the last."""
_BLOCK = 32
"""Rows after which the slopes of all others are brought up to date, in one product."""
_GAIN = 1e-7
"""A change must lower the error by this share of what one step of a weight costs alone: less is rounding of float32."""


def descend(integers: Array, scales: Array, weight: Array, moments: Array, lowest: Array, highest: Array) -> Array:
    """Return integers [K, N] that leave no more error e^T moments e at a layer's outputs, where e = scale * n - weight.

    `integers` [K, N] is where to start; `scales`, `lowest` and `highest` are or broadcast to [K, N]; `moments` [K, K]
    is the mean of x x^T over the layer's inputs. Each row in turn takes the best integers while the others stay, until
    next to nothing changes. Deterministic; a sweep costs K * K * N products.

    The error is that of Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, section 3,
    a quadratic problem over integers. They relax it to reals and learn those by gradient descent; descent on the
    integers themselves (as in Behdin et al., "QuantEase", 2023) ends lower, in a fraction of the time.
    """
    order = np.argsort(-np.diag(moments), kind="stable")  # what costs most is chosen first
    moments = moments[np.ix_(order, order)].astype(np.float32)
    step, least, most = (np.broadcast_to(a, integers.shape)[order] for a in (scales, lowest, highest))
    found = integers[order].astype(np.float32)
    step = step.astype(np.float32)
    slopes = moments @ (found * step - weight[order]).astype(np.float32)
    for _ in range(_SWEEPS):
        changed = 0
        for start in range(0, len(found), _BLOCK):
            rows = slice(start, start + _BLOCK)
            moves = _descend_block(found[rows], step[rows], slopes[rows], moments[rows, rows], least[rows], most[rows])
            if moves.any():
                slopes += moments[:, rows] @ moves
                changed += int(np.count_nonzero(moves))
        if changed <= _FEW * found.size:
            break
    result = np.empty_like(found)
    result[order] = found
    return result


def _descend_block(found: Array, step: Array, slopes: Array, moments: Array, least: Array, most: Array) -> Array:
    """Change the rows `found` in place, each once; return by how much their real values changed."""
    slopes, moves = slopes.copy(), np.zeros_like(found)
    for row, cost in enumerate(np.diag(moments)):
        if cost <= 0:
            continue
        wanted = np.clip(np.rint(found[row] - slopes[row] / (cost * step[row])), least[row], most[row]) - found[row]
        change = wanted * step[row]
        better = -change * (2 * slopes[row] + cost * change) > _GAIN * cost * step[row] ** 2
        moves[row] = np.where(better, change, 0)
        found[row] += np.where(better, wanted, 0)
        slopes[row:] += np.outer(moments[row:, row], moves[row])
    return moves
