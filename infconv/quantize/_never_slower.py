"""Leave those groups of layers float that are not faster quantised, on targets that run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes._values import known_shape
from infconv.quantize._latency import RUNTIMES, race
from infconv.quantize._placement import Layer

Array = np.ndarray[Any, np.dtype[Any]]
Quantise = Callable[[frozenset[str]], ir.Model]
"""Returns the quantised model with the layers of these names float."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which layers stay float for speed, and what the user should know."""

    floats: frozenset[str]
    notes: tuple[str, ...]
    pays: bool = True
    """False: the quantised model is slower whatever stays float."""


def leave_slow_groups(
    target: str, model: ir.Model, layers: list[Layer], quantise: Quantise, feed: Mapping[str, Array]
) -> Verdict:
    """Race the quantised model against `model`, and against itself without each group of layers."""
    floats: frozenset[str] = frozenset()
    notes: list[str] = []
    best = quantise(floats)
    groups = _groups(layers)
    for title, names in groups.items():
        if len(groups) == 1:
            break
        without = quantise(floats | names)
        found = race(target, best, without, feed)
        if found.second_is_faster():
            notes.append(f"{title} stay float: the whole is faster so ({found}, {RUNTIMES[target]} here).")
            floats, best = floats | names, without
    found = race(target, model, best, feed)
    notes.append(f"INT8 takes {found.ratio:.0%} of the FP32 time ({found}, {RUNTIMES[target]} here).")
    return Verdict(floats, tuple(notes), pays=not found.second_is_slower() and len(floats) < len(layers))


def _groups(layers: list[Layer]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for layer in layers:
        found.setdefault(_title(layer), set()).add(layer.name)
    return {title: frozenset(names) for title, names in found.items()}


def _title(layer: Layer) -> str:
    """Return what layers have in common whose kernels are alike."""
    kind = layer.node.op_type
    if kind != "Conv":
        return f"{kind} nodes"
    shape = known_shape(layer.weight) or (0, 0)
    groups = layer.node.attributes.get_int("group", 1)
    kernel = "1x1 " if all(size == 1 for size in shape[2:]) else ""
    return "Depthwise convolutions" if groups > 1 and shape[1] == 1 else f"{kernel}convolutions".capitalize()
