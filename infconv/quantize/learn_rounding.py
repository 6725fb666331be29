"""Layer-wise reconstruction: round each weight up or down so that the layer's outputs change least."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv import isolate
from infconv.errors import UsageError
from infconv.passes import Context, Pass
from infconv.passes._values import constant
from infconv.quantize._collect import Batches, open_for_calibration, with_outputs
from infconv.quantize._constants import set_constant
from infconv.quantize._descent import descend
from infconv.quantize._hessians import in_parts
from infconv.quantize._patches import Moments, as_weight, matrices, rows_of
from infconv.quantize._placement import Layer, is_kept, layers_of
from infconv.quantize._schemes import quantise_weight

Array = np.ndarray[Any, np.dtype[Any]]

_LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
_HELD_OUT = 4
"""Every fourth batch, from the second on, judges what the others taught."""


@dataclasses.dataclass(frozen=True)
class _Learned:
    """What becomes of a layer's constants, and its error on held-out batches as a share of that of nearest rounding."""

    weight: Array
    bias: Array | None
    share: float


class LearnRounding(Pass):
    """Put weights on the grid of INT8 before quantize-static or quantize-dynamic, each rounded up or down.

    What is chosen on calibration data leaves the least error at the outputs of the layer; a layer keeps its weights
    where that does not hold on batches that were held out. The mean error goes into the bias. Source: Nagel et al.,
    "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound), 2020.
    """

    rows: int = Field(1024, ge=64)
    """Rows (places of a convolution) of a layer's input that are looked at in each batch, at most."""
    reduce_range: bool = False
    """As in the quantising step: 7 bits for weights."""
    keep: tuple[str, ...] = ()
    """Layers that stay as they are: names, patterns such as `*/head/*`, operators such as `op:Gemm`."""
    seed: int = 0
    """Which rows are drawn."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Change weights and biases in place and return the number of layers. Raises UsageError without calibration."""
        layers = [layer for layer in layers_of(model, _LAYERS) if _is_own(layer) and not is_kept(layer.node, self.keep)]
        if not layers:
            return 0
        if context.calibration is None:
            raise UsageError("learn-rounding needs calibration data.", "Give it with --calibration.")
        shares: list[float] = []
        batches = context.calibration.batches
        for part in in_parts(layers, _side):
            learned = isolate.call(lambda part=part: self._learn(model, part, batches), what="Learning to round")
            for layer, found in zip(part, learned, strict=True):
                if found is not None:
                    _write(layer, found)
                    shares.append(found.share)
        if shares:
            context.notes.append(
                f"learn-rounding: {len(shares)} of {len(layers)} layers; rounding costs their outputs "
                f"{float(np.median(shares)):.0%} (median) of what it did, on batches held out."
            )
        return len(shares)

    def _learn(self, model: ir.Model, layers: Sequence[Layer], batches: Batches) -> list[_Learned | None]:
        seen, held_out = self._moments(model, layers, batches)
        if held_out[0].count == 0:
            raise UsageError("learn-rounding needs two batches of calibration data or more.", "Give more samples.")
        return [self._learn_layer(*each) for each in zip(layers, seen, held_out, strict=True)]

    def _moments(
        self, model: ir.Model, layers: Sequence[Layer], batches: Batches
    ) -> tuple[list[Moments], list[Moments]]:
        """Return the moments of each layer's inputs, of the batches to learn from and of those held out."""
        rng = np.random.default_rng(self.seed)
        found = [Moments() for _ in layers], [Moments() for _ in layers]
        names = list(dict.fromkeys(layer.data.name or "" for layer in layers))
        with tempfile.TemporaryDirectory(prefix="infconv-calibration-") as folder:
            session = open_for_calibration(with_outputs(model, names, Path(folder) / "model.onnx"))
            inputs = {value.name for value in session.get_inputs()}
            for number, batch in enumerate(batches()):
                values = session.run(names, {name: array for name, array in batch.items() if name in inputs})
                outputs = dict(zip(names, values, strict=True))
                for layer, moments in zip(layers, found[number % _HELD_OUT == 1], strict=True):
                    moments.add(rows_of(layer, outputs[layer.data.name or ""], self.rows, rng))
        return found

    def _learn_layer(self, layer: Layer, seen: Moments, held_out: Moments) -> _Learned | None:
        weight, most = constant(layer.weight), 63 if self.reduce_range else 127
        assert weight is not None
        weights, exact = quantise_weight(weight, layer.axis, most), matrices(layer).astype(np.float32)
        scales = weights.scales.reshape(len(exact), 1, -1)
        nearest = np.clip(np.rint(exact / scales), -most, most)
        # The largest integer of a channel stays: from it the quantising step finds the scale again.
        pinned = np.abs(nearest) == most
        lowest = np.where(pinned, nearest, np.clip(np.floor(exact / scales), -most, most))
        highest = np.where(pinned, nearest, np.clip(lowest + 1, -most, most))
        centre = seen.mean() if layer.bias is not None else np.zeros_like(seen.mean())
        moments, judged = seen.to_learn_from(centre), held_out.about(centre)
        found = np.stack(
            [descend(nearest[g], scales[g], exact[g], moments[g], lowest[g], highest[g]) for g in range(len(exact))]
        )
        before, after = (_error(integers * scales - exact, judged) for integers in (nearest, found))
        if not after < before:
            return None
        shift = np.einsum("gk,gkn->gn", centre, exact - found * scales).reshape(-1)
        own = constant(layer.bias)
        bias = None if own is None else (own + shift).astype(np.float32)
        return _Learned(as_weight(layer, (found * scales).astype(np.float32)), bias, after / before)


def _error(differences: Array, moments: Array) -> float:
    """Return the mean square that `differences` [groups, K, N] of the weight make at the outputs."""
    return float(np.sum(np.matmul(moments, differences) * differences))


def _is_own(layer: Layer) -> bool:
    """Whether no other node reads the layer's constants."""
    values = [value for value in (layer.weight, layer.bias) if value is not None]
    return all(len(value.uses()) == 1 and not value.is_graph_output() for value in values)


def _side(layer: Layer) -> int:
    """Return K of a square matrix as large as both moments of a layer."""
    groups, size, _ = matrices(layer).shape
    return int(size * (2 * groups) ** 0.5)


def _write(layer: Layer, found: _Learned) -> None:
    set_constant(layer.weight, ir.tensor(np.ascontiguousarray(found.weight), name=layer.weight.name))
    if layer.bias is not None and found.bias is not None:
        set_constant(layer.bias, ir.tensor(found.bias, name=layer.bias.name))
