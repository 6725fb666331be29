"""Try a plan: lower a copy, run it beside the FP32 model on samples, and tell how far every value is off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from infconv.compare import Tolerance
from infconv.errors import UnsupportedError
from infconv.model import subgraphs
from infconv.quantize._apply import apply
from infconv.quantize._emulate import emulated
from infconv.quantize._plan import Plan
from infconv.quantize._schemas import FLOAT
from infconv.quantize._sessions import Array, Sample, in_child, open_session, run, skeleton
from infconv.quantize._wires import Wiring

Outputs: TypeAlias = Mapping[str, Array]

_PREFIX = "infconv_low_"
_STAT = "infconv_tap_"
_FINITE = 1e18
"""Magnitudes from here on are masks; their squares would overflow."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """Sums over the elements of a value, over all samples."""

    signal: float
    """Of its squares in FP32."""
    error: float
    """Of the squared differences between the lowered model and the FP32 one; NaN or infinite after an overflow."""
    rounding: float
    """Of the squared differences that rounding the FP32 value makes."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A lowered copy of a model."""

    model: ir.Model
    names: Mapping[str, str]
    """Value of the main graph in the FP32 model -> the one in the copy that has its content."""
    narrow: ir.DataType

    def runnable(self) -> ir.Model:
        """Return what shows the copy's errors in ONNX Runtime: a graph that rounds float32 values.

        The CPU provider has few kernels for bfloat16, and computes neighbouring FP16 operators in float32 without any
        rounding in between: run as it is, the copy would look better than it is.
        """
        return emulated(self.model, self.narrow)


def lowered(wiring: Wiring, plan: Plan) -> Lowered:
    """Carry out `plan` on a copy of the model."""
    clone = wiring.model.clone()
    twin = Wiring(clone, wiring.narrow, wiring.border)
    values = dict(zip(wiring.wires, twin.wires, strict=True))
    nodes = dict(zip(wiring.nodes, twin.nodes, strict=True))
    decisions = {nodes[node]: decision for node, decision in plan.decisions.items()}
    apply(twin, Plan(decisions, {values[value]: tensor for value, tensor in plan.clamps.items()}))
    inside = {*clone.graph.inputs, *(value for node in clone.graph for value in node.outputs)}
    names = {
        value.name: values[value].name or ""
        for value, wire in wiring.wires.items()
        if wire.source is not None and value.name and values[value] in inside
    }
    return Lowered(clone, names, wiring.narrow.dtype)


def outputs(models: Sequence[ir.Model], samples: Sequence[Sample]) -> list[list[Outputs]]:
    """Run each model, as it is written, on each sample, in one child. Raises UnsupportedError when one does not run."""

    def work(model: ir.Model) -> list[Outputs]:
        session = open_session(*skeleton(model, {}))
        return [run(session, sample) for sample in samples]

    return in_child(lambda: [work(model) for model in models], "Running the model on the samples")


def error_share(expected: Outputs, actual: Outputs, tolerance: Tolerance) -> float:
    """Return the worst error of an output as a share of what `tolerance` allows; infinity for a wrong NaN."""
    return max((_share(value, actual[name], tolerance) for name, value in expected.items()), default=0.0)


def _share(expected: Array, actual: Array, tolerance: Tolerance) -> float:
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        return float("inf")
    if expected.dtype.kind not in "f" or expected.size == 0:
        wrong = float(np.mean(expected != actual)) if expected.size else 0.0
        return wrong / tolerance.mismatch if tolerance.mismatch else (float("inf") if wrong else 0.0)
    exact, found = expected.astype(np.float64), actual.astype(np.float64)
    same = (exact == found) | (np.isnan(exact) & np.isnan(found))
    finite = np.isfinite(exact)
    if not (same | (finite & np.isfinite(found))).all():
        return float("inf")
    exact, difference = exact[finite], np.abs(np.where(same, 0.0, found - np.where(finite, exact, 0.0)))[finite]
    if tolerance.min_sqnr is not None:
        signal, noise = float(np.sum(exact**2)), float(np.sum(difference**2))
        if not (signal and noise):
            return 0.0
        decades = (tolerance.min_sqnr + 10 * math.log10(noise / signal)) / 20
        return 10.0**decades if decades < 300 else float("inf")
    scale = float(np.max(np.abs(exact), initial=0.0))
    allowed = tolerance.atol + tolerance.rtol * np.abs(exact) + tolerance.scaled * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(difference > 0, difference / allowed, 0.0), initial=0.0))


def taps(wiring: Wiring, plan: Plan, samples: Sequence[Sample]) -> dict[str, Tap]:
    """Return what one run of both models, in one session, tells of every FP32 value of the main graph, by its name.

    Raises UnsupportedError when it does not run.
    """
    if wiring.schemas.opset() < 9:
        raise UnsupportedError(f"errors are not measured in opset {wiring.schemas.opset()}, which is before 9")
    copy = lowered(wiring, plan)
    return in_child(lambda: _taps(wiring, copy, samples), "Measuring the errors of all values on the samples")


def _taps(wiring: Wiring, copy: Lowered, samples: Sequence[Sample]) -> dict[str, Tap]:
    proto, weights = skeleton(wiring.model, {})
    low = copy.runnable()
    _rename(low.graph)
    other, more = skeleton(low, {})
    stats = _merge(proto, other, copy)
    session = open_session(proto, {**weights, **more})
    sums = dict.fromkeys(stats, 0.0)
    for sample in samples:
        for name, value in run(session, sample, list(stats)).items():
            sums[name] += float(np.asarray(value))
    found: dict[str, dict[str, float]] = {}
    for stat, (name, kind) in stats.items():
        found.setdefault(name, {})[kind] = sums[stat]
    return {name: Tap(**figures) for name, figures in found.items()}


def _rename(graph: ir.Graph) -> None:
    """Put a prefix before the name of every value and node."""
    for value in (*graph.inputs, *list(graph.initializers.values())):
        if not (value.name or "").startswith(_PREFIX):
            value.name = _PREFIX + (value.name or "")
    for node in graph:
        node.name = _PREFIX + node.name if node.name else None
        for value in node.outputs:
            if value.name:
                value.name = _PREFIX + value.name
        for body in subgraphs(node):
            _rename(body)


def _merge(proto: onnx.ModelProto, other: onnx.ModelProto, copy: Lowered) -> dict[str, tuple[str, str]]:
    """Put the lowered graph, its inputs fed by those of the FP32 one, into `proto`; its outputs become the statistics.

    Return statistic -> (value, what it is of it).
    """
    graph = proto.graph
    del graph.output[:]
    defaults = {item.name for item in graph.initializer}
    for item in other.graph.input:
        source = item.name.removeprefix(_PREFIX)
        if source in defaults:
            continue
        kind = item.type.tensor_type.elem_type
        given = next(i.type.tensor_type.elem_type for i in graph.input if i.name == source)
        cast = onnx.helper.make_node("Cast", [source], [item.name], to=kind)
        graph.node.append(cast if kind != given else onnx.helper.make_node("Identity", [source], [item.name]))
    graph.node.extend(other.graph.node)
    graph.initializer.extend(other.graph.initializer)
    limits = {"limit": _FINITE, "zero": 0.0}
    graph.initializer.extend(onnx.helper.make_tensor(_STAT + n, int(FLOAT), [], [v]) for n, v in limits.items())
    stats: dict[str, tuple[str, str]] = {}
    for number, (name, twin) in enumerate(copy.names.items()):
        for kind in _instrument(graph, f"{_STAT}{number}_", name, _PREFIX + twin, copy.narrow):
            stats[f"{_STAT}{number}_{kind}"] = name, kind
    return stats


def _instrument(graph: onnx.GraphProto, stem: str, name: str, twin: str, narrow: ir.DataType) -> list[str]:
    """Append the nodes that compute the three sums for one value; return their kinds."""

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(onnx.helper.make_node(operator, inputs, [stem + output], **attributes))
        return stem + output

    inside = add("Less", [add("Abs", [name], "abs"), _STAT + "limit"], "inside")
    zero = _STAT + "zero"
    rounded = add("Cast", [add("Cast", [name], "narrow", to=int(narrow))], "rounded", to=int(FLOAT))
    wide = add("Cast", [twin], "wide", to=int(FLOAT))
    parts = {
        "signal": name,
        "error": add("Sub", [wide, name], "off"),
        "rounding": add("Sub", [rounded, name], "lost"),
    }
    for kind, value in parts.items():
        masked = add("Where", [inside, value, zero], f"{kind}_inside")
        graph.output.append(onnx.helper.make_tensor_value_info(stem + kind, int(FLOAT), []))
        add("ReduceSumSquare", [masked], kind, keepdims=0)
    return list(parts)
