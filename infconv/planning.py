"""From a pipeline to its jobs: everything that can be decided before the source is opened."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from infconv import registry, texts
from infconv.convert._exporter import Exporter, default_output
from infconv.errors import UnsupportedError, UsageError, did_you_mean
from infconv.explain import explain
from infconv.gates import check_possible
from infconv.options import ALIASES
from infconv.remote import same_url
from infconv.spec import PipelineSpec, TargetEntry
from infconv.steps import Repeat, check_legal, flatten, resolve, shipped, without
from infconv.urls import is_url, join, name_of

if TYPE_CHECKING:
    from infconv.passes import Pass


@dataclasses.dataclass(frozen=True)
class Job:
    """One artifact to make: everything that can be decided before the source is opened."""

    entry: TargetEntry
    exporter: Exporter
    steps: tuple[Pass | Repeat, ...]
    output: Path
    """The artifact's file; where it is to go to a URL, the local file that is copied there."""
    place: str
    """What users call it: its path or URL."""


def plan(spec: PipelineSpec) -> list[Job]:
    """Decide everything that needs no model. Raises UsageError or UnsupportedError before anything heavy is done."""
    registry.look_in([str(Path.cwd()), *spec.source.python_path])
    jobs = [_plan_target(spec, entry) for entry in spec.targets]
    if spec.verify.metric is not None:
        from infconv.metrics import find_metric

        find_metric(spec)
    seen: dict[Path, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.output.resolve(), job)
        if other is not job:
            raise UsageError(
                f"Targets {other.entry.target} and {job.entry.target} would both write '{job.output}'.",
                "Give each target its own output.",
            )
    return jobs


def _plan_target(spec: PipelineSpec, entry: TargetEntry) -> Job:
    exporter = _make_exporter(entry)
    if entry.precision not in exporter.precisions:
        raise UnsupportedError(
            f"Precision {entry.precision} is not available for target {exporter.target}.",
            f"Available: {', '.join(exporter.precisions)}.",
        )
    calibrated = spec.calibration is not None or _has_scales(entry)
    items = spec.steps if spec.steps is not None else [_default_steps(exporter.target, entry.precision, calibrated)]
    steps = without(resolve([*items, *spec.add]), spec.skip)
    steps = _with_opset(_with_precision(steps, entry), spec.opset, exporter)
    check_legal(steps, exporter)
    output, place = _output_of(spec.source.path, entry, exporter)
    job = Job(entry, exporter, steps, output, place)
    check_possible(spec, job)
    return job


def _output_of(source: str, entry: TargetEntry, exporter: Exporter) -> tuple[Path, str]:
    """Return where the artifact goes, as a path and as users call it."""
    if not is_url(entry.output):
        output = _output_path(source, entry, exporter)
        _check_writable(output)
        return output, str(output)
    named = str(entry.output)
    if texts.names_file(named):
        if same_url(named, source):
            raise UsageError(f"The output '{named}' is the source itself.", "Name another file with --output.")
        _with_suffix(Path(name_of(named)), exporter)
        return Path(named), named
    output = default_output(name_of(source), type(exporter), entry.precision)
    if same_url(join(named, str(output)), source):
        output = output.with_suffix(f".optimized{exporter.suffix}")
    return Path(join(named, str(output))), join(named, str(output))


def _check_writable(output: Path) -> None:
    """Raise UsageError before the work, not after it, when the output's folder cannot be written or made."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"The output '{output}' cannot be written: '{folder}' is a file.", "Choose another --output.")
    if not os.access(folder, os.W_OK):
        raise UsageError(
            f"The output '{output}' cannot be written: no permission in '{folder}'.", "Choose another --output."
        )


def _output_path(source: str, entry: TargetEntry, exporter: Exporter) -> Path:
    """Return where the artifact goes: the file named, or a file in the folder named, or one in the current folder."""
    named = Path(entry.output) if entry.output else None
    if named is not None and texts.names_file(str(entry.output)):
        if named.resolve() == Path(source).resolve():
            raise UsageError(f"The output '{named}' is the source itself.", "Name another file with --output.")
        return _with_suffix(named, exporter)
    called = name_of(source) if is_url(source) else source
    output = (named or Path()) / default_output(called, type(exporter), entry.precision)
    if output.resolve() == Path(source).resolve():
        return output.with_suffix(f".optimized{exporter.suffix}")
    return output


_SUFFIXES = {".onnx", ".xml", ".engine"}


def _with_suffix(named: Path, exporter: Exporter) -> Path:
    if named.suffix in _SUFFIXES - {exporter.suffix} and exporter.suffix != ".xml":
        raise UsageError(
            f"The output '{named}' does not fit target {exporter.target}, which makes {exporter.suffix} files.",
            f"Use {named.with_suffix(exporter.suffix)}, or name the target of {named.suffix} files with -t.",
        )
    if named.suffix != exporter.suffix and exporter.suffix == ".xml":
        raise UsageError(
            f"The output '{named}' must end in {exporter.suffix}: OpenVINO finds the weights by the name.",
            f"Use {named.with_suffix(exporter.suffix)}.",
        )
    return named


def _make_exporter(entry: TargetEntry) -> Exporter:
    name = ALIASES.get(entry.target, entry.target)
    known = registry.names("exporter")
    if name not in known:
        several = f"Repeat it for several: -t {' -t '.join(entry.target.split(','))}"
        hint = several if "," in entry.target else did_you_mean(entry.target, [*known, *ALIASES])
        raise UsageError(f"Unknown target '{entry.target}'.", hint)
    kind = registry.get("exporter", name)
    try:
        return kind.model_validate(entry.options)
    except ValidationError as error:
        raise UsageError(f"Target {name}: {explain(error, kind, entry.options)}") from None


def _has_scales(entry: TargetEntry) -> bool:
    """Whether a precision plan stands for calibration data."""
    if entry.precision_plan is None or entry.precision != "int8":
        return False
    from infconv.quantize._plan_file import PrecisionPlan

    return PrecisionPlan.load(entry.precision_plan).has_scales


def _default_steps(target: str, precision: str, calibrated: bool) -> str:
    name = target if precision == "fp32" else f"{target}-{precision}"
    if precision == "int8" and not calibrated:
        name += "-dynamic"
        if name not in shipped():
            raise UnsupportedError(
                f"Target {target} has no INT8 without calibration data.", "Give some tens of samples: --calibration"
            )
    if name not in shipped():
        raise UnsupportedError(
            f"There is no shipped pipeline for {target} in {precision}.", "Write one: --pipeline FILE"
        )
    return name


def _with_precision(steps: tuple[Pass | Repeat, ...], entry: TargetEntry) -> tuple[Pass | Repeat, ...]:
    """Tell the steps that have these options what `--io-types` and `--precision-plan` ask."""
    asked = {"io": entry.io_types if entry.io_types != "keep" else None, "precision_plan": entry.precision_plan}
    asked = {name: value for name, value in asked.items() if value is not None}
    takers = {name for name in asked for step in flatten(steps) if name in type(step).model_fields}
    if "precision_plan" in asked and "precision_plan" not in takers:
        raise UsageError(
            f"A precision plan was given, but no step for {entry.target} in {entry.precision} applies one.",
            "Ask for the plan's precision (--fp16, --bf16), and do not skip lower-precision.",
        )

    def told(step: Pass | Repeat) -> Pass | Repeat:
        if isinstance(step, Repeat):
            return dataclasses.replace(step, steps=tuple(told(inner) for inner in step.steps))
        update = {name: value for name, value in asked.items() if name in type(step).model_fields}
        return step.model_copy(update=update) if update else step

    return tuple(told(step) for step in steps) if asked else steps


def _with_opset(steps: tuple[Pass | Repeat, ...], opset: int | None, exporter: Exporter) -> tuple[Pass | Repeat, ...]:
    """Convert to the opset that was asked for: a higher one first, as fusions want it, and anyhow in the end."""
    if opset is None:
        return steps
    from infconv.passes.convert_opset import NEWEST, OLDEST, ConvertOpset
    from infconv.passes.raise_opset import RaiseOpset

    newest = min(NEWEST, exporter.max_opset)
    if not OLDEST <= opset <= newest:
        raise UsageError(
            f"--opset {opset} is not possible for target {exporter.target}.", f"It takes {OLDEST} to {newest}."
        )
    liked = [step.step_name() for step in flatten(steps) if isinstance(step, RaiseOpset)]
    raised = ConvertOpset(to=None, min=opset, required=False)
    return (raised, *without(steps, liked), ConvertOpset(to=opset, min=None))
