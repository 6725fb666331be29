"""Run steps on a model: time them, count their changes, and with `--verify each` drop one that breaks the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from infconv.census import all_nodes
from infconv.errors import InfconvError
from infconv.observe import Observers
from infconv.result import StepResult
from infconv.steps import Repeat, flatten

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.passes import Context, Pass


class Guard(Protocol):
    """Decides whether a model is acceptable as a step left it."""

    def judge(self, model: ir.Model, step: Pass) -> str:
        """Return why not; empty when it is."""
        ...


def run_steps(
    steps: Sequence[Pass | Repeat], model: ir.Model, context: Context, watch: Observers, guard: Guard | None = None
) -> tuple[ir.Model, list[StepResult]]:
    """Return the model after all steps, and what each did. `model` itself is changed."""
    return _Run(steps, watch, guard).run(model, context)


class _Run:
    def __init__(self, steps: Sequence[Pass | Repeat], watch: Observers, guard: Guard | None) -> None:
        self._steps, self._watch, self._guard = steps, watch, guard

    def run(self, model: ir.Model, context: Context) -> tuple[ir.Model, list[StepResult]]:
        results = {id(step): StepResult(step.step_name()) for step in flatten(self._steps)}
        model, _ = self._run_all(self._steps, model, context, results)
        return model, list(results.values())

    def _run_all(
        self, steps: Sequence[Pass | Repeat], model: ir.Model, context: Context, results: dict[int, StepResult]
    ) -> tuple[ir.Model, int]:
        total = 0
        for step in steps:
            if isinstance(step, Repeat):
                model, changes = self._run_repeat(step, model, context, results)
            else:
                model, changes = self._run_one(step, model, context, results[id(step)])
            total += changes
        return model, total

    def _run_repeat(
        self, repeat: Repeat, model: ir.Model, context: Context, results: dict[int, StepResult]
    ) -> tuple[ir.Model, int]:
        total = 0
        for _ in range(repeat.rounds):
            model, changes = self._run_all(repeat.steps, model, context, results)
            total += changes
            if not changes:
                break
        return model, total

    def _run_one(self, step: Pass, model: ir.Model, context: Context, result: StepResult) -> tuple[ir.Model, int]:
        if result.status == "dropped":
            return model, 0
        self._watch.before(result.name)
        start = time.perf_counter()
        snapshot = model.clone() if self._guard else None
        reason, changes = "", 0
        try:
            changes = step.run(model, context)
            if self._guard and changes:
                reason = self._guard.judge(model, step)
        except InfconvError as error:
            if snapshot is None:
                raise
            reason = error.message
        result.seconds += time.perf_counter() - start
        if reason and snapshot is not None:
            model, changes = snapshot, 0
            result.status, result.reason = "dropped", reason
        elif changes:
            result.status = "applied"
        result.changes += changes
        result.nodes = sum(1 for _ in all_nodes(model))
        self._watch.after(result)
        return model, changes
