"""Decide how to quantise a model: by what calibration saw, and by what each choice does to the model's outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes import Workers
from infconv.passes._values import constant
from infconv.quantize._collect import Batches, Wanted, value_bytes
from infconv.quantize._placement import Layer, Placed, Placement, place
from infconv.quantize._ranking import Ranking, rank, without
from infconv.quantize._readers import batch_size
from infconv.quantize._schemes import Grid, Params, Scheme, Weights, candidates, quantise_weight
from infconv.quantize._simulate import Setting, Simulator, run_float, sqnr
from infconv.quantize._sketch import Record, Sketch

Array = np.ndarray[Any, np.dtype[Any]]

_UNIFORM: tuple[Scheme, ...] = ("mse", "absmax")
"""The schemes that are tried for the whole model. The first is kept unless another is clearly better."""
_CLEAR = 0.5
"""A choice for the whole model must raise the signal-to-noise ratio by this many dB on the few samples of a trial:
below that, what is better on other data is not known, and was measured to be least squared error and corrected biases.
"""
_MOST, _LEAST, _ELEMENTS = 16, 4, 1 << 25
"""Calibration samples on which choices are judged, between; and the elements of watched tensors that are enough."""
_GAIN = 0.05
"""The same for one tensor."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """What the search is for."""

    scheme: Scheme | None = None
    """Of every tensor; None: the one that costs least."""
    correct_bias: bool = True
    trials: int = 3
    """How often the model is run to choose schemes; runs beyond three try another one for a single tensor."""
    min_sqnr: float | None = None
    """Layers stay float, the most sensitive first, until the outputs reach this signal-to-noise ratio in dB."""
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


def evaluation_batches(
    model: ir.Model, wanted: Sequence[Wanted], batches: Batches, samples: int | None = None
) -> list[Mapping[str, Array]]:
    """Return the first calibration batches, on which choices are judged.

    Together they hold `samples`, by default 16, or fewer where already the values of fewer are many.
    """
    found: list[Mapping[str, Array]] = []
    count = 0
    for batch in batches():
        if samples is None:
            sizes = value_bytes(model, batch)
            elements = sum(sizes.get(item.name, 0) for item in wanted) // 4 // max(batch_size(batch), 1)
            samples = min(max(_ELEMENTS // max(elements, 1), _LEAST), _MOST)
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
    workers: Workers | None = None,
) -> Decision:
    """Return the decision for `model`, which is not changed. `excluded`: layers that stay float in any case.

    `workers` judge the layers' sensitivity, each some of them.
    """
    return _Search(model, placement, records, batches, aim, excluded, workers).run()


def sensitivities(
    model: ir.Model,
    placement: Placement,
    decision: Decision,
    batches: Sequence[Mapping[str, Array]],
    excluded: frozenset[str],
    workers: Workers | None = None,
) -> dict[str, float]:
    """Return layer -> the outputs' signal-to-noise ratio in dB when it alone is quantised as `decision` says."""
    placed = place(model, placement, excluded)
    groups = {group: decision.params[values[0].name or ""] for group, values in placed.groups().items()}
    setting = without(Setting(groups, frozenset(), frozenset(), decision.biases), placed, set(excluded))
    grid, names = Grid(placement.activation, placement.symmetric), [layer.name for layer in placed.layers]
    reference = run_float(model, batches)
    ranking = Ranking(placement, excluded, decision.weights, grid, batches, reference, setting, names)
    return rank(ranking, model, ranking.simulator(model), workers)


class _Search:
    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        records: Mapping[str, Record],
        batches: Sequence[Mapping[str, Array]],
        aim: Aim,
        excluded: frozenset[str],
        workers: Workers | None,
    ) -> None:
        self._model, self._placement, self._aim, self._excluded = model, placement, aim, excluded
        self._workers = workers
        self._placed = place(model, placement, excluded)
        self._records = records
        self._grid = grid = Grid(placement.activation, placement.symmetric)
        self._choices = {
            group: candidates(_joint([records[v.name or ""].sketch for v in values]), grid, _schemes(aim))
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
        setting, best = self._uniform(self._corrected() if self._aim.correct_bias else {})
        if setting.biases:
            setting, best = self._better(setting, best, dataclasses.replace(setting, biases={}), _CLEAR)
        if self._aim.scheme is None:
            setting, best = self._refine(setting, best)
        floats: tuple[str, ...] = ()
        sensitivity: dict[str, float] = {}
        if self._aim.min_sqnr is not None and best < self._aim.min_sqnr:
            setting, best, floats, sensitivity = self._within_budget(setting, best, self._aim.min_sqnr)
        params = {v.name or "": setting.params[group] for v, group in self._placed.tensors.items()}
        return Decision(params, self._weights, setting.biases, floats, best, sensitivity)

    def _score(self, setting: Setting) -> float:
        """Return the signal-to-noise ratio in dB on the evaluation samples."""
        return sqnr(self._reference, self._simulator.run(setting))

    # --- schemes ---------------------------------------------------------------------------------------------------

    def _uniform(self, biases: Mapping[str, Array]) -> tuple[Setting, float]:
        """Return the best setting that uses one scheme everywhere."""
        schemes = _UNIFORM if self._aim.scheme is None else (self._aim.scheme,)
        settings = [self._of_scheme(name, biases) for name in schemes]
        setting, best = settings[0], self._score(settings[0])
        for other in settings[1:]:
            if other.params != setting.params:
                setting, best = self._better(setting, best, other, _CLEAR)
        return setting, best

    def _of_scheme(self, name: Scheme, biases: Mapping[str, Array]) -> Setting:
        params = {group: found.get(name) or found["absmax"] for group, found in self._choices.items()}
        return dataclasses.replace(self._all, params=params, biases=biases)

    def _better(self, setting: Setting, score: float, other: Setting, gain: float = _GAIN) -> tuple[Setting, float]:
        """Return the other setting with its score where it gains as much, else this one."""
        found = self._score(other)
        return (other, found) if found > score + gain else (setting, score)

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
        names = [layer.name for layer in self._placed.layers]
        own = (self._placement, self._excluded, self._weights, self._grid)
        ranking = Ranking(*own, self._batches, self._reference, setting, names)
        self._simulator = ranking.simulator(self._model)
        alone = rank(ranking, self._model, self._simulator, self._workers)
        order = sorted(names, key=lambda name: alone[name])
        fewest, most = 1, len(order)
        while fewest < most:  # more float layers are better, near enough; the result is checked in any case
            middle = (fewest + most) // 2
            enough = self._score(self._without(setting, set(order[:middle]))) >= least
            fewest, most = (fewest, middle) if enough else (middle + 1, most)
        kept = self._fewer(setting, order[:fewest], least)
        setting = self._without(setting, set(kept))
        return setting, self._score(setting), tuple(kept), alone

    def _fewer(self, setting: Setting, kept: list[str], least: float) -> list[str]:
        """Return those of `kept` that must stay float; tried from the least sensitive on."""
        for name in reversed(list(kept)):
            rest = [other for other in kept if other != name]
            if rest and self._score(self._without(setting, set(rest))) >= least:
                kept = rest
        return kept

    def _without(self, setting: Setting, floats: set[str]) -> Setting:
        """Return `setting` with the layers `floats` not quantised."""
        return without(setting, place(self._model, self._placement, self._excluded | floats), floats)


def _schemes(aim: Aim) -> tuple[Scheme, ...]:
    """Return the schemes that may be chosen: any for a single tensor."""
    if aim.scheme is not None:
        return (aim.scheme,)
    return (*_UNIFORM, "percentile", "entropy") if aim.trials > len(_UNIFORM) + 1 else _UNIFORM


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
