"""Run a pipeline: open the source once, then for each target run its steps, export, verify and publish."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from infconv import registry
from infconv.convert._exporter import Delivered, Exported, Exporter, default_output
from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError, VerificationError, did_you_mean
from infconv.observe import Observer, Observers
from infconv.result import Artifact, Result
from infconv.spec import ALIASES, PipelineSpec, TargetEntry, explain
from infconv.steps import Repeat, check_legal, resolve, shipped, without

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import DimRange, Source
    from infconv.passes import Context, Pass
    from infconv.reference import Reference


@dataclasses.dataclass(frozen=True)
class Job:
    """One artifact to make: everything that can be decided before the source is opened."""

    entry: TargetEntry
    exporter: Exporter
    steps: tuple[Pass | Repeat, ...]
    output: Path


def plan(spec: PipelineSpec) -> list[Job]:
    """Decide everything that needs no model. Raises UsageError or UnsupportedError before anything heavy is done."""
    jobs = [_plan_target(spec, entry) for entry in spec.targets]
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
    items = spec.steps if spec.steps is not None else [_default_steps(exporter.target, entry.precision)]
    steps = without(resolve([*items, *spec.add]), spec.skip)
    steps = _with_opset(_with_io_types(steps, entry), spec.opset)
    check_legal(steps, exporter)
    output = _output_path(spec.source.path, entry, exporter)
    _check_writable(output)
    return Job(entry, exporter, steps, output)


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
    if named is not None and named.suffix and not named.is_dir():
        if named.resolve() == Path(source).resolve():
            raise UsageError(f"The output '{named}' is the source itself.", "Name another file with --output.")
        return _with_suffix(named, exporter)
    output = (named or Path()) / default_output(source, type(exporter), entry.precision)
    if output.resolve() == Path(source).resolve():
        return output.with_suffix(f".optimized{exporter.suffix}")
    return output


_SUFFIXES = {".onnx", ".xml", ".engine"}


def _with_suffix(named: Path, exporter: Exporter) -> Path:
    if named.suffix in _SUFFIXES - {exporter.suffix, ".xml"} and exporter.suffix != ".xml":
        raise UsageError(
            f"The output '{named}' does not fit target {exporter.target}, which makes {exporter.suffix} files.",
            f"Use {named.with_suffix(exporter.suffix)}.",
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
        raise UsageError(f"Unknown target '{entry.target}'.", did_you_mean(entry.target, [*known, *ALIASES]))
    kind = registry.get("exporter", name)
    try:
        return kind.model_validate(entry.options)
    except ValidationError as error:
        raise UsageError(f"Target {name}: " + "; ".join(explain(error, kind))) from None


def _default_steps(target: str, precision: str) -> str:
    name = target if precision == "fp32" else f"{target}-{precision}"
    if name not in shipped():
        raise UnsupportedError(
            f"There is no shipped pipeline for {target} in {precision}.", "Write one: --pipeline FILE"
        )
    return name


def _with_io_types(steps: tuple[Pass | Repeat, ...], entry: TargetEntry) -> tuple[Pass | Repeat, ...]:
    """Tell the precision step, if there is one, what `--io-types` asks."""
    if entry.io_types == "keep":
        return steps
    return tuple(
        step.model_copy(update={"io": entry.io_types})
        if not isinstance(step, Repeat) and step.step_name() == "lower-precision"
        else step
        for step in steps
    )


def _with_opset(steps: tuple[Pass | Repeat, ...], opset: int | None) -> tuple[Pass | Repeat, ...]:
    """Follow the steps by a conversion to the opset that the user asked for."""
    return steps if opset is None else (*steps, *resolve([{"convert-opset": {"to": opset, "required": True}}]))


def execute(spec: PipelineSpec, observers: Sequence[Observer] = ()) -> Result:
    """Make every artifact of `spec`.

    A source that cannot be opened raises its error. An artifact that fails does not stop the others: the result has
    the artifacts that were made, and the first error.
    """
    from infconv.convert import open_source

    start = time.perf_counter()
    watch = Observers(observers)
    jobs = plan(spec)
    artifacts: list[Artifact] = []
    errors: list[InfconvError] = []
    with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
        with watch.stage("open the source"):
            source = open_source(spec, Path(folder))
        with source:
            reference = _reference(spec, source, watch)
        for job in jobs:
            try:
                artifacts.append(_make_artifact(spec, job, source, reference, watch))
            except InfconvError as error:
                errors.append(_located(error, job, jobs))
    return Result(artifacts, time.perf_counter() - start, errors[0] if errors else None)


def _located(error: InfconvError, job: Job, jobs: Sequence[Job]) -> InfconvError:
    """Return `error`, naming its artifact when there are several."""
    if len(jobs) > 1:
        error.message = f"{job.exporter.target} {job.entry.precision}: {error.message}"
    return error


def _reference(spec: PipelineSpec, source: Source, watch: Observers) -> Reference | None:
    """Run the source on samples; None with `--verify off`."""
    from infconv.reference import make_reference

    if spec.verify.when == "off":
        return None
    with watch.stage("run the source on samples"):
        model = _load(spec, source)
        return make_reference(source, model, spec.source.dim_ranges(), spec.sample, spec.seed)


def _load(spec: PipelineSpec, source: Source) -> ir.Model:
    from infconv.convert._inputs import apply_inputs
    from infconv.model import load

    model = load(source.model_path)
    apply_inputs(model, spec.source.input_specs(), spec.source.dim_ranges())
    return model


def _make_artifact(
    spec: PipelineSpec, job: Job, source: Source, reference: Reference | None, watch: Observers
) -> Artifact:
    from infconv.census import take_census
    from infconv.crash import report_crash
    from infconv.passes import Context
    from infconv.publish import publish, staging
    from infconv.runner import StepFailed, run_steps
    from infconv.verify import StepGuard, verify

    model = _load(spec, source)
    before = take_census(model)
    samples = [s.inputs for s in reference.samples] if reference else []
    context = Context(target=job.exporter.target, samples=samples)
    guard = StepGuard(job, spec.verify, reference) if reference and spec.verify.when == "each" else None
    try:
        model, steps = run_steps(job.steps, model, context, watch, guard)
    except StepFailed as failed:
        executed = failed.executed
        before_it = partial(_first_steps, job, context, executed)
        raise report_crash(failed, lambda: before_it(_load(spec, source)), job.exporter.target) from failed
    after = take_census(model)
    with staging(job.output) as stage:
        with watch.stage(f"write {job.exporter.target} {job.entry.precision}"):
            ranges = {**source.dims, **spec.source.dim_ranges()}
            exported = _export(model, job, stage / job.output.name, ranges)
        delivered = job.exporter.delivered(exported)
        _check_delivered(delivered, job, context.notes)
        with watch.stage(f"verify {job.exporter.target} {job.entry.precision}"):
            verification = verify(job, spec.verify, exported, reference)
        notes = [*source.notes, *(reference.notes if reference else ()), *context.notes, *exported.notes]
        artifact = Artifact(
            target=job.exporter.target,
            precision=job.entry.precision,
            path=str(job.output),
            files=[str(job.output.parent / f.name) for f in exported.files],
            manifest=str(job.output) + ".infconv.json",
            bytes=sum(f.stat().st_size for f in exported.files),
            nodes_before=before.nodes,
            nodes_after=after.nodes,
            source_bytes=before.weights_bytes,
            compute=delivered.compute,
            compute_evidence=delivered.evidence,
            verification=verification,
            steps=steps,
            notes=list(dict.fromkeys(notes)),
            facts=exported.facts,
        )
        manifest = _write_manifest(artifact, spec, job, source, exported, stage)
        publish([*exported.files, manifest], job.output.parent)
    return artifact


def _first_steps(job: Job, context: Context, count: int, model: ir.Model) -> ir.Model:
    """Return `model` after the first `count` steps that were run."""
    from infconv.runner import run_steps

    return run_steps(job.steps, model, context, Observers(), limit=count)[0]


def _export(model: ir.Model, job: Job, path: Path, ranges: Mapping[str, DimRange]) -> Exported:
    """Check the final graph, then let the exporter write it."""
    from infconv.model import check

    try:
        check(model)
    except SourceError as error:
        names = ", ".join(step.step_name() for step in job.steps if not isinstance(step, Repeat))
        raise InfconvError(
            f"The steps produced an invalid graph: {error.message}", f"Find the step with --verify each ({names})."
        ) from error
    return job.exporter.export(model, path, ranges)


_ASKED = {"fp16": "float16", "bf16": "bfloat16"}


def _check_delivered(delivered: Delivered, job: Job, notes: Sequence[str]) -> None:
    """Raise VerificationError when the precision that was asked for is nowhere in the artifact."""
    asked = _ASKED.get(job.entry.precision)
    if asked is None or not delivered.compute or delivered.share(asked) > 0:
        return
    found = ", ".join(f"{count} in {kind}" for kind, count in delivered.compute.items())
    raise VerificationError(
        f"{job.entry.precision} was asked for, but no compute operator of the {job.exporter.target} artifact runs in "
        f"{asked} ({found}; {delivered.evidence}).",
        " ".join(notes[:3]) or "The model may compute in another type already: see infconv inspect.",
    )


def _write_manifest(
    artifact: Artifact, spec: PipelineSpec, job: Job, source: Source, exported: Exported, stage: Path
) -> Path:
    from infconv.manifest import write_manifest

    return write_manifest(stage / Path(artifact.manifest).name, artifact, spec, job.steps, source, exported.files)
