"""Compare calibration data with what the model takes, before it silently spoils every scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infconv.errors import UsageError, did_you_mean
from infconv.quantize._readers import Batch, Data, Input, batch_size

Array = np.ndarray[Any, np.dtype[Any]]

_FEW = 32
"""Fewer samples than this are told."""
_OFF = 8.0
"""Magnitudes that differ by more than this factor from the user's own sample are an error."""


def checked(data: Data, inputs: Sequence[Input], samples: Sequence[Mapping[str, Array]], real: bool) -> Iterator[Batch]:
    """Yield the batches of `data`, each converted to the inputs' types; raise UsageError for one that does not fit.

    `samples` are inputs of the model. `real`: the user gave them, so that another range is an error.
    """
    names = [info.name for info in inputs]
    for number, batch in enumerate(data.batches()):
        for name in batch:
            if name not in names:
                raise UsageError(f"--calibration has an array '{name}', which is no input.", did_you_mean(name, names))
        fitted = {info.name: _fitted(info, batch) for info in inputs}
        if number == 0 and real:
            for info in inputs:
                _check_range(info, fitted[info.name], samples)
        yield fitted


def _fitted(info: Input, batch: Batch) -> Array:
    """Return the array for one input in its type. Raises UsageError for a missing one, another layout, type or NaN."""
    if info.name not in batch:
        raise UsageError(f"--calibration has no array for input '{info.name}'.", f"It has: {', '.join(batch)}.")
    array = np.asarray(batch[info.name])
    if not _fits(array.shape, info.dims):
        raise UsageError(
            f"--calibration: '{info.name}' has shape {list(array.shape)}, the model wants {list(info.dims)}.",
            _layout_hint(array.shape, info.dims),
        )
    if info.dtype.kind == "f" and array.dtype.kind in "iub":
        raise UsageError(
            f"--calibration: '{info.name}' is {array.dtype}, the model wants {info.dtype}: the data looks raw.",
            "Normalise it as for training and save it as float32.",
        )
    if not np.can_cast(array.dtype, info.dtype, "same_kind"):
        raise UsageError(f"--calibration: '{info.name}' is {array.dtype}, the model wants {info.dtype}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"--calibration: '{info.name}' has NaN or infinite values.", "Remove those samples.")
    return array.astype(info.dtype, copy=False)


def _fits(shape: Sequence[int], dims: Sequence[int | str]) -> bool:
    return len(shape) == len(dims) and all(isinstance(d, str) or d == s for s, d in zip(shape, dims, strict=True))


def _layout_hint(shape: Sequence[int], dims: Sequence[int | str]) -> str:
    if len(shape) == 4 and _fits([shape[0], shape[3], shape[1], shape[2]], dims):
        return "It looks like NHWC data for an NCHW model: use array.transpose(0, 3, 1, 2)."
    if len(shape) == 4 and _fits([shape[0], shape[2], shape[3], shape[1]], dims):
        return "It looks like NCHW data for an NHWC model: use array.transpose(0, 2, 3, 1)."
    if len(shape) == len(dims) - 1:
        return "The first dimension must count samples: use array[None]."
    return "Use the preprocessing that the model was trained with."


def _check_range(info: Input, array: Array, samples: Sequence[Mapping[str, Array]]) -> None:
    """Raise UsageError where magnitudes are far from those of the user's own sample."""
    own = [sample[info.name] for sample in samples if info.name in sample]
    if info.dtype.kind != "f" or not own or not array.size:
        return
    mine, theirs = float(np.abs(array).max()), max(float(np.abs(a).max(initial=0.0)) for a in own)
    if theirs and mine and not 1 / _OFF <= mine / theirs <= _OFF:
        low, high = min(float(a.min()) for a in own), max(float(a.max()) for a in own)
        raise UsageError(
            f"--calibration: '{info.name}' has values {array.min():.3g}..{array.max():.3g}, but --sample has "
            f"{low:.3g}..{high:.3g}.",
            "Prepare both in the same way.",
        )


def remarks(data: Data, inputs: Sequence[Input], synthetic: bool) -> list[str]:
    """Return sentences on what is odd about the data: too few samples, raw bytes, samples that are all the same."""
    notes: list[str] = []
    count, low, high = 0, np.inf, -np.inf
    for batch in data.batches():
        count += batch_size(batch)
        for info in inputs:
            array = batch.get(info.name)
            if array is not None and info.dtype.kind == "f" and array.size:
                low, high = min(low, float(array.min())), max(high, float(array.max()))
        if count >= _FEW:
            break
    if count < _FEW:
        notes.append(f"Calibration has only {count} samples: use {_FEW} or more.")
    if synthetic and low >= 0 and high > 64:
        notes.append(
            f"Calibration values are {low:.3g}..{high:.3g}: right only if the model normalises its input itself."
        )
    if low == high:
        notes.append(f"Every calibration value is {low:.3g}.")
    return notes
