"""Decide how to quantise a model: by what calibration saw, and by what each choice does to the model's outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes._values import constant
from infconv.quantize._collect import Batches, Wanted
from infconv.quantize._placement import Layer, Placed, Placement, place
from infconv.quantize._readers import batch_size
from infconv.quantize._schemes import Grid, Params, Scheme, Weights, candidates, quantise_weight
from infconv.quantize._simulate import Setting, Simulator, run_float, sqnr
from infconv.quantize._sketch import Record, Sketch

Array = np.ndarray[Any, np.dtype[Any]]

_RANKING = 8
"""Samples on which layers are ranked by their sensitivity."""
_GAIN = 0.05
"""A choice must raise the signal-to-noise ratio by this many dB to be preferred."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """What the search is for."""

    scheme: Scheme | None = None
    """Of every tensor; None: the one that costs least."""
    correct_bias: bool = True
    trials: int = 12
    """How often the model is run on the evaluation samples to choose schemes, at most."""
    min_sqnr: float | None = None
    """Layers stay float, the most sensitive first, until the outputs reach this signal-to-noise ratio in dB."""
    samples: int = 32
    """Calibration samples on which choices are judged."""
    largest_weight: int = 127
    """The largest integer that a weight becomes."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """How a model is quantised. Everything is by name, so that it can be handed from process to process."""

    params: Mapping[str, Params]
    """Tensor -> scale and zero point."""
    weights: Mapping[str, Weights]
    biases: Mapping[str, Array]
    """Layer -> corrected bias."""
    floats: tuple[str, ...]
    """Layers that stay float for accuracy."""
    sqnr: float
    """Of the worst output on the evaluation samples, in dB, as simulated."""
    sensitivity: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Layer -> the outputs' signal-to-noise ratio in dB when it alone is quantised; empty when nobody asked."""


def wanted_tensors(placed: Placed) -> list[Wanted]:
    """Return what calibration must watch: tensors that get Q/DQ, the channels of those that layers read."""
    axes = {layer.data: (1 if layer.node.op_type in {"Conv", "ConvTranspose"} else -1) for layer in placed.layers}
    return [Wanted(value.name or "", axes.get(value)) for value in placed.tensors]


def evaluation_batches(batches: Batches, samples: int) -> list[Mapping[str, Array]]:
    """Return the first calibration batches that together hold `samples`."""
    found: list[Mapping[str, Array]] = []
    count = 0
    for batch in batches():
        found.append(batch)
        count += batch_size(batch)
        if count >= samples:
            break
    return found


def search(
    model: ir.Model,
    placement: Placement,
    records: Mapping[str, Record],
    batches: Sequence[Mapping[str, Array]],
    aim: Aim,
    excluded: frozenset[str],
) -> Decision:
    """Return the decision for `model`, which is not changed. `excluded`: layers that stay float in any case."""
    return _Search(model, placement, records, batches, aim, excluded).run()


class _Search:
    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        records: Mapping[str, Record],
        batches: Sequence[Mapping[str, Array]],
        aim: Aim,
        excluded: frozenset[str],
    ) -> None:
        self._model, self._placement, self._aim, self._excluded = model, placement, aim, excluded
        self._placed = place(model, placement, excluded)
        self._records = records
        self._grid = grid = Grid(placement.activation, placement.symmetric)
        self._choices = {
            group: candidates(_joint([records[v.name or ""].sketch for v in values]), grid)
            for group, values in self._placed.groups().items()
        }
        self._weights = {
            layer.name: quantise_weight(_weight(layer), layer.axis, aim.largest_weight) for layer in self._placed.layers
        }
        self._batches = batches
        self._reference = run_float(model, batches)
        self._simulator = Simulator(model, self._placed, self._weights, batches, grid)
        self._all = Setting(
            {},
            frozenset(layer.name for layer in self._placed.layers),
            frozenset(v.name or "" for v in self._placed.tensors),
        )

    def run(self) -> Decision:
        setting, best = self._uniform()
        if self._aim.correct_bias:
            setting, best = self._better(setting, best, dataclasses.replace(setting, biases=self._corrected()))
        if self._aim.scheme is None:
            setting, best = self._refine(setting, best)
        floats: tuple[str, ...] = ()
        sensitivity: dict[str, float] = {}
        if self._aim.min_sqnr is not None and best < self._aim.min_sqnr:
            setting, best, floats, sensitivity = self._within_budget(setting, best, self._aim.min_sqnr)
        params = {v.name or "": setting.params[group] for v, group in self._placed.tensors.items()}
        return Decision(params, self._weights, setting.biases, floats, best, sensitivity)

    def _score(self, setting: Setting, batches: int | None = None) -> float:
        """Return the signal-to-noise ratio in dB, on the first `batches` or all."""
        return sqnr(self._reference[:batches], self._simulator.run(setting, batches))

    # --- schemes ---------------------------------------------------------------------------------------------------

    def _uniform(self) -> tuple[Setting, float]:
        """Return the best setting that uses one scheme everywhere."""
        names: tuple[Scheme, ...] = ("absmax", "percentile", "entropy", "mse")
        best: tuple[Setting, float] | None = None
        for name in (self._aim.scheme,) if self._aim.scheme else names:
            params = {group: found.get(name, found["absmax"]) for group, found in self._choices.items()}
            setting = dataclasses.replace(self._all, params=params)
            score = self._score(setting)
            if best is None or score > best[1] + _GAIN:
                best = setting, score
        assert best is not None
        return best

    def _better(self, setting: Setting, score: float, other: Setting) -> tuple[Setting, float]:
        """Return the better of two settings with its score."""
        found = self._score(other)
        return (other, found) if found > score + _GAIN else (setting, score)

    def _refine(self, setting: Setting, score: float) -> tuple[Setting, float]:
        """Try the other schemes for each group of tensors in turn, those first whose candidates differ most."""
        order = sorted(self._choices, key=lambda group: -_spread(self._choices[group]))
        for group in order:
            for params in dict.fromkeys(self._choices[group].values()):
                if self._simulator.runs >= self._aim.trials:
                    return setting, score
                if params != setting.params[group]:
                    other = dataclasses.replace(setting, params={**setting.params, group: params})
                    setting, score = self._better(setting, score, other)
        return setting, score

    # --- biases ----------------------------------------------------------------------------------------------------

    def _corrected(self) -> dict[str, Array]:
        """Return layer -> bias that makes up for the mean error of its rounded weights.

        Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, with the
        inputs' means measured. A border of padding counts like the inside.
        """
        found: dict[str, Array] = {}
        for layer in self._placed.layers:
            channels = self._records[layer.data.name or ""].channels
            own = self._simulator.own_bias(layer.name)
            if channels is not None and own is not None and layer.node.op_type != "ConvTranspose":
                error = _weight(layer).astype(np.float64) - self._weights[layer.name].real()
                found[layer.name] = (own + _response(layer, error, channels.mean)).astype(np.float32)
        return found

    # --- sensitivity -----------------------------------------------------------------------------------------------

    def _within_budget(
        self, setting: Setting, score: float, least: float
    ) -> tuple[Setting, float, tuple[str, ...], dict[str, float]]:
        """Keep the fewest layers float, the most sensitive ones first, with which the outputs reach `least` dB."""
        self._simulator = Simulator(self._model, self._placed, self._weights, self._batches, self._grid, switches=True)
        names = [layer.name for layer in self._placed.layers]
        few = self._few()
        alone = {name: self._score(self._without(setting, set(names) - {name}), few) for name in names}
        order = sorted(names, key=lambda name: alone[name])
        fewest, most = 1, len(order)
        while fewest < most:  # more float layers are better, near enough; the result is checked in any case
            middle = (fewest + most) // 2
            enough = self._score(self._without(setting, set(order[:middle]))) >= least
            fewest, most = (fewest, middle) if enough else (middle + 1, most)
        kept = self._fewer(setting, order[:fewest], least)
        setting = self._without(setting, set(kept))
        return setting, self._score(setting), tuple(kept), alone

    def _few(self) -> int:
        """Return how many batches hold enough samples to tell layers apart."""
        count = 0
        for number, batch in enumerate(self._batches, 1):
            count += batch_size(batch)
            if count >= _RANKING:
                return number
        return len(self._batches)

    def _fewer(self, setting: Setting, kept: list[str], least: float) -> list[str]:
        """Return those of `kept` that must stay float; tried from the least sensitive on."""
        for name in reversed(list(kept)):
            rest = [other for other in kept if other != name]
            if rest and self._score(self._without(setting, set(rest))) >= least:
                kept = rest
        return kept

    def _without(self, setting: Setting, floats: set[str]) -> Setting:
        """Return `setting` with the layers `floats` not quantised."""
        placed = place(self._model, self._placement, self._excluded | floats)
        return dataclasses.replace(
            setting,
            layers=frozenset(layer.name for layer in placed.layers),
            tensors=frozenset(value.name or "" for value in placed.tensors),
            biases={name: bias for name, bias in setting.biases.items() if name not in floats},
        )


def _weight(layer: Layer) -> Array:
    weight = constant(layer.weight)
    assert weight is not None
    return weight


def _joint(sketches: Sequence[Sketch]) -> Sketch:
    if len(sketches) == 1:
        return sketches[0]
    joint = Sketch()
    for sketch in sketches:
        joint.merge(sketch)
    return joint


def _spread(found: Mapping[Scheme, Params]) -> float:
    scales = [params.scale for params in found.values()]
    return math.log(max(scales) / min(scales)) if scales else 0.0


def _response(layer: Layer, weight: Array, mean: Array) -> Array:
    """Return the layer's output for an input that is `mean` everywhere, one element for each output channel."""
    if layer.node.op_type == "Conv":
        kernel = weight.reshape(*weight.shape[:2], -1).sum(2)
        groups = len(mean) // kernel.shape[1]
        parts = zip(np.split(kernel, groups), np.split(mean, groups), strict=True)
        return np.concatenate([part @ part_mean for part, part_mean in parts])
    return weight @ mean if layer.axis == 0 else mean @ weight
