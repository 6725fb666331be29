"""What calibration remembers of a tensor: figures of fixed size, whatever the number of samples.

A sketch of several batches, or of merged shards, equals the sketch of all values at once: the histogram's range is a
power of two, so that growing it merges neighbouring bins exactly, and a bin never depends on what came first. Sums do
depend on the order in their last bits; there is one for each of eight segments, to which batches belong in turn. Shards
that are whole segments, merged, are to the bit what one process finds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BINS = 8192
"""Bins of a histogram, over [-2**exponent, 2**exponent)."""
_HALF = BINS // 2
_LEAST = -100
"""The smallest exponent: values below 2**-100 count as zero."""
SEGMENTS = 8
"""Batch `n` belongs to segment `n % SEGMENTS`."""
_CHUNK = 1 << 17
"""Elements binned in one go: temporary arrays stay small."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass
class Sketch:
    """Count, range, moments and histogram of all elements of a tensor."""

    count: int = 0
    """Finite elements seen."""
    odd: int = 0
    """NaN and infinite elements seen, which nothing else here counts."""
    low: float = math.inf
    high: float = -math.inf
    totals: Array = dataclasses.field(default_factory=lambda: np.zeros(SEGMENTS))
    """Sum of the elements of each segment."""
    squared: Array = dataclasses.field(default_factory=lambda: np.zeros(SEGMENTS))
    """Sum of their squares."""
    exponent: int = _LEAST
    """The histogram covers [-2**exponent, 2**exponent)."""
    bins: Array = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def absmax(self) -> float:
        """Return the largest magnitude, 0 when nothing was seen."""
        return max(abs(self.low), abs(self.high)) if self.count else 0.0

    @property
    def total(self) -> float:
        """Return the sum."""
        return float(sum(self.totals))

    @property
    def squares(self) -> float:
        """Return the sum of squares."""
        return float(sum(self.squared))

    @property
    def mean(self) -> float:
        """Return the mean."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Return the variance of all elements."""
        return max(self.squares / self.count - self.mean**2, 0.0) if self.count else 0.0

    def add(self, values: Array, batch: int = 0) -> None:
        """Take in the elements of an array of any shape and real type, of the batch of that number."""
        flat = np.asarray(values).reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._add_chunk(flat[start : start + _CHUNK].astype(np.float32, copy=False), batch % SEGMENTS)

    def _add_chunk(self, chunk: Array, segment: int) -> None:
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # min and max carry NaN along
            finite = np.isfinite(chunk)
            self.odd += chunk.size - int(np.count_nonzero(finite))
            chunk = chunk[finite]
            if not chunk.size:
                return
            low, high = float(chunk.min()), float(chunk.max())
        self.count += chunk.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.totals[segment] += float(chunk.sum(dtype=np.float64))
        self.squared[segment] += float(np.dot(chunk, chunk))
        largest = max(abs(low), abs(high))
        self._grow(max(math.frexp(largest)[1], _LEAST) if largest else _LEAST)
        # A product with a power of two and floor are exact in float32: the bin is that of the real number.
        places = chunk * np.float32(math.ldexp(_HALF, -self.exponent))
        np.floor(places, out=places)
        places += np.float32(_HALF)
        self.bins += np.bincount(places.astype(np.intp), minlength=BINS)

    def _grow(self, exponent: int) -> None:
        """Widen the range to 2**exponent by adding up neighbouring bins."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        places = (np.arange(-_HALF, _HALF) >> min(steps, 30)) + _HALF
        wider = np.zeros(BINS, np.int64)
        np.add.at(wider, places, self.bins)
        self.bins = wider

    def merge(self, other: Sketch) -> None:
        """Take in what `other` saw."""
        self.count, self.odd = self.count + other.count, self.odd + other.odd
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.totals, self.squared = self.totals + other.totals, self.squared + other.squared
        widened = dataclasses.replace(other, bins=other.bins.copy())
        self._grow(other.exponent)
        widened._grow(self.exponent)
        self.bins = self.bins + widened.bins

    def occupied(self) -> tuple[Array, Array]:
        """Return (centres, counts) of the bins that hold something; the end bins' centres stay within the range."""
        places = np.flatnonzero(self.bins)
        width = math.ldexp(1.0, self.exponent) / _HALF
        centres = (places - _HALF + 0.5) * width
        # Exact zeros (a ReLU's) are many, and no rounding error is made on them.
        centres[places == _HALF] = 0.0 if self.low >= 0 else 0.5 * width
        return np.clip(centres, self.low, self.high), self.bins[places]


@dataclasses.dataclass
class Channels:
    """Range and mean of each channel of a tensor."""

    axis: int
    low: Array
    high: Array
    totals: Array
    """Sum of each channel for each segment, [SEGMENTS, channels]."""
    count: int = 0
    """Elements of a channel that were seen."""

    @classmethod
    def of(cls, values: Array, axis: int, batch: int = 0) -> Channels:
        """Return the figures of the batch of that number; `axis` may count from the end."""
        array = np.asarray(values, np.float32)
        others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        count = array.size // array.shape[axis]
        totals = np.zeros((SEGMENTS, array.shape[axis]))
        totals[batch % SEGMENTS] = array.sum(others)
        return cls(axis, array.min(others), array.max(others), totals, count)

    @property
    def absmax(self) -> Array:
        """Return the largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def mean(self) -> Array:
        """Return the mean of each channel (float64)."""
        return sum(self.totals, start=np.zeros(len(self.low))) / max(self.count, 1)

    def merge(self, other: Channels) -> None:
        """Take in what `other` saw."""
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.totals = self.totals + other.totals
        self.count += other.count


@dataclasses.dataclass
class Record:
    """Everything that calibration remembers of a tensor."""

    sketch: Sketch = dataclasses.field(default_factory=Sketch)
    channels: Channels | None = None

    def add(self, values: Array, axis: int | None, batch: int = 0) -> None:
        """Take in the batch of that number; with `axis`, its channels too."""
        self.sketch.add(values, batch)
        if axis is not None and values.size:
            seen = Channels.of(values, axis, batch)
            if self.channels is None:
                self.channels = seen
            else:
                self.channels.merge(seen)

    def merge(self, other: Record) -> None:
        """Take in what `other` saw."""
        self.sketch.merge(other.sketch)
        if self.channels is None:
            self.channels = other.channels
        elif other.channels is not None:
            self.channels.merge(other.channels)


def merged(shards: Iterable[Mapping[str, Record]]) -> dict[str, Record]:
    """Return the records of all `shards` together, as if one process had seen every sample."""
    result: dict[str, Record] = {}
    for shard in shards:
        for name, record in shard.items():
            result.setdefault(name, Record()).merge(record)
    return result
