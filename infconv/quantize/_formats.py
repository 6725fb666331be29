"""The two narrow float formats and what they can hold."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Format:
    """A narrow float format, with the limits that decide what may be computed in it."""

    name: str
    """As in the options and in new value names: float16."""
    label: str
    """As in sentences: FP16."""
    dtype: ir.DataType
    numpy: np.dtype[np.generic]
    largest: float
    """Largest finite magnitude."""
    smallest_normal: float
    """Magnitudes below lose bits, and below `quantum` / 2 they are zero."""
    quantum: float
    """Smallest positive magnitude (subnormal)."""
    exact_integers: int
    """Every integer up to here is exact."""
    mask: float
    """Stands in for a huge negative mask: exp(mask) is 0, and several of them add up without overflow."""

    @property
    def type_string(self) -> str:
        """As in operator schemas: tensor(float16)."""
        return f"tensor({self.name})"


FORMATS = {
    "float16": Format(
        "float16", "FP16", ir.DataType.FLOAT16, np.dtype(np.float16), 65504.0, 2.0**-14, 2.0**-24, 2048, -(2.0**14)
    ),
    "bfloat16": Format(
        "bfloat16",
        "BF16",
        ir.DataType.BFLOAT16,
        np.dtype(ml_dtypes.bfloat16),
        float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
        2.0**-126,
        2.0**-133,
        256,
        -(2.0**100),
    ),
}
