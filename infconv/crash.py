"""The reproducer of a bug in a step: the model just before it, the step as a pipeline, and the command to type."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.errors import InfconvError, ResourceError
from infconv.spec import PipelineSpec, SourceEntry, TargetEntry, VerifyEntry, to_yaml
from infconv.steps import as_items

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.planning import Job
    from infconv.runner import StepFailed

FOLDER = Path("infconv-crash")


def report_bug(error: Exception) -> InfconvError:
    """Return the error that tells of an unexpected exception, whose traceback is written to FOLDER.

    Libraries that cannot be loaded, or memory that cannot be had, are no bug: they return a ResourceError.
    """
    if isinstance(error, MemoryError | ImportError):
        return ResourceError(
            f"Not enough memory, or a library cannot be loaded: {error or type(error).__name__}.",
            "Raise --memory-limit; `infconv doctor` shows what is installed.",
        )
    FOLDER.mkdir(exist_ok=True)
    _write_traceback(error)
    return InfconvError(
        f"{type(error).__name__}: {error}. This is a bug in infconv.",
        f"The traceback is in {FOLDER}/traceback.txt. Please report it with the command that you typed.",
    )


def _write_traceback(error: BaseException) -> None:
    from infconv.manifest import library_versions

    versions = "\n".join(f"{name} {version}" for name, version in library_versions().items())
    words = "".join(traceback.format_exception(error))
    (FOLDER / "traceback.txt").write_text(f"{platform.platform()}\n{versions}\n\n{words}", encoding="utf-8")


def report_crash(
    failed: StepFailed, model_before: Callable[[], ir.Model], spec: PipelineSpec, job: Job
) -> InfconvError:
    """Write the reproducer to FOLDER and return the error that tells of it.

    `model_before` runs the steps before the failed one again, which is cheaper than a copy before each step. The module
    of a user's own step is copied beside the pipeline.
    """
    from infconv.model import save
    from infconv.repro import with_module

    cause = failed.__cause__ or failed
    FOLDER.mkdir(exist_ok=True)
    save(model_before(), FOLDER / "model.onnx")
    pipeline = with_module(_pipeline(failed, spec, job), failed.step, FOLDER)
    (FOLDER / "pipeline.yaml").write_text(to_yaml(pipeline), encoding="utf-8")
    _write_traceback(cause)
    return InfconvError(
        failed.message,
        f"A reproducer is in {FOLDER}/: infconv run {FOLDER}/pipeline.yaml. {failed.hint}",
    )


def _pipeline(failed: StepFailed, spec: PipelineSpec, job: Job) -> PipelineSpec:
    """Return the one step as a pipeline; one that lowers the precision gets the precision and the data for it."""
    from infconv.verify import lowers_precision

    lowered = lowers_precision(failed.step)
    calibration = spec.calibration if lowered else None
    if calibration is not None and Path(calibration.path).exists():
        calibration = calibration.model_copy(update={"path": str(Path(calibration.path).resolve())})
    return PipelineSpec(
        source=SourceEntry(path="model.onnx"),
        calibration=calibration,
        steps=as_items([failed.step]),
        targets=[
            TargetEntry(
                target=job.exporter.target,
                precision=job.entry.precision if lowered else "fp32",
                output=f"out/artifact{job.exporter.suffix}",
            )
        ],
        verify=VerifyEntry.model_validate({"when": "off"}),
    )
