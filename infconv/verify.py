"""Verify artifacts, and single steps, against the source framework's outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from infconv import isolate
from infconv.compare import TOLERANCES, Tolerance, compare_outputs
from infconv.computation import Digester
from infconv.errors import InfconvError, VerificationError
from infconv.result import SampleCheck, Verification
from infconv.transfer import Misbehaved

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._exporter import Executed, Exported
    from infconv.passes import Pass
    from infconv.planning import Job
    from infconv.reference import Reference, Sample
    from infconv.spec import VerifyEntry


_COARSER = ("fp32", "fp16", "bf16", "int8", "int4")


def tolerance_for(precision: str, entry: VerifyEntry, depth: int = 0, own: str = "fp32") -> Tolerance:
    """Return the tolerance for an artifact of `precision`, with the user's overrides.

    `depth` is how many compute operators follow on each other, `own` the precision that the source itself computes in:
    two runs of a float16 model do not agree better than float16 does.
    """
    precision = max(precision, own, key=_COARSER.index)
    return TOLERANCES[precision].at_depth(depth).override(entry.rtol, entry.atol, entry.min_sqnr)


def verify(job: Job, entry: VerifyEntry, exported: Exported, reference: Reference | None) -> Verification:
    """Run the finished artifact on the reference inputs and compare. Raises VerificationError naming the output."""
    if reference is None:
        return Verification(None, note="not verified (--verify off)")
    samples = reference.judged(job.entry.precision)
    executed = job.exporter.execute(exported, [as_inputs(s.inputs, job) for s in samples])
    precision = max(job.entry.precision, executed.precision, key=_COARSER.index)
    tolerance = tolerance_for(precision, entry, reference.depth, reference.precision)
    checks = _compare(samples, executed, tolerance)
    verification = Verification(
        passed=all(o.ok for c in checks for o in c.outputs),
        reference=reference.producer,
        executed=executed.by,
        artifact_executed=executed.artifact_itself,
        note=executed.note,
        samples=checks,
    )
    if not verification.passed:
        raise _failure(verification, job)
    return verification


def _compare(samples: Sequence[Sample], executed: Executed, tolerance: Tolerance) -> list[SampleCheck]:
    return [
        SampleCheck(sample.label, compare_outputs(sample.outputs, outputs, tolerance))
        for sample, outputs in zip(samples, executed.outputs, strict=True)
    ]


def _failure(verification: Verification, job: Job) -> VerificationError:
    label, worst = next((c.label, o) for c in verification.samples for o in c.outputs if not o.ok)
    hint = "Find what broke it with `infconv bisect`. If the difference is acceptable, set --rtol/--atol."
    if job.entry.io_types == "follow" and job.entry.precision == "fp16":
        hint = f"With --io-types follow the outputs are float16, which ends at 65504: try without it. {hint}"
    return VerificationError(
        f"The {job.exporter.target} artifact differs from the source: output '{worst.name}' at {label}: "
        f"{worst.reason}.",
        hint,
    )


_FOLLOWED = {"fp16": "float16", "bf16": "bfloat16"}


def as_inputs(inputs: dict[str, Any], job: Job) -> dict[str, Any]:
    """Return the sample in the artifact's input types: with `--io-types follow` float32 becomes its precision."""
    kind = _FOLLOWED.get(job.entry.precision)
    if job.entry.io_types == "keep" or kind is None:
        return inputs
    import numpy as np

    if kind == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(kind)
    return {name: v.astype(dtype) if getattr(v, "dtype", None) == np.float32 else v for name, v in inputs.items()}


Kind = Literal["differs", "invalid", "crash", "timeout", "memory", "contract", "error"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a model, or with the step that made it."""

    kind: Kind
    reason: str
    """In words."""
    sample: str = ""
    """The label of the sample that shows it, where it needs one."""
    output: str = ""
    """The output that differs."""


def find_fault(
    model: ir.Model, samples: Sequence[Sample], tolerance: Tolerance, *, isolated: bool = True
) -> Fault | None:
    """Return why `model` does not do what `samples` say; None when it does.

    It must pass the checker, run as it is written, and give the samples' outputs for their inputs, which are cast to
    the float types that it declares. Without `isolated` a runtime's crash is this process's.
    """
    from infconv.convert._in_memory import run_graph
    from infconv.model import check

    try:
        check(model)
        feeds = [_cast(sample.inputs, model) for sample in samples]
        outcomes = run_graph(model, feeds, isolated=isolated)
    except InfconvError as error:
        return Fault("invalid", error.message)
    return first_difference(samples, outcomes, tolerance)


def first_difference(
    samples: Sequence[Sample], outcomes: Sequence[Mapping[str, Any] | InfconvError], tolerance: Tolerance
) -> Fault | None:
    """Return the first output that is not what its sample says, or the first sample that does not run."""
    for sample, outcome in zip(samples, outcomes, strict=True):
        if isinstance(outcome, InfconvError):
            return Fault("invalid", f"at {sample.label}: {outcome.message}", sample.label)
        for error in compare_outputs(sample.outputs, outcome, tolerance):
            if not error.ok:
                return Fault(
                    "differs", f"output '{error.name}' at {sample.label}: {error.reason}", sample.label, error.name
                )
    return None


def _cast(inputs: Mapping[str, Any], model: ir.Model) -> dict[str, Any]:
    """Return float inputs in the types that the model declares: its precision may have been lowered."""
    wanted = {
        v.name: v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None and v.dtype.is_floating_point()
    }
    return {name: array.astype(wanted[name]) if name in wanted else array for name, array in inputs.items()}


_KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (isolate.Crashed, "crash"),
    (isolate.TimedOut, "timeout"),
    (isolate.OutOfMemory, "memory"),
    (MemoryError, "memory"),
    (Misbehaved, "contract"),
)


def fault_of(error: Exception) -> Fault:
    """Return what an exception that a step raised tells about the step."""
    reason = error.message if isinstance(error, InfconvError) else f"{type(error).__name__}: {error}"
    for raised, kind in _KINDS:
        if isinstance(error, raised):
            return Fault(kind, reason)
    return Fault("error", reason)


class StepGuard:
    """Judges a model after each step, for `--verify each` and for bisection.

    A step after which the model still computes the same by its structure (only types, names, order or the place of
    constants changed) is not followed by a run on the samples; that the model is valid and loads is checked always.
    """

    def __init__(self, job: Job, entry: VerifyEntry, reference: Reference, *, halt: bool = False) -> None:
        self._job, self._entry, self._reference = job, entry, reference
        self._precision = "fp32"
        self._digester = Digester()
        self._accepted = b""
        self.timeout: float | None = entry.step_timeout
        self.memory_limit: int | None = None
        self.halt = halt

    def begin(self, model: ir.Model) -> None:
        """Take `model` as what the first step starts from. Raises VerificationError when it is wrong already."""
        if not self._reference.of_this_model:
            reference = self._reference
            tolerance = tolerance_for(self._precision, self._entry, reference.depth, reference.precision)
            fault = find_fault(model, self._reference.samples, tolerance)
            if fault is not None:
                raise VerificationError(
                    f"The exported model differs from the source before any step: {fault.reason}.",
                    "The framework's exporter is at fault; `infconv bisect` writes a reproducer.",
                )
        self._accepted = self._digester.digest(model)

    def judge(self, model: ir.Model, step: Pass) -> Fault | None:
        """Return why `model`, as `step` left it, is not acceptable; None when it is."""
        digest = self._digester.digest(model)
        judged = self._reference.judged(self._precision_after(step))
        samples = judged if digest != self._accepted else ()
        fault = find_fault(model, samples, self.tolerance(step))
        if fault is None:
            self._precision, self._accepted = self._precision_after(step), digest
        return fault

    def tolerance(self, step: Pass) -> Tolerance:
        """Return by how much outputs may differ after `step`."""
        reference = self._reference
        return tolerance_for(self._precision_after(step), self._entry, reference.depth, reference.precision)

    def _precision_after(self, step: Pass) -> str:
        return self._job.entry.precision if lowers_precision(step) else self._precision


def lowers_precision(step: Pass) -> bool:
    """Whether the tolerance from `step` on is that of the precision that was asked for."""
    return type(step).__module__.startswith("infconv.quantize.")
