"""Leave those groups of layers float that are not faster quantised, on targets that run here."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv import isolate
from infconv.passes._values import known_shape
from infconv.quantize._latency import RUNTIMES, Race, Racer
from infconv.quantize._placement import Layer

Array = np.ndarray[Any, np.dtype[Any]]
Quantise = Callable[[frozenset[str]], ir.Model]
"""Returns the quantised model with the layers of these names float."""
_WORTH = 0.05
"""By how much of the time the whole must be faster without a group: what noise may add or take is less."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which layers stay float for speed, and what the user should know."""

    floats: frozenset[str]
    notes: tuple[str, ...]
    pays: bool = True
    """False: the quantised model is slower whatever stays float."""


def leave_slow_groups(
    target: str, model: ir.Model, layers: Sequence[Layer], quantise: Quantise, feed: Mapping[str, Array]
) -> Verdict:
    """Race the quantised model against `model`, and against itself without each group of layers, in a child process.

    Raises UnsupportedError when the runtime of `target` refuses one of them.
    """
    with tempfile.TemporaryDirectory(prefix="infconv-latency-") as folder:
        racer = Racer(target, feed, Path(folder))
        return isolate.call(lambda: _leave(racer, target, model, layers, quantise), what="Measuring latency")


def _leave(racer: Racer, target: str, model: ir.Model, layers: Sequence[Layer], quantise: Quantise) -> Verdict:
    floats: frozenset[str] = frozenset()
    notes: list[str] = []
    where = f"on one thread of {RUNTIMES[target]} here"
    best = quantise(floats)
    groups = _groups(layers)
    for title, names in groups.items() if len(groups) > 1 else ():
        without = quantise(floats | names)
        found = _faster(racer, best, without, _WORTH)
        if found is not None:
            notes.append(f"{title} stay float: the whole is faster so ({found}, {where}).")
            floats, best, without = floats | names, without, best
        racer.drop(without)
    slower = _faster(racer, best, model, _WORTH / 2)
    found = racer.race(model, best)
    notes.append(f"INT8 takes {found.ratio:.0%} of the FP32 time ({found}, {where}).")
    return Verdict(floats, tuple(notes), pays=slower is None and len(floats) < len(layers))


def _faster(racer: Racer, first: ir.Model, second: ir.Model, margin: float) -> Race | None:
    """Return a race in which `second` is faster by `margin`, when it is so twice; else None.

    Both are opened anew for the second time: where in memory a session happens to lie makes a difference too.
    """
    if not racer.race(first, second).second_is_faster(margin):
        return None
    racer.drop(first)
    racer.drop(second)
    found = racer.race(first, second)
    return found if found.second_is_faster(margin) else None


def _groups(layers: Sequence[Layer]) -> dict[str, frozenset[str]]:
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
