"""What calibration must feed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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


def only_input(inputs: Sequence[Input], what: str) -> Input:
    """Return the only one of `inputs`. Raises UsageError when there are several, which `what` cannot feed."""
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs)
        raise UsageError(f"{what} feeds one input; the model has {len(inputs)}: {names}.", "Use .npz files.")
    return inputs[0]
