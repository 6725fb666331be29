"""The second moments of layers' inputs, summed over calibration data: what GPTQ needs, K x K for each layer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv import isolate
from infconv.quantize._collect import Batches, open_for_calibration, with_outputs

Array = np.ndarray[Any, np.dtype[Any]]


def input_moments(model: ir.Model, tensors: Sequence[str], batches: Batches) -> dict[str, Array]:
    """Return tensor -> sum of x x^T (float32) over the last axis of every row of every batch. Runs in a child."""
    with tempfile.TemporaryDirectory(prefix="infconv-calibration-") as folder:
        return isolate.call(lambda: _moments(model, tensors, batches, Path(folder)), what="Calibration")


def _moments(model: ir.Model, tensors: Sequence[str], batches: Batches, folder: Path) -> dict[str, Array]:
    session = open_for_calibration(with_outputs(model, tensors, folder / "model.onnx"))
    inputs = {value.name for value in session.get_inputs()}
    sums: dict[str, Array] = {}
    for batch in batches():
        outputs = session.run(list(tensors), {name: array for name, array in batch.items() if name in inputs})
        for name, values in zip(tensors, outputs, strict=True):
            rows = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
            moments = rows.T @ rows
            sums[name] = sums[name] + moments if name in sums else moments
    return sums
