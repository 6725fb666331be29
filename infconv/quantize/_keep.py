"""Find the smallest set of nodes to keep in FP32, by what is measured on samples."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from infconv.compare import TOLERANCES
from infconv.errors import InfconvError
from infconv.passes import Context
from infconv.quantize import _trial
from infconv.quantize._blame import Blame, blamed
from infconv.quantize._plan import Plan, Planner
from infconv.quantize._rules import COMPUTE

_ENOUGH = 0.8
"""The share of the tolerance that may be used: another runtime rounds elsewhere."""
_ROUNDS = 8
_FIRST = 4
"""Nodes that the first round may keep; each later one may double what is kept."""
_CLOSE = 1.25
"""Without over-cautious rules the error may be this many times as large …"""
_SMALL = 0.25
"""… or reach this share of the tolerance, which is the noise of FP16 in a deep model."""
_SHRINKS = 24
"""Trials that the kept set may cost on its way back to what is needed."""


@dataclasses.dataclass
class Found:
    """The plan that was settled on."""

    plan: Plan
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    """error: the worst output error over the samples as a share of the tolerance, and how it was reached."""


class Search:
    """Runs the lowered model beside the FP32 one, and keeps those nodes in FP32 that the error comes from.

    One instrumented run tells how far each value is off and how much of that its own rounding adds; going back from
    the outputs, each value's squared error is divided among what made it (`_blame`). Nodes are kept in the order of
    blame, twice as many each round, until the outputs are within tolerance; then, least blamed first, those are given
    back that are not needed after all (halving, as in delta debugging: Zeller and Hildebrandt 2002).
    """

    def __init__(self, planner: Planner, context: Context, seconds: float) -> None:
        self._wiring = planner.wiring
        self._planner = planner
        self._context = context
        self._seconds = seconds
        self._tolerance = context.tolerance or TOLERANCES["fp16" if planner.wiring.narrow.name == "float16" else "bf16"]
        self._start = 0.0
        self._trials = 0
        self._expected: Sequence[_trial.Outputs] = ()

    def run(self, plan: Plan) -> Found:
        """Return `plan`, or one that keeps more nodes in FP32. Nothing is raised: what cannot be run is noted."""
        self._start = time.monotonic()
        try:
            models = [self._wiring.model, _trial.lowered(self._wiring, plan).runnable()]
            self._expected, actual = _trial.outputs(models, self._context.samples)
            error = self._worst(actual)
            if error <= _ENOUGH:
                return self._relax(plan, error)
            return self._search(plan, error)
        except InfconvError as failure:
            self._context.notes.append(f"lower-precision: the plan is not measured: {failure.message}")
            return Found(plan)

    def _relax(self, plan: Plan, error: float) -> Found:
        """Lower also what rules keep that are over-cautious here, when that costs no accuracy to speak of."""
        for number, relaxed in enumerate(self._planner.relaxed()):
            if number and self._late():  # one trial costs what the first did: a busy machine finds the same plan
                break
            found = self._error(relaxed)
            if found <= max(_CLOSE * error, _SMALL):
                self._planner.settle(relaxed)
                plan, error = relaxed, found
                break
        return Found(plan, _facts(error, self._trials))

    def _search(self, plan: Plan, error: float) -> Found:
        first = error
        kept: dict[ir.Node, str] = {}
        for number in range(1, _ROUNDS + 1):
            self._tell(f"round {number}, error {error:.3g} of the tolerance, {len(kept)} nodes kept")
            chosen = self._choose(self._blame(plan), error, max(_FIRST, len(kept)))
            if not chosen or self._late():
                break
            kept |= chosen
            plan = self._planner.replan(kept)
            error = self._error(plan)
            if error <= _ENOUGH:
                kept, plan, error = self._shrink(kept, plan, error)
                break
        self._conclude(first, error, kept)
        return Found(plan, _facts(error, self._trials, len(kept)))

    def _error(self, plan: Plan) -> float:
        """Return the worst output error as a share of the tolerance; infinity when it is not finite."""
        model = _trial.lowered(self._wiring, plan).runnable()
        return self._worst(_trial.outputs([model], self._context.samples)[0])

    def _worst(self, actual: Sequence[_trial.Outputs]) -> float:
        self._trials += 1
        pairs = zip(self._expected, actual, strict=True)
        return max((_trial.error_share(e, a, self._tolerance) for e, a in pairs), default=0.0)

    def _blame(self, plan: Plan) -> Blame:
        return blamed(self._wiring, plan, _trial.taps(self._wiring, plan, self._context.samples))

    def _choose(self, blame: Blame, error: float, most: int) -> dict[ir.Node, str]:
        """Return the nodes whose rounding has to go so that, as errors add up in squares, the rest is small enough."""
        wanted = 1.0 - (_ENOUGH / error) ** 2 if math.isfinite(error) else 1.0
        chosen: dict[ir.Node, str] = {}
        removed = 0.0
        for value, share in blame.ranked():
            if removed >= wanted or len(chosen) >= most:
                break
            nodes = [node for node in blame.around(value) if self._planner.may_keep(node)]
            for node in nodes:
                chosen.setdefault(node, blame.sentence(value))
            removed += share if nodes else 0.0
        return chosen

    def _shrink(self, kept: dict[ir.Node, str], plan: Plan, error: float) -> tuple[dict[ir.Node, str], Plan, float]:
        """Give back what is not needed, in groups that halve: what computes most first, then the least blamed."""
        budget = self._trials + _SHRINKS
        size = max(1, len(kept) // 2)
        while size:
            for group in _groups(_dispensable(kept), size):
                if self._trials >= budget or self._late():
                    return kept, plan, error
                fewer = {node: reason for node, reason in kept.items() if node not in group}
                self._tell(f"{len(kept)} nodes kept, trying {len(fewer)}")
                attempt = self._planner.replan(fewer)
                found = self._error(attempt)
                if found <= _ENOUGH:
                    kept, plan, error = fewer, attempt, found
            size //= 2
        return kept, plan, error

    def _late(self) -> bool:
        return time.monotonic() - self._start > self._seconds

    def _tell(self, text: str) -> None:
        if self._context.progress is not None:
            self._context.progress(f"lower-precision: {text}")

    def _conclude(self, first: float, error: float, kept: Mapping[ir.Node, str]) -> None:
        label = self._wiring.narrow.label
        begin = f"lower-precision: in {label} by the rules alone the outputs are off by {_times(first)} the tolerance"
        more = "1 more node" if len(kept) == 1 else f"{len(kept)} more nodes"
        if error <= 1.0:
            text = f"{begin}; with {more} in FP32 by {error:.2f} times ({self._trials} trials)."
        else:
            why = " when the time was up" if self._late() else ""
            text = f"{begin}, and still by {_times(error)} with {more} in FP32{why}."
        self._context.notes.append(text)


def _times(error: float) -> str:
    return f"{error:.3g} times" if math.isfinite(error) else "an infinite multiple of"


def _dispensable(kept: Mapping[ir.Node, str]) -> list[ir.Node]:
    """Return the kept nodes, matrix products first, in each half the least blamed first."""
    blamed_least = list(kept)[::-1]
    products = [node for node in blamed_least if node.op_type in COMPUTE]
    return products + [node for node in blamed_least if node.op_type not in COMPUTE]


def _groups(nodes: list[ir.Node], size: int) -> list[set[ir.Node]]:
    return [set(nodes[start : start + size]) for start in range(0, len(nodes), size)]


def _facts(error: float, trials: int, kept: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = {"error": round(error, 4) if math.isfinite(error) else "not finite", "trials": trials}
    return {**facts, "kept_by_measurement": kept} if kept else facts
