"""The measure of quality that the pipeline's `verify.metric` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def top1(model: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> float:
    """Return the share of the points in eval.npz whose class `model` finds."""
    data = np.load(Path(__file__).with_name("eval.npz"))
    scores = model({"points": data["points"]})["scores"]
    return float(np.mean(np.argmax(scores, axis=-1) == data["labels"]))
