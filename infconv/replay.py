"""Do one stage of a conversion again on other models: a step, or the export. What bisection asks over and over."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infconv import isolate
from infconv.compare import Tolerance
from infconv.errors import InfconvError
from infconv.passes import Allowance
from infconv.transfer import run_checked, run_isolated
from infconv.verify import Fault, as_inputs, fault_of, find_fault, first_difference

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._exporter import Delivered
    from infconv.passes import Context, Pass
    from infconv.planning import Job
    from infconv.reference import Sample


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage did to a model."""

    fault: Fault | None
    model: ir.Model | None = None
    """The model afterwards, where there is one."""
    allowance: Allowance = dataclasses.field(default_factory=Allowance)
    """Which rewrites were made; none when the step did not come to an end."""
    delivered: Delivered | None = None
    """In which types the artifact computes, where an export was asked to prove it."""


@dataclasses.dataclass(frozen=True)
class StepReplay:
    """A step, run in a process of its own."""

    step: Pass
    context: Context
    tolerance: Tolerance
    timeout: float
    memory_limit: int | None = None

    def run(self, model: ir.Model, samples: Sequence[Sample], allowance: Allowance | None = None) -> Outcome:
        """Run the step on `model`, which is not changed, and judge the result on `samples`."""
        context = self._context(samples, allowance)
        try:
            after, _ = run_isolated(self.step, model, context, timeout=self.timeout, memory_limit=self.memory_limit)
        except Exception as error:  # what a faulty step raises is what is looked for
            return Outcome(fault_of(error))
        return Outcome(find_fault(after, samples, self.tolerance), after, context.allowance or Allowance())

    def fault(self, model: ir.Model, samples: Sequence[Sample]) -> Fault | None:
        """Do as `run`, for the fault alone: the step and what judges it share a child process, which is quicker."""

        def inside() -> Fault | None:
            run_checked(self.step, model, self._context(samples, None))
            return find_fault(model, samples, self.tolerance, isolated=False)

        what = f"Step {self.step.step_name()}"
        try:
            return isolate.call(inside, what=what, timeout=self.timeout, memory_limit=self.memory_limit)
        except Exception as error:  # what a faulty step raises is what is looked for
            return fault_of(error)

    def _context(self, samples: Sequence[Sample], allowance: Allowance | None) -> Context:
        return dataclasses.replace(
            self.context,
            samples=[sample.inputs for sample in samples],
            notes=[],
            documents={},
            allowance=allowance or Allowance(),
        )


@dataclasses.dataclass(frozen=True)
class ExportReplay:
    """The export of the finished graph, and the run of the artifact."""

    job: Job
    tolerance: Tolerance

    def run(self, model: ir.Model, samples: Sequence[Sample], *, prove: bool = False) -> Outcome:
        """Export `model`, run the artifact on `samples` and compare; read back its types when asked to `prove` them."""
        with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
            try:
                exported = self.job.exporter.export(model, Path(folder) / f"artifact{self.job.exporter.suffix}", {})
                feeds = [as_inputs(sample.inputs, self.job) for sample in samples]
                outcomes = self.job.exporter.execute(exported, feeds).outputs
                delivered = self.job.exporter.delivered(exported) if prove else None
            except InfconvError as error:
                return Outcome(fault_of(error))
        return Outcome(first_difference(samples, outcomes, self.tolerance), delivered=delivered)

    def fault(self, model: ir.Model, samples: Sequence[Sample]) -> Fault | None:
        """Do as `run`, for the fault alone."""
        return self.run(model, samples).fault


@dataclasses.dataclass(frozen=True)
class Culprit:
    """The one rewrite among a step's that shows the fault."""

    rewrite: str
    """`rule at node`."""
    number: int
    """Which it is, in the order in which the step makes them; from 1."""
    alone: bool
    """Whether the step shows the fault with this rewrite and none of the others that it made."""


def find_rewrite(replay: StepReplay, model: ir.Model, sample: Sample, fault: Fault) -> Culprit | None:
    """Return the first rewrite with which the step shows a fault of this kind; None when it is no rewrite's.

    The step is run with the first 1, 2, 4 … of its rewrites until the fault shows, and halves find the first.
    """

    def run(limit: int) -> Outcome:
        return replay.run(model, [sample], Allowance(limit=limit))

    def shows(outcome: Outcome) -> bool:
        return outcome.fault is not None and outcome.fault.kind == fault.kind

    whole = replay.run(model, [sample])
    if shows(run(0)) or (whole.model is not None and not whole.allowance.made):
        return None
    low, high = 0, 1
    while not shows(run(high)):
        if whole.model is not None and high > len(whole.allowance.made):
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(run(middle)) else (middle, high)
    last = run(high)
    # A step that crashes does not tell what it made: then it is the rewrite without which it does not crash.
    name = last.allowance.made[-1] if last.allowance.made else _without(replay, model, sample, run(low), shows)
    if name is None:
        return None
    others = frozenset(whole.allowance.made or run(low).allowance.made) - {name}
    return Culprit(name, high, shows(replay.run(model, [sample], Allowance(without=others))))


def _without(
    replay: StepReplay, model: ir.Model, sample: Sample, good: Outcome, shows: Callable[[Outcome], bool]
) -> str | None:
    """Return the first rewrite that `good` was not allowed to make and whose absence makes the step end well."""
    left_out: list[str] = []
    for name in dict.fromkeys(good.allowance.refused):
        left_out.append(name)
        if not shows(replay.run(model, [sample], Allowance(without=frozenset(left_out)))):
            return name
    return None
