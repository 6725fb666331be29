"""Calibration data as a run sees it: opened for a model, and checked against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infconv.quantize._calibration_options import CalibrationEntry
from infconv.quantize._lint import checked, remarks
from infconv.quantize._readers import Batch, Data, Input, open_data

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Calibration", "Input", "open_calibration"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Data that fits the model's inputs, to be read any number of times."""

    data: Data
    inputs: Sequence[Input]
    samples: Sequence[Mapping[str, np.ndarray[Any, Any]]] = ()
    """Inputs that the model accepts."""
    real: bool = False
    """Whether the user gave `samples`."""

    def batches(self) -> Iterator[Batch]:
        """Yield the batches. Raises UsageError for one that does not fit the model."""
        return checked(self.data, self.inputs, self.samples, self.real)

    def remarks(self) -> list[str]:
        """Return what is odd about the data, a sentence each."""
        return remarks(self.data, self.inputs, synthetic=not self.real)


def open_calibration(
    entry: CalibrationEntry,
    inputs: Sequence[Input],
    samples: Sequence[Mapping[str, np.ndarray[Any, Any]]] = (),
    *,
    real: bool = False,
    most: int = 8,
) -> Calibration:
    """Open the data of `entry` for a model with `inputs`. `most` is the largest batch for a dynamic batch dimension.

    Raises UsageError for what cannot be read.
    """
    data = open_data(entry.path, inputs, samples=entry.samples, image=entry.image, text=entry.text, most=most)
    return Calibration(data, inputs, samples, real)
