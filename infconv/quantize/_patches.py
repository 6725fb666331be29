"""What each output of a layer is a product of: rows of the layer's input, the patches of it for a convolution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes._values import constant
from infconv.quantize._hessians import shrunk
from infconv.quantize._placement import Layer

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass
class Moments:
    """Sums over rows x of a layer's inputs, for each group of a convolution."""

    count: int = 0
    total: Array | None = None
    """[groups, K]"""
    squares: Array | None = None
    """x x^T, float32 [groups, K, K]"""
    fourth: Array | float = 0.0
    """|x|^4, [groups]"""

    def add(self, rows: Array) -> None:
        """Take in `rows` [groups, rows, K]."""
        total, squares = rows.sum(1, dtype=np.float64), np.matmul(rows.transpose(0, 2, 1), rows)
        self.count += rows.shape[1]
        self.fourth = self.fourth + np.square(np.square(rows).sum(2, dtype=np.float64)).sum(1)
        if self.total is None or self.squares is None:
            self.total, self.squares = total, squares
        else:
            self.total += total
            self.squares += squares

    def mean(self) -> Array:
        """Return the mean of x [groups, K]."""
        assert self.total is not None
        return self.total / max(self.count, 1)

    def to_learn_from(self, centre: Array) -> Array:
        """Return `about(centre)`, shrunk where rows are few."""
        found = zip(self.about(centre), np.broadcast_to(self.fourth, len(centre)), strict=True)
        return np.stack([shrunk(moments, self.count, float(fourth)) for moments, fourth in found])

    def about(self, centre: Array) -> Array:
        """Return the mean of (x - centre) (x - centre)^T, [groups, K, K]; `centre` is [groups, K]."""
        assert self.squares is not None
        found, mean = self.squares / np.float32(max(self.count, 1)), self.mean().astype(np.float32)
        off = mean - centre.astype(np.float32)
        found -= mean[:, :, None] * mean[:, None]
        found += off[:, :, None] * off[:, None]
        return found


def matrices(layer: Layer) -> Array:
    """Return the layer's weight as [groups, K, outputs of a group]."""
    weight = constant(layer.weight)
    assert weight is not None
    if layer.node.op_type != "Conv":
        return (weight.T if layer.axis == 0 else weight)[None]
    groups = layer.node.attributes.get_int("group", 1)
    return weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)


def as_weight(layer: Layer, found: Array) -> Array:
    """Return what `matrices` gave in the weight's own shape."""
    weight = constant(layer.weight)
    assert weight is not None
    if layer.node.op_type != "Conv":
        return found[0].T if layer.axis == 0 else found[0]
    return found.transpose(0, 2, 1).reshape(weight.shape)


def rows_of(layer: Layer, data: Array, most: int, rng: np.random.Generator) -> Array:
    """Return at most `most` rows [groups, rows, K] of what the layer reads, drawn by `rng` where there are more."""
    if layer.node.op_type != "Conv":
        rows = data.reshape(-1, data.shape[-1])
        return rows[_some(len(rows), most, rng)][None].astype(np.float32)
    weight = constant(layer.weight)
    assert weight is not None
    windows = _windows(layer.node, data.astype(np.float32, copy=False), weight.shape[2:])
    places = windows.shape[: data.ndim - 1]
    rows = windows[np.unravel_index(_some(math.prod(places), most, rng), places)]
    groups = layer.node.attributes.get_int("group", 1)
    return np.ascontiguousarray(rows.reshape(len(rows), groups, -1).transpose(1, 0, 2))


def _some(count: int, most: int, rng: np.random.Generator) -> Array:
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _windows(node: ir.Node, data: Array, kernel: Sequence[int]) -> Array:
    """Return a view [batch, *places, channels, *kernel] of `data` [batch, channels, *space], padded."""
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(node, data.shape[2:], reach, strides)
    padded = np.pad(data, [(0, 0), (0, 0), *pads])
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    view = view[(slice(None), slice(None), *(slice(None, None, step) for step in strides))]
    view = view[(..., *(slice(None, None, step) for step in dilations))]
    return np.moveaxis(view, 1, 1 + rank)


def _pads(node: ir.Node, space: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, behind) for each axis of space."""
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    if kind.startswith("SAME"):
        missing = [
            max((-(-size // step) - 1) * step + window - size, 0)
            for size, window, step in zip(space, reach, strides, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in missing]
        return halves if kind == "SAME_UPPER" else [(behind, before) for before, behind in halves]
    given = node.attributes.get_ints("pads", [0] * 2 * len(space)) if kind == "NOTSET" else [0] * 2 * len(space)
    return list(zip(given[: len(space)], given[len(space) :], strict=True))
