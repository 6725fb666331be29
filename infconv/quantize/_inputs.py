"""What calibration must feed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infconv.errors import UsageError

Array = np.ndarray[Any, np.dtype[Any]]
Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Input:
    """A model input that calibration must feed."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    """Names for dynamic dims."""


def batch_size(batch: Batch) -> int:
    """Return the size of the first dimension, 1 for scalars."""
    first = next(iter(batch.values()), None)
    return first.shape[0] if first is not None and first.ndim else 1


def cut(batch: Batch, rows: int) -> Iterator[Batch]:
    """Yield `batch` in parts of so many rows, the last one with what is left.

    An input whose first dimension is not the batch goes with every part whole.
    """
    size = batch_size(batch)
    if size <= rows:
        yield batch
        return
    for start in range(0, size, rows):
        yield {n: a[start : start + rows] if a.ndim and len(a) == size else a for n, a in batch.items()}


def only_input(inputs: Sequence[Input], what: str) -> Input:
    """Return the only one of `inputs`. Raises UsageError when there are several, which `what` cannot feed."""
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs)
        raise UsageError(f"{what} feeds one input; the model has {len(inputs)}: {names}.", "Use .npz files.")
    return inputs[0]
