"""Quantise to INT8 with scales that calibration found."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir
from pydantic import Field

from infconv import isolate
from infconv.errors import UnsupportedError, UsageError
from infconv.passes import Context, Pass
from infconv.passes._values import constant
from infconv.quantize._collect import collect
from infconv.quantize._placement import PLACEMENTS, Placement, layers_of, place
from infconv.quantize._qdq import Inserter, QuantisedLayer
from infconv.quantize._search import Aim, Decision, evaluation_batches, search, wanted_tensors

_OPSET = 13
"""The first opset with scales for each channel."""


class QuantizeStatic(Pass):
    """Insert QuantizeLinear and DequantizeLinear (INT8) where the target makes integer kernels of them.

    Scales come from calibration data: weights have one for each channel, activations one for each tensor, by the
    scheme that costs the outputs least. A model that has Q/DQ of its own keeps them.
    """

    scheme: Literal["auto", "absmax", "percentile", "entropy", "mse"] = "auto"
    """How activations are clipped; auto: chosen for each tensor by the error at the outputs."""
    keep: tuple[str, ...] = ()
    """Layers that stay float: names, patterns such as `*/head/*`, operators such as `op:Gemm`."""
    correct_bias: bool = True
    """Make up for the mean error of rounded weights, where that helps."""
    min_sqnr: float | None = None
    """Keep the most sensitive layers float until the outputs reach this many dB; by default the tolerance's."""
    trials: int = Field(12, ge=4)
    """How often the model is run to choose schemes, at most."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Quantise in place and return the number of pairs inserted. Raises UsageError without calibration data."""
        placement = PLACEMENTS.get(context.target, PLACEMENTS["onnx"])
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.all_nodes()):
            context.notes.append("The model has QuantizeLinear/DequantizeLinear of its own: they are kept as they are.")
            return 0
        excluded = frozenset(layer.name for layer in layers_of(model, placement.compute) if self._is_kept(layer.node))
        placed = place(model, placement, excluded)
        if not placed.layers:
            return 0
        _check(model, context)
        assert context.calibration is not None
        tell = context.progress or (lambda _: None)
        tell(f"calibrating {len(placed.tensors)} tensors")
        records = collect(model, wanted_tensors(placed), context.calibration.batches)
        batches = context.calibration.batches
        least = self.min_sqnr if self.min_sqnr is not None or context.tolerance is None else context.tolerance.min_sqnr
        aim = Aim(None if self.scheme == "auto" else self.scheme, self.correct_bias, self.trials, least)
        tell("choosing scales")
        decision = isolate.call(
            lambda: search(model, placement, records, evaluation_batches(batches, aim.samples), aim, excluded),
            what="Choosing quantisation parameters",
        )
        context.notes.extend(_remarks(model, placement, decision))
        return apply_decision(model, placement, decision, excluded)

    def _is_kept(self, node: ir.Node) -> bool:
        name = node.name or node.outputs[0].name or ""
        return any(p == f"op:{node.op_type}" or fnmatchcase(name, p) for p in self.keep)


def _check(model: ir.Model, context: Context) -> None:
    if context.calibration is None:
        raise UsageError("quantize-static needs calibration data.", "Give it with --calibration.")
    opset = model.graph.opset_imports.get("", 0)
    if opset < _OPSET:
        raise UnsupportedError(f"INT8 needs opset {_OPSET} or later; the model has {opset}.", "Add --opset 20.")


def apply_decision(model: ir.Model, placement: Placement, decision: Decision, excluded: frozenset[str]) -> int:
    """Write `decision` into `model`; return the number of pairs inserted."""
    placed = place(model, placement, excluded | set(decision.floats))
    params = {group: decision.params[values[0].name or ""] for group, values in placed.groups().items()}
    constants = {
        layer.node: QuantisedLayer(
            decision.weights[layer.name], decision.biases.get(layer.name, constant(layer.bias) if layer.bias else None)
        )
        for layer in placed.layers
    }
    return Inserter(model, placement).insert(placed, params, constants)


def _remarks(model: ir.Model, placement: Placement, decision: Decision) -> list[str]:
    if not decision.floats:
        return []
    labels = {layer.name: layer.label for layer in layers_of(model, placement.compute)}
    names = ", ".join(labels[name] for name in decision.floats[:5]) + (" …" if len(decision.floats) > 5 else "")
    return [f"{len(decision.floats)} sensitive layers stay float to reach {decision.sqnr:.1f} dB: {names}"]
