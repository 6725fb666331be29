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


def report_crash(failed: StepFailed, model_before: Callable[[], ir.Model], target: str) -> InfconvError:
    """Write the reproducer to FOLDER and return the error that tells of it.

    `model_before` runs the steps before the failed one again, which is cheaper than a copy before each step.
    """
    from infconv.model import save

    cause = failed.__cause__ or failed
    FOLDER.mkdir(exist_ok=True)
    save(model_before(), FOLDER / "model.onnx")
    spec = PipelineSpec(
        source=SourceEntry(path="model.onnx"),
        steps=as_items([failed.step]),
        targets=[TargetEntry(target=target, output="out/artifact")],
        verify=VerifyEntry.model_validate({"when": "off"}),
    )
    (FOLDER / "pipeline.yaml").write_text(to_yaml(spec), encoding="utf-8")
    _write_traceback(cause)
    return InfconvError(
        failed.message,
        f"A reproducer is in {FOLDER}/: infconv run {FOLDER}/pipeline.yaml. {failed.hint}",
    )
