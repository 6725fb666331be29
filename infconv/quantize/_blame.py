"""Divide the error of a lowered model among the roundings that cause it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from infconv.model import subgraphs
from infconv.quantize._constants import reading, round_to
from infconv.quantize._plan import Plan
from infconv.quantize._schemas import FLOAT, names
from infconv.quantize._trial import Tap
from infconv.quantize._wires import Wire, Wiring, constant_tensor

_ADDS = names("Add Sub Sum Mean Concat Where Max Min")
"""Their output's error is the sum of their inputs' errors; elsewhere relative errors are what adds up."""
_OVERFLOW = 1e30
"""Stands for the squared error of a value that is not finite: whatever makes it has all the blame."""
_LOOKED_AT = 1 << 16
"""Elements of a constant whose rounding is measured."""


@dataclasses.dataclass(frozen=True)
class Blame:
    """The share of the outputs' squared error that the rounding of each value is to blame for."""

    shares: Mapping[ir.Value, float]
    wiring: Wiring
    plan: Plan

    def ranked(self) -> list[tuple[ir.Value, float]]:
        """Return values by blame for each node that keeping them unrounded costs; most first."""
        cost = {value: len(self.around(value)) for value in self.shares}
        useful = [(value, share) for value, share in self.shares.items() if share > 0.0 and cost[value]]
        return sorted(useful, key=lambda item: -item[1] / cost[item[0]])

    def around(self, value: ir.Value) -> list[ir.Node]:
        """Return the lowered nodes that have to be FP32 for `value` not to be rounded."""
        wire = self.wiring.wires[value]
        sides = [*([] if wire.source is None else [wire.source]), *(use.side for use in wire.uses)]
        nodes = dict.fromkeys(side for side in sides if isinstance(side, ir.Node))
        for node in list(nodes):  # what an If or a Loop hands out was rounded by the nodes inside
            nodes |= dict.fromkeys(inner for body in subgraphs(node) for inner in body.all_nodes())
        return [node for node in nodes if self.plan.type_of(node) != FLOAT]

    def sentence(self, value: ir.Value) -> str:
        """Return the reason for keeping the nodes around `value`."""
        return f"rounding '{value.name}' makes {self.shares[value]:.1%} of the outputs' squared error on the samples"


def blamed(wiring: Wiring, plan: Plan, taps: Mapping[str, Tap]) -> Blame:
    """Go back from the outputs: each value's squared error is its own rounding's, and the rest that of what made it.

    In sums the inputs share it as their squared errors, elsewhere as their squared relative errors.
    """
    return Blame(_Propagation(wiring, plan, taps).run(), wiring, plan)


class _Propagation:
    def __init__(self, wiring: Wiring, plan: Plan, taps: Mapping[str, Tap]) -> None:
        self._wiring = wiring
        self._plan = plan
        self._taps = taps
        self._constants: dict[ir.Value, Tap] = {}
        self._shares: dict[ir.Value, float] = {}
        self._pending: dict[ir.Value, float] = {}

    def run(self) -> dict[ir.Value, float]:
        graph = self._wiring.model.graph
        tapped = [value for value in graph.outputs if value in self._wiring.wires]
        errors = {value: self._relative(self._tap(value)) for value in tapped}
        total = sum(errors.values())
        for value, error in errors.items():
            self._add(self._pending, value, error / total if total else 0.0)
        for value in graph.outputs:  # an index or a mask: what it was computed from has the blame
            if value not in self._wiring.wires:
                self._add(self._pending, value, 1.0 / len(graph.outputs))
        for node in reversed(list(graph)):
            self._visit(node)
        for value in graph.inputs:
            self._add(self._shares, value, self._pending.get(value, 0.0))
        return {value: share for value, share in self._shares.items() if value in self._wiring.wires}

    def _visit(self, node: ir.Node) -> None:
        passed_on = 0.0
        for value in node.outputs:
            blame = self._pending.get(value, 0.0)
            if not blame:
                continue
            own = self._own(value, node)
            self._add(self._shares, value, blame * own)
            passed_on += blame * (1.0 - own)
        if passed_on:
            self._hand_on(node, passed_on)

    def _own(self, value: ir.Value, node: ir.Node) -> float:
        """Return the share of `value`'s error that rounding it makes."""
        if value not in self._wiring.wires or self._plan.type_of(node) == FLOAT:
            return 0.0
        tap = self._tap(value)
        if not math.isfinite(tap.error):
            inputs = (self._tap(v) for v in node.inputs if v is not None and v in self._wiring.wires)
            return 1.0 if all(math.isfinite(tap.error) for tap in inputs) else 0.0
        return min(1.0, tap.rounding / tap.error) if tap.error else 0.0

    def _hand_on(self, node: ir.Node, blame: float) -> None:
        weights: dict[ir.Value, float] = {}
        for value in node.inputs:
            if value is not None and value in self._wiring.wires:
                weights[value] = self._weight(value, node)
            elif value is not None and value.producer() is not None:
                weights[value] = 0.0
        total = sum(weights.values())
        if not total:
            unmeasured = [value for value in weights if value not in self._wiring.wires] or node.outputs
            for value in unmeasured:
                self._add(self._pending if value in weights else self._shares, value, blame / len(unmeasured))
            return
        for value, weight in weights.items():
            self._hand_to(value, node, blame * weight / total)

    def _hand_to(self, value: ir.Value, node: ir.Node, blame: float) -> None:
        """Give `value` its part: for its error as it stands, and for the cast with which `node` reads it."""
        if not blame:
            return
        tap, cast = self._tap(value), self._is_cast_for(value, node)
        before = 0.0 if self._wiring.wires[value].source is None else _bounded(tap.error)
        rounding = _bounded(tap.rounding) if cast else 0.0
        share = before / (before + rounding) if before + rounding else 1.0
        self._add(self._pending, value, blame * share)
        self._add(self._shares, value, blame * (1.0 - share))

    def _weight(self, value: ir.Value, node: ir.Node) -> float:
        tap = self._tap(value)
        error = 0.0 if self._wiring.wires[value].source is None else _bounded(tap.error)
        if self._is_cast_for(value, node):
            error += _bounded(tap.rounding)
        if node.op_type in _ADDS or not error:
            return error
        return error / max(tap.signal, 1e-30)

    def _is_cast_for(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether `node` reads `value` rounded though its writer did not round it."""
        wire = self._wiring.wires[value]
        wanted = {self._plan.type_of(use.side) for use in wire.uses if use.owner is node}
        return wanted != {FLOAT} and (wire.source is None or self._plan.type_of(wire.source) == FLOAT)

    def _tap(self, value: ir.Value) -> Tap:
        wire = self._wiring.wires[value]
        if wire.source is not None:
            return self._taps.get(value.name or "", Tap(0.0, 0.0, 0.0))
        if value not in self._constants:
            self._constants[value] = self._examine(wire)
        return self._constants[value]

    def _examine(self, wire: Wire) -> Tap:
        with reading(constant_tensor(wire.value)) as array:
            flat = array.reshape(-1)
            part = flat[:: max(1, flat.size // _LOOKED_AT)].astype(np.float64)
            part = part[np.abs(part) < 1e18]
            lost = round_to(part, self._wiring.narrow).astype(np.float64) - part
        return Tap(float(np.dot(part, part)), 0.0, float(np.dot(lost, lost)))

    @staticmethod
    def _relative(tap: Tap) -> float:
        return _bounded(tap.error) / max(tap.signal, 1e-30)

    @staticmethod
    def _add(shares: dict[ir.Value, float], value: ir.Value, share: float) -> None:
        shares[value] = shares.get(value, 0.0) + share


def _bounded(error: float) -> float:
    return error if math.isfinite(error) else _OVERFLOW
