"""How much each layer loses by being quantised alone; the layers may be divided among several processes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.model import load, save
from infconv.passes import Workers
from infconv.quantize._placement import Placed, Placement, place
from infconv.quantize._schemes import Grid, Weights
from infconv.quantize._simulate import Outputs, Setting, Simulator, sqnr

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What layers are judged by. All but the model, so that it can be handed from process to process."""

    placement: Placement
    excluded: frozenset[str]
    """Layers that stay float in any case."""
    weights: Mapping[str, Weights]
    grid: Grid
    batches: Sequence[Mapping[str, Array]]
    reference: Outputs
    """What the float model computes of the batches."""
    setting: Setting
    """With all of `layers` quantised."""
    layers: Sequence[str]

    def simulator(self, model: ir.Model) -> Simulator:
        """Return a simulator in which layers can be switched."""
        placed = place(model, self.placement, self.excluded)
        return Simulator(model, placed, self.weights, self.batches, self.grid, switches=True)

    def alone(self, model: ir.Model, simulator: Simulator, names: Sequence[str]) -> dict[str, float]:
        """Return layer -> the outputs' signal-to-noise ratio in dB when of all layers it alone is quantised."""
        found: dict[str, float] = {}
        for name in names:
            floats = set(self.layers) - {name}
            placed = place(model, self.placement, self.excluded | floats)
            found[name] = sqnr(self.reference, simulator.run(without(self.setting, placed, floats)))
        return found


def without(setting: Setting, placed: Placed, floats: set[str]) -> Setting:
    """Return `setting` with what is placed when the layers `floats` are not quantised."""
    return dataclasses.replace(
        setting,
        layers=frozenset(layer.name for layer in placed.layers),
        tensors=frozenset(value.name or "" for value in placed.tensors),
        biases={name: bias for name, bias in setting.biases.items() if name not in floats},
    )


def rank(ranking: Ranking, model: ir.Model, simulator: Simulator, workers: Workers | None) -> dict[str, float]:
    """Return `ranking.alone` of all its layers, from `simulator` or, with `workers`, from one in each of them."""
    if workers is None or workers.count == 1:
        return ranking.alone(model, simulator, ranking.layers)
    count = min(workers.count, len(ranking.layers))
    with tempfile.TemporaryDirectory(prefix="infconv-ranking-") as folder:
        save(model, Path(folder) / "model.onnx")
        shards = workers.spread(partial(_shard, ranking, count), count, Path(folder))
    found = {name: score for shard in shards for name, score in shard.items()}
    return {name: found[name] for name in ranking.layers}


def _shard(ranking: Ranking, count: int, folder: Path, number: int) -> dict[str, float]:
    model = load(folder / "model.onnx")
    return ranking.alone(model, ranking.simulator(model), ranking.layers[number::count])
