"""Run steps on a model: time them, count their changes, and with `--verify each` drop one that breaks the result."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from infconv.errors import InfconvError, ResourceError
from infconv.garbage import rare_collections
from infconv.model import all_graphs
from infconv.observe import Observers
from infconv.step_result import StepResult
from infconv.steps import Repeat, flatten

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.passes import Context, Pass
    from infconv.verify import Fault


class Guard(Protocol):
    """Decides whether a model is acceptable as a step left it."""

    timeout: float | None
    """Seconds that a step may take."""
    memory_limit: int | None
    """Bytes that a step may use."""
    halt: bool
    """Whether the run ends at the first step that is not acceptable, with StepBroke."""

    def begin(self, model: ir.Model) -> None:
        """The first step is about to start from `model`."""
        ...

    def judge(self, model: ir.Model, step: Pass) -> Fault | None:
        """Return why not; None when it is."""
        ...


Checkpoint: TypeAlias = "Callable[[int, ir.Model, list[StepResult]], None]"
"""Is given how many steps are done (a repetition is one), the model, and what they did."""


def run_steps(
    steps: Sequence[Pass | Repeat],
    model: ir.Model,
    context: Context,
    watch: Observers,
    guard: Guard | None = None,
    *,
    limit: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ir.Model, list[StepResult]]:
    """Return the model after all steps, or the first `limit` of them, and what each did. `model` itself is changed.

    `checkpoint` is given the model between steps, and leaves it as it is.
    """
    return _Run(steps, watch, guard, limit).run(model, context, checkpoint)


class StepFailed(InfconvError):
    """A step raised what it should not: a bug. Carries the step, and how many steps had been run before it."""

    def __init__(self, step: Pass, executed: int, cause: Exception) -> None:
        name = step.step_name()
        super().__init__(
            f"Step {name} failed with {type(cause).__name__}: {cause}. This is a bug in the step.",
            f"To go on without the step: --skip {name}, or --verify each.",
        )
        self.step, self.executed = step, executed

    def __reduce__(self) -> tuple[type[InfconvError], tuple[str, str]]:
        """A copy in another process has the words only: the step may be of a class that is not importable there."""
        return InfconvError, (self.message, self.hint)


class StepBroke(Exception):
    """A guard did not accept what a step did. Carries the step, the model before it, and what is wrong."""

    def __init__(self, step: Pass, model: ir.Model, fault: Fault) -> None:
        super().__init__(step.step_name())
        self.step, self.model, self.fault = step, model, fault


_StepKey: TypeAlias = "tuple[type[Pass], str]"
"""A step's class and its options: two steps of one key do the same."""


class _Run:
    def __init__(
        self, steps: Sequence[Pass | Repeat], watch: Observers, guard: Guard | None, limit: int | None
    ) -> None:
        self._steps, self._watch, self._guard, self._limit = steps, watch, guard, limit
        self.executed = 0
        self._operators: Counter[tuple[str, str]] = Counter()
        """How often each operator (domain, type) occurs in the model as it is."""
        self._unchanging: set[_StepKey] = set()
        """The steps that changed nothing when they last ran, and that no change by another step came after."""

    def run(
        self, model: ir.Model, context: Context, checkpoint: Checkpoint | None = None
    ) -> tuple[ir.Model, list[StepResult]]:
        from infconv.passes import Remembered

        if self._guard:
            self._guard.begin(model)
        self._operators = _count_operators(model)
        context.remembered = self._remembered = Remembered()
        results = {id(step): StepResult(step.step_name()) for step in flatten(self._steps)}
        try:
            with rare_collections():
                for count, step in enumerate(self._steps, 1):
                    model, _ = self._run_all([step], model, context, results)
                    if checkpoint is not None:
                        checkpoint(count, model, [results[id(done)] for done in flatten(self._steps[:count])])
        finally:
            context.remembered = None
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
        for turn in range(repeat.rounds):
            model, changes = self._run_all(
                repeat.steps, model, dataclasses.replace(context, again=turn + 1 < repeat.rounds), results
            )
            total += changes
            if not changes:
                break
        return model, total

    def _run_one(self, step: Pass, model: ir.Model, context: Context, result: StepResult) -> tuple[ir.Model, int]:
        result.nodes = self._operators.total()
        if result.status == "dropped" or self.executed == self._limit or self._is_idle(step, context):
            return model, 0
        self._watch.before(result.name)
        start = time.perf_counter()
        run = self._run_guarded if self._guard else self._run_plainly
        model, changes, reason = run(step, model, context)
        result.seconds += time.perf_counter() - start
        if reason:
            result.status, result.reason = "dropped", reason
        elif changes:
            result.status = "applied"
            self._unchanging.clear()
            if self._guard or not (step.keeps_facts or step.rewires):
                self._remembered.shapes = None
            self._remembered.rewired |= step.rewires
            self._operators = _count_operators(model)
        else:
            self._unchanging.add(_key(step))
        result.changes += changes
        result.nodes = self._operators.total()
        self._watch.after(result)
        self.executed += 1
        return model, changes

    def _is_idle(self, step: Pass, context: Context) -> bool:
        """Whether `step` would surely change nothing. It runs nevertheless when somebody asks for the reason."""
        if _key(step) in self._unchanging:
            return True
        return context.why is None and not step.may_apply(self._operators)

    def _run_plainly(self, step: Pass, model: ir.Model, context: Context) -> tuple[ir.Model, int, str]:
        from infconv.transfer import run_checked

        try:
            return model, run_checked(step, model, context), ""
        except InfconvError:
            raise
        except MemoryError as error:
            raise ResourceError(
                f"Step {step.step_name()} needs more memory than there is.", "Raise --memory-limit, or --skip the step."
            ) from error
        except Exception as error:  # a bug in the step, of whatever kind: the caller writes a reproducer
            raise StepFailed(step, self.executed, error) from error

    def _run_guarded(self, step: Pass, model: ir.Model, context: Context) -> tuple[ir.Model, int, str]:
        """Run in a child and judge; return the model as it was, with the reason, when the result is not acceptable."""
        from infconv.transfer import run_isolated
        from infconv.verify import fault_of

        assert self._guard is not None
        try:
            changed, changes = run_isolated(
                step, model, context, timeout=self._guard.timeout, memory_limit=self._guard.memory_limit
            )
        except Exception as error:  # a refusal or a bug in the step, of whatever kind: it is dropped and named
            fault = fault_of(error)
        else:
            fault = self._guard.judge(changed, step) if changes else None
            if fault is None:
                return changed, changes, ""
        if self._guard.halt:
            raise StepBroke(step, model, fault)
        return model, 0, fault.reason


def _key(step: Pass) -> _StepKey:
    return type(step), repr(step)


def _count_operators(model: ir.Model) -> Counter[tuple[str, str]]:
    return Counter([(node.domain, node.op_type) for graph in all_graphs(model) for node in graph])
