"""Verify artifacts, and single steps, against the source framework's outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.compare import TOLERANCES, Tolerance, compare_outputs
from infconv.errors import InfconvError, VerificationError
from infconv.result import SampleCheck, Verification

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._exporter import Executed, Exported
    from infconv.passes import Pass
    from infconv.pipeline import Job
    from infconv.reference import Reference
    from infconv.spec import VerifyEntry


def tolerance_for(precision: str, entry: VerifyEntry) -> Tolerance:
    """Return the precision's tolerance with the user's overrides."""
    return TOLERANCES[precision].override(entry.rtol, entry.atol, entry.min_sqnr)


def verify(job: Job, entry: VerifyEntry, exported: Exported, reference: Reference | None) -> Verification:
    """Run the finished artifact on the reference inputs and compare. Raises VerificationError naming the output."""
    if reference is None:
        return Verification(None, note="not verified (--verify off)")
    executed = job.exporter.execute(exported, [_as_inputs(s.inputs, job) for s in reference.samples])
    tolerance = tolerance_for(job.entry.precision, entry)
    checks = _compare(reference, executed, tolerance)
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


def _compare(reference: Reference, executed: Executed, tolerance: Tolerance) -> list[SampleCheck]:
    return [
        SampleCheck(sample.label, compare_outputs(sample.outputs, outputs, tolerance))
        for sample, outputs in zip(reference.samples, executed.outputs, strict=True)
    ]


def _failure(verification: Verification, job: Job) -> VerificationError:
    label, worst = next((c.label, o) for c in verification.samples for o in c.outputs if not o.ok)
    hint = "Find the step that broke it with --verify each. If the difference is acceptable, set --rtol/--atol."
    return VerificationError(
        f"The {job.exporter.target} artifact differs from the source: output '{worst.name}' at {label}: "
        f"{worst.reason}.",
        hint,
    )


_FOLLOWED = {"fp16": "float16", "bf16": "bfloat16"}


def _as_inputs(inputs: dict[str, Any], job: Job) -> dict[str, Any]:
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


class StepGuard:
    """Judges a model after each step, for `--verify each`."""

    def __init__(self, job: Job, entry: VerifyEntry, reference: Reference) -> None:
        self._job, self._entry, self._reference = job, entry, reference
        self._precision = "fp32"
        self.timeout: float | None = entry.step_timeout

    def judge(self, model: ir.Model, step: Pass) -> str:
        """Return why `model`, as `step` left it, is not acceptable; empty when it is."""
        from infconv.convert._onnxruntime import run_samples
        from infconv.model import check, save

        # From the step that lowers the precision on, the tolerance is that precision's.
        precision = self._job.entry.precision if step.step_name() == "lower-precision" else self._precision
        try:
            check(model)
            with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
                path = Path(folder) / "step.onnx"
                save(model, path)
                inputs = [_as_inputs(s.inputs, self._job) for s in self._reference.samples]
                _, outputs = run_samples(path, inputs, optimize=False)
        except InfconvError as error:
            return error.message
        for sample, actual in zip(self._reference.samples, outputs, strict=True):
            for output in compare_outputs(sample.outputs, actual, tolerance_for(precision, self._entry)):
                if not output.ok:
                    return f"output '{output.name}' at {sample.label}: {output.reason}"
        self._precision = precision
        return ""
