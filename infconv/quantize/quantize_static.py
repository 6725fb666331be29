"""Quantise to INT8 with scales that calibration found."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir
from pydantic import Field

from infconv import isolate
from infconv.errors import UnsupportedError, UsageError
from infconv.passes import Context, Pass
from infconv.passes._values import constant
from infconv.quantize._collect import collect
from infconv.quantize._latency import RUNTIMES
from infconv.quantize._never_slower import Verdict, leave_slow_groups
from infconv.quantize._placement import PLACEMENTS, Layer, Placement, is_kept, layers_of, place
from infconv.quantize._plan_file import PrecisionPlan
from infconv.quantize._qdq import Inserter, QuantisedLayer
from infconv.quantize._record import plan_document, planned_floats
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
    reduce_range: bool = False
    """Use 7 bits for weights: on processors before AVX-512 VNNI products of 8 bits may saturate."""
    never_slower: bool = True
    """Leave groups of layers float that are not faster in INT8, measured where the target runs on this machine."""
    precision_plan: str | None = None
    """A precision plan of an earlier conversion: what it keeps in float32 stays float."""
    trials: int = Field(12, ge=4)
    """How often the model is run to choose schemes, at most."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Quantise in place and return the number of pairs inserted. Raises UsageError without calibration data."""
        placement = PLACEMENTS.get(context.target, PLACEMENTS["onnx"])
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.all_nodes()):
            context.notes.append("The model has QuantizeLinear/DequantizeLinear of its own: they are kept as they are.")
            return 0
        floats = self._kept(model, layers_of(model, placement.compute))
        if not place(model, placement, floats.keys()).layers:
            return 0
        _check(model, context)
        decision = self._decide(model, placement, frozenset(floats), context)
        floats |= {
            name: f"sensitivity: alone it leaves {decision.sensitivity[name]:.1f} dB" for name in decision.floats
        }
        if self.never_slower and context.target in RUNTIMES:
            verdict = _measured(model, placement, decision, frozenset(floats), context)
            context.notes.extend(verdict.notes)
            if not verdict.pays:
                return 0
            floats |= dict.fromkeys(verdict.floats, "kernel: the whole is faster when it is float")
        context.notes.extend(_remarks(model, placement, decision))
        context.documents["precision.yaml"] = plan_document(model, placement, decision, floats).to_yaml()
        return apply_decision(model, placement, decision, frozenset(floats))

    def _kept(self, model: ir.Model, layers: list[Layer]) -> dict[str, str]:
        """Return the layers that stay float by the user's will, and the reason."""
        found = {layer.name: "user: keep" for layer in layers if is_kept(layer.node, self.keep)}
        if self.precision_plan is not None:
            planned = planned_floats(model, layers, PrecisionPlan.load(self.precision_plan))
            found |= dict.fromkeys(planned, "user: the precision plan")
        return found

    def _decide(self, model: ir.Model, placement: Placement, excluded: frozenset[str], context: Context) -> Decision:
        assert context.calibration is not None
        batches, tell = context.calibration.batches, context.progress or (lambda _: None)
        wanted = wanted_tensors(place(model, placement, excluded))
        tell(f"calibrating {len(wanted)} tensors")
        records = collect(model, wanted, batches)
        least = self.min_sqnr if self.min_sqnr is not None or context.tolerance is None else context.tolerance.min_sqnr
        scheme = None if self.scheme == "auto" else self.scheme
        largest = 63 if self.reduce_range else 127
        aim = Aim(scheme, self.correct_bias, self.trials, least, largest_weight=largest)
        tell("choosing scales")
        return isolate.call(
            lambda: search(model, placement, records, evaluation_batches(batches, aim.samples), aim, excluded),
            what="Choosing quantisation parameters",
        )


def _measured(
    model: ir.Model, placement: Placement, decision: Decision, floats: frozenset[str], context: Context
) -> Verdict:
    """Return which layers stay float for speed on the target."""
    assert context.calibration is not None
    (context.progress or (lambda _: None))("measuring latency")

    def quantise(more: frozenset[str]) -> ir.Model:
        clone = model.clone()
        apply_decision(clone, placement, decision, floats | more)
        return clone

    layers = place(model, placement, floats).layers
    if not layers:
        return Verdict(frozenset(), ())
    return leave_slow_groups(context.target, model, layers, quantise, next(context.calibration.batches()))


def _check(model: ir.Model, context: Context) -> None:
    if context.calibration is None:
        raise UsageError("quantize-static needs calibration data.", "Give it with --calibration.")
    opset = model.graph.opset_imports.get("", 0)
    if opset < _OPSET:
        raise UnsupportedError(f"INT8 needs opset {_OPSET} or later; the model has {opset}.", "Add --opset 20.")


def apply_decision(model: ir.Model, placement: Placement, decision: Decision, floats: frozenset[str]) -> int:
    """Write `decision` into `model`, the layers `floats` aside; return the number of pairs inserted."""
    placed = place(model, placement, floats)
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
