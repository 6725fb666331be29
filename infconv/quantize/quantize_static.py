"""Quantise to INT8 with scales that calibration found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from infconv import isolate
from infconv.errors import UnsupportedError, UsageError
from infconv.passes import Context, Pass
from infconv.passes._values import constant
from infconv.quantize._collect import collect
from infconv.quantize._latency import RUNTIMES
from infconv.quantize._never_slower import Verdict, leave_slow_groups
from infconv.quantize._placement import PLACEMENTS, WITHOUT_16_BITS, Placement, is_kept, layers_of, place
from infconv.quantize._plan_file import PrecisionPlan
from infconv.quantize._qdq import Inserter, QuantisedLayer
from infconv.quantize._quality import Kept, QualitySearch, Quantise
from infconv.quantize._record import Planned, plan_document, planned
from infconv.quantize._search import Aim, Decision, evaluation_batches, search, sensitivities, wanted_tensors
from infconv.quantize._unplaced import why_none

_OPSET = 13
"""The first opset with scales for each channel."""


class QuantizeStatic(Pass):
    """Insert QuantizeLinear and DequantizeLinear (INT8) where the target makes integer kernels of them.

    Scales come from calibration data: weights have one for each channel, activations one for each tensor, by the
    scheme that costs the outputs least. A model that has Q/DQ of its own keeps them.
    """

    uses_quality: ClassVar[bool] = True

    scheme: Literal["auto", "absmax", "percentile", "entropy", "mse"] = "auto"
    """How activations are clipped; auto: chosen for each tensor by the error at the outputs."""
    activation_bits: Literal[8, 16] = 8
    """16 is refused on every target: none has such kernels."""
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
    """A precision plan of an earlier conversion: its scales are used, and what it keeps in float32 stays float."""
    search_seconds: float = Field(300.0, ge=0)
    """Time to look for the layers that have to stay float when the user's metric falls below its budget."""
    trials: int = Field(3, ge=3)
    """How often the model is run to choose schemes; each run beyond three tries another one for a single tensor."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Quantise in place and return the number of pairs inserted. Raises UsageError without calibration data."""
        if self.activation_bits == 16:
            raise UnsupportedError(WITHOUT_16_BITS.get(context.target, WITHOUT_16_BITS["onnx"]), "Use 8 bits, or keep.")
        placement = PLACEMENTS.get(context.target, PLACEMENTS["onnx"])
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.all_nodes()):
            context.notes.append("The model has QuantizeLinear/DequantizeLinear of its own: they are kept as they are.")
            return 0
        plan = None if self.precision_plan is None else PrecisionPlan.load(self.precision_plan)
        given = None if plan is None else planned(model, placement, plan)
        layers = layers_of(model, placement.compute)
        floats = {layer.name: "user: keep" for layer in layers if is_kept(layer.node, self.keep)}
        floats |= given.floats if given else {}
        placed = place(model, placement, floats.keys())
        if not placed.layers:
            context.notes.append(why_none(model, placement, floats.keys()))
            return 0
        _check_opset(model)
        if given is not None:
            _tell_unknown(given, context)
            if not given.missing(placed):
                return self._finish(model, placement, given.decision(placed, self._largest), floats, context, given)
        _check_data(context, [] if given is None else given.missing(placed))
        decision = self._decide(model, placement, frozenset(floats), context)
        if given is not None:
            decision = dataclasses.replace(decision, params={**decision.params, **given.params})
        floats |= {
            name: f"sensitivity: alone it leaves {decision.sensitivity[name]:.1f} dB" for name in decision.floats
        }
        facts: Mapping[str, float] = {}
        if context.quality is not None:
            kept = self._for_quality(model, placement, decision, frozenset(floats), context)
            context.notes.extend(kept.notes)
            floats |= {name: f"sensitivity: alone it leaves {kept.sensitivity[name]:.1f} dB" for name in kept.floats}
            facts = kept.facts
        if self.never_slower and context.target in RUNTIMES:
            verdict = _measured(model, placement, decision, frozenset(floats), context)
            context.notes.extend(verdict.notes)
            if not verdict.pays:
                return 0
            floats |= dict.fromkeys(verdict.floats, "kernel: the whole is faster when it is float")
        context.notes.extend(_remarks(model, placement, decision))
        return self._finish(model, placement, decision, floats, context, given, facts)

    def _finish(
        self,
        model: ir.Model,
        placement: Placement,
        decision: Decision,
        floats: Mapping[str, str],
        context: Context,
        given: Planned | None,
        facts: Mapping[str, float] | None = None,
    ) -> int:
        reasons = {} if given is None else given.reasons
        document = plan_document(model, placement, decision, floats, self._largest, reasons)
        document = dataclasses.replace(document, facts={**document.facts, **(facts or {})})
        context.documents["precision.yaml"] = document.to_yaml()
        return apply_decision(model, placement, decision, frozenset(floats))

    @property
    def _largest(self) -> int:
        return 63 if self.reduce_range else 127

    def _decide(self, model: ir.Model, placement: Placement, excluded: frozenset[str], context: Context) -> Decision:
        assert context.calibration is not None
        batches, tell = context.calibration.batches, context.progress or (lambda _: None)
        wanted = wanted_tensors(place(model, placement, excluded))
        tell(f"calibrating {len(wanted)} tensors")
        records = collect(model, wanted, batches, workers=context.workers)
        least = self.min_sqnr if self.min_sqnr is not None or context.tolerance is None else context.tolerance.min_sqnr
        scheme = None if self.scheme == "auto" else self.scheme
        aim = Aim(scheme, self.correct_bias, self.trials, least, largest_weight=self._largest)
        tell("choosing scales")
        few, workers = evaluation_batches(model, wanted, batches), context.workers
        if workers is not None and not workers.forked:  # a fork could not speak with them
            return search(model, placement, records, few, aim, excluded, workers)
        return isolate.call(
            lambda: search(model, placement, records, few, aim, excluded, workers),
            what="Choosing quantisation parameters",
        )

    def _for_quality(
        self, model: ir.Model, placement: Placement, decision: Decision, floats: frozenset[str], context: Context
    ) -> Kept:
        """Return which layers stay float so that the user's metric stays within its budget."""
        assert context.calibration is not None
        assert context.quality is not None
        tell, workers, batches = context.progress or (lambda _: None), context.workers, context.calibration.batches

        def ranked() -> dict[str, float]:
            wanted = wanted_tensors(place(model, placement, floats))
            few = evaluation_batches(model, wanted, batches)
            if workers is not None and not workers.forked:
                return sensitivities(model, placement, decision, few, floats, workers)
            return isolate.call(
                lambda: sensitivities(model, placement, decision, few, floats, workers), what="Ranking the layers"
            )

        quantise = _quantised(model, placement, decision, floats)
        return QualitySearch(context.quality, quantise, self.search_seconds, tell).run(ranked)


def _quantised(model: ir.Model, placement: Placement, decision: Decision, floats: frozenset[str]) -> Quantise:
    """Return what quantises a copy of `model`, more layers than `floats` left float."""

    def quantise(more: frozenset[str]) -> ir.Model:
        clone = model.clone()
        apply_decision(clone, placement, decision, floats | more)
        return clone

    return quantise


def _measured(
    model: ir.Model, placement: Placement, decision: Decision, floats: frozenset[str], context: Context
) -> Verdict:
    """Return which layers stay float for speed on the target."""
    assert context.calibration is not None
    (context.progress or (lambda _: None))("measuring latency")

    layers = place(model, placement, floats).layers
    if not layers:
        return Verdict(frozenset(), ())
    quantise = _quantised(model, placement, decision, floats)
    return leave_slow_groups(context.target, model, layers, quantise, next(context.calibration.batches()))


def _tell_unknown(given: Planned, context: Context) -> None:
    if given.unknown:
        some = ", ".join(f"'{entry.node}'" for entry in given.unknown[:3]) + (" …" if len(given.unknown) > 3 else "")
        context.notes.append(
            f"quantize-static: {len(given.unknown)} entries of the precision plan name no node: {some}."
        )


def _check_data(context: Context, missing: Sequence[str]) -> None:
    """Raise UsageError when there is no data for the tensors `missing` from a plan, or for all."""
    if context.calibration is None and missing:
        lacks = (
            f"The precision plan has no scale for {len(missing)} of the tensors to be quantised, e.g. '{missing[0]}'."
        )
        raise UsageError(lacks, "Give data for them with --calibration.")
    if context.calibration is None:
        raise UsageError("quantize-static needs calibration data.", "Give it with --calibration.")


def _check_opset(model: ir.Model) -> None:
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
