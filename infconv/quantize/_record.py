"""What was decided for INT8 as a precision plan, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from infconv.errors import UsageError
from infconv.quantize._identity import identities
from infconv.quantize._placement import Layer, Placement, layers_of, place
from infconv.quantize._plan_file import NodePlan, PrecisionPlan
from infconv.quantize._schemes import Params
from infconv.quantize._search import Decision


def planned_floats(model: ir.Model, layers: list[Layer], plan: PrecisionPlan) -> frozenset[str]:
    """Return the names of the layers that `plan` keeps float. Raises UsageError for the plan of another precision."""
    if plan.precision != "int8":
        raise UsageError(f"The precision plan is for {plan.precision}, not for int8.", "Make one with --int8.")
    entries = plan.match(model).entries
    return frozenset(
        layer.name for layer in layers if (entry := entries.get(layer.node)) and entry.type.startswith(("float", "bfl"))
    )


def plan_document(
    model: ir.Model, placement: Placement, decision: Decision, floats: Mapping[str, str]
) -> PrecisionPlan:
    """Return the plan of `decision` for `model` as it was before Q/DQ; `floats`: layer -> why it stays float."""
    placed = place(model, placement, floats.keys())
    quantised = {layer.name for layer in placed.layers}
    known = identities(model)
    entries: list[NodePlan] = []
    for layer in layers_of(model, placement.compute):
        identity = known[layer.node]
        kind, reason = (
            ("int8", _reason(layer, decision))
            if layer.name in quantised
            else ("float32", floats.get(layer.name, "kernel: its output is the model's, which 8 bits would round"))
        )
        entries.append(
            NodePlan(
                layer.label,
                kind,
                reason,
                layer.node.op_type,
                identity.id,
                identity.form,
                quantization=_parameters(layer, decision) if kind == "int8" else {},
            )
        )
    facts: dict[str, Any] = {
        "nodes": {"int8": len(quantised), "float32": len(entries) - len(quantised)},
        "sqnr_db": round(decision.sqnr, 2),
    }
    return PrecisionPlan("int8", entries, facts)


def _reason(layer: Layer, decision: Decision) -> str:
    alone = decision.sensitivity.get(layer.name)
    return "kernel: computes in INT8" + (f"; alone it leaves {alone:.1f} dB" if alone is not None else "")


def _parameters(layer: Layer, decision: Decision) -> dict[str, dict[str, Any]]:
    params: Params = decision.params[layer.data.name or ""]
    activation = {"scale": params.scale, "zero_point": params.zero, "scheme": params.scheme}
    return {"input 0": activation, "input 1": {"axis": layer.axis}}
