"""The reproducer of a bug in a step: the model just before it, the step as a pipeline, and the command to type."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.errors import InfconvError
from infconv.spec import PipelineSpec, SourceEntry, TargetEntry, VerifyEntry, to_yaml
from infconv.steps import as_items

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.runner import StepFailed

FOLDER = Path("infconv-crash")


def report_crash(failed: StepFailed, model_before: Callable[[], ir.Model], target: str) -> InfconvError:
    """Write the reproducer to FOLDER and return the error that tells of it.

    `model_before` runs the steps before the failed one again, which is cheaper than a copy before each step.
    """
    from infconv.manifest import library_versions
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
    versions = "\n".join(f"{name} {version}" for name, version in library_versions().items())
    words = "".join(traceback.format_exception(cause))
    (FOLDER / "traceback.txt").write_text(f"{platform.platform()}\n{versions}\n\n{words}", encoding="utf-8")
    return InfconvError(
        f"Step {failed.step.step_name()} failed with {type(cause).__name__}: {cause}. This is a bug in the step.",
        f"A reproducer is in {FOLDER}/: infconv run {FOLDER}/pipeline.yaml. "
        f"To go on without the step: --skip {failed.step.step_name()}, or --verify each.",
    )
