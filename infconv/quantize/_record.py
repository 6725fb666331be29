"""What was decided for INT8 as a precision plan, and the other way round."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.errors import UsageError
from infconv.passes._values import constant
from infconv.quantize._identity import Identity, identities
from infconv.quantize._placement import Layer, Placed, Placement, layers_of, place
from infconv.quantize._plan_file import NodePlan, PrecisionPlan, node_name, operator
from infconv.quantize._schemes import Grid, Params, Scheme, params_of, quantise_weight
from infconv.quantize._search import Decision

Array = np.ndarray[Any, np.dtype[Any]]

_INT8 = "kernel: computes in INT8"
_FOLLOWS = "kernel: what it reads and writes is in 8 bits"
_OUTPUT = "kernel: its output is the model's, which 8 bits would round"
_LARGEST = 127


# --- from a plan -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Planned:
    """What an INT8 plan says about a model."""

    floats: Mapping[str, str]
    """Layer -> why it stays float."""
    params: Mapping[str, Params]
    """Tensor -> scale and zero point."""
    biases: Mapping[str, Array]
    """Layer -> corrected bias; only of layers with the very constants that the plan was made for."""
    largest: Mapping[str, int]
    """Layer -> the largest integer that a weight becomes, where the plan has one."""
    reasons: Mapping[str, str]
    """Layer in 8 bits -> the reason."""
    unknown: Sequence[NodePlan]
    """Entries that name no node of the model."""
    sqnr: float

    def missing(self, placed: Placed) -> list[str]:
        """Return the tensors that the plan has no scale for."""
        return [value.name or "" for value in placed.tensors if (value.name or "") not in self.params]

    def decision(self, placed: Placed, largest: int) -> Decision:
        """Return how the layers of `placed`, none of whose tensors is missing, are quantised.

        `largest`: the largest integer that a weight becomes, of layers for which the plan has none.
        """
        weights = {
            layer.name: quantise_weight(_weight(layer), layer.axis, self.largest.get(layer.name, largest))
            for layer in placed.layers
        }
        return Decision(self.params, weights, self.biases, (), self.sqnr)


def planned(model: ir.Model, placement: Placement, plan: PrecisionPlan) -> Planned:
    """Lay a plan on `model`. Raises UsageError for the plan of another precision.

    Scales for another kind of integers than the target's are converted: the range that they cover stays.
    """
    if plan.precision != "int8":
        raise UsageError(f"The precision plan is for {plan.precision}, not for int8.", "Make one with --int8.")
    matched, known = plan.match(model), identities(model)
    grid = Grid(placement.activation, placement.symmetric)
    layers = [layer for layer in layers_of(model, placement.compute) if layer.node in matched.entries]
    entries = {layer.name: matched.entries[layer.node] for layer in layers}
    same = {layer.name for layer in layers if known[layer.node].id == entries[layer.name].id}
    biases = {name: plan.biases.get(entries[name].id) for name in same}
    floats = {name: _why_float(entry) for name, entry in entries.items() if _is_float(entry)}
    sites = (site for node, entry in matched.entries.items() for site in _sites(node, entry))
    weights = {name: entry.quantization.get("input 1", {}) for name, entry in entries.items()}
    sqnr = plan.facts.get("sqnr_db")
    return Planned(
        floats,
        {value.name or "": _params(parameters, grid) for value, parameters in sites},
        {name: np.asarray(values, np.float32) for name, values in biases.items() if values is not None},
        {name: int(w["largest"]) for name, w in weights.items() if "largest" in w},
        {name: entry.reason for name, entry in entries.items() if not _is_float(entry)},
        matched.unknown,
        float(sqnr) if isinstance(sqnr, int | float) else float("nan"),
    )


def _is_float(entry: NodePlan) -> bool:
    return entry.type in {"float32", "float16", "bfloat16"}


def _why_float(entry: NodePlan) -> str:
    """Return the entry's reason; `user` where it still has the one of the 8 bits that it had before."""
    return "user" if entry.reason.startswith((_INT8, _FOLLOWS)) else entry.reason


def _sites(node: ir.Node, entry: NodePlan) -> Iterator[tuple[ir.Value, Mapping[str, Any]]]:
    """Yield the tensors around `node` that the entry has a scale for."""
    for site, parameters in entry.quantization.items():
        side, number = site.split()
        values = node.inputs if side == "input" else node.outputs
        value = values[int(number)] if int(number) < len(values) else None
        if value is not None and isinstance(parameters.get("scale"), int | float):
            yield value, parameters


def _params(parameters: Mapping[str, Any], grid: Grid) -> Params:
    dtype, scheme = parameters.get("type", grid.dtype), parameters.get("scheme", "absmax")
    scale, zero = float(np.float32(parameters["scale"])), int(parameters.get("zero_point", 0))
    if dtype == grid.dtype and (not grid.symmetric or zero == 0):
        return Params(scale, zero, grid, scheme)
    return params_of(*Params(scale, zero, Grid(dtype, False)).range(), grid, scheme)


def _weight(layer: Layer) -> Array:
    weight = constant(layer.weight)
    assert weight is not None
    return weight


# --- to a plan -------------------------------------------------------------------------------------------------------


def plan_document(
    model: ir.Model,
    placement: Placement,
    decision: Decision,
    floats: Mapping[str, str],
    largest: int = _LARGEST,
    reasons: Mapping[str, str] | None = None,
) -> PrecisionPlan:
    """Return the plan of `decision` for `model` as it was before Q/DQ.

    `floats`: layer -> why it stays float; `largest`: the largest integer that a weight became; `reasons`: those of
    layers in 8 bits, where they are known from an earlier plan.
    """
    placed = place(model, placement, floats.keys())
    layers = {layer.node: layer for layer in layers_of(model, placement.compute)}
    quantised, sites = {layer.node for layer in placed.layers}, _by_node(placed, decision)
    known = identities(model)
    entries: list[NodePlan] = []
    for node in model.graph:
        layer, parameters = layers.get(node), sites.get(node, {})
        kind, reason = "int8", _FOLLOWS
        if layer is not None and node in quantised:
            reason = (reasons or {}).get(layer.name) or _reason(layer, decision)
            parameters = {**parameters, "input 1": {"axis": layer.axis, "largest": largest}}
        elif layer is not None:
            kind, reason = "float32", floats.get(layer.name, _OUTPUT)
        if layer is not None or parameters:
            is_, sorted_ = known[node], dict(sorted(parameters.items()))
            entries.append(
                NodePlan(node_name(node), kind, reason, operator(node), is_.id, is_.form, quantization=sorted_)
            )
    facts: dict[str, Any] = {"nodes": {"int8": len(quantised), "float32": len(layers) - len(quantised)}}
    if np.isfinite(decision.sqnr):
        facts["sqnr_db"] = round(decision.sqnr, 2)
    return PrecisionPlan("int8", entries, facts, _biases(placed, decision, known))


def _biases(placed: Placed, decision: Decision, known: Mapping[ir.Node, Identity]) -> dict[str, list[float]]:
    layers = [layer for layer in placed.layers if layer.name in decision.biases]
    return {known[layer.node].id: [_short(x) for x in decision.biases[layer.name].tolist()] for layer in layers}


def _reason(layer: Layer, decision: Decision) -> str:
    alone = decision.sensitivity.get(layer.name)
    return _INT8 + (f"; alone it leaves {alone:.1f} dB" if alone is not None else "")


def _by_node(placed: Placed, decision: Decision) -> dict[ir.Node, dict[str, dict[str, Any]]]:
    """Return node -> `input 0` or `output 1` -> parameters, of every tensor of `placed` once.

    That is at the layer that reads it, else at the node that writes it, else (an input of the model) at a reader.
    """
    data: dict[ir.Value, ir.Node] = {}
    for layer in placed.layers:
        data.setdefault(layer.data, layer.node)
    found: dict[ir.Node, dict[str, dict[str, Any]]] = {}
    for value in placed.tensors:
        producer = value.producer()
        if value in data:
            node, site = data[value], "input 0"
        elif producer is not None:
            node, site = producer, f"output {value.index()}"
        else:
            node, index = next(iter(placed.readers[value]))
            site = f"input {index}"
        found.setdefault(node, {})[site] = _parameters(decision.params[value.name or ""])
    return found


def _parameters(params: Params) -> dict[str, Any]:
    scheme: Scheme = params.scheme
    return {"type": params.grid.dtype, "scale": _short(params.scale), "zero_point": params.zero, "scheme": scheme}


def _short(value: float) -> float:
    """Return the number of fewest digits that is the same float32."""
    return float(str(np.float32(value)))
