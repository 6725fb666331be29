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

from infconv import registry, texts
from infconv.calibrated import PRECISIONS
from infconv.convert._delivery import check_delivered
from infconv.convert._exporter import Exported, Exporter, default_output
from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError, did_you_mean
from infconv.explain import explain
from infconv.gates import Subject, check_gates, check_possible
from infconv.observe import Observer, Observers
from infconv.opening import Opened, Opening, load_source
from infconv.parallel import processes, run_each
from infconv.result import Artifact, Failure, Figures, GateCheck, Result
from infconv.resume import run_or_resume
from infconv.shelf import Shelf, open_shelf
from infconv.spec import ALIASES, PipelineSpec, TargetEntry
from infconv.steps import Repeat, check_legal, flatten, resolve, shipped, without

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
    calibrated = spec.calibration is not None
    items = spec.steps if spec.steps is not None else [_default_steps(exporter.target, entry.precision, calibrated)]
    steps = without(resolve([*items, *spec.add]), spec.skip)
    steps = _with_opset(_with_precision(steps, entry), spec.opset, exporter)
    check_legal(steps, exporter)
    output = _output_path(spec.source.path, entry, exporter)
    _check_writable(output)
    job = Job(entry, exporter, steps, output)
    check_possible(spec, job)
    return job


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
    output = (named or Path()) / default_output(source, type(exporter), entry.precision)
    if output.resolve() == Path(source).resolve():
        return output.with_suffix(f".optimized{exporter.suffix}")
    return output


_SUFFIXES = {".onnx", ".xml", ".engine"}


def _with_suffix(named: Path, exporter: Exporter) -> Path:
    if named.suffix in _SUFFIXES - {exporter.suffix, ".xml"} and exporter.suffix != ".xml":
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
    """Follow the steps by a conversion to the opset that the user asked for."""
    if opset is None:
        return steps
    from infconv.passes.convert_opset import NEWEST, OLDEST

    newest = min(NEWEST, exporter.max_opset)
    if not OLDEST <= opset <= newest:
        raise UsageError(
            f"--opset {opset} is not possible for target {exporter.target}.", f"It takes {OLDEST} to {newest}."
        )
    return (*steps, *resolve([{"convert-opset": {"to": opset, "required": True}}]))


def execute(spec: PipelineSpec, observers: Sequence[Observer] = (), *, update_baseline: bool = False) -> Result:
    """Make every artifact of `spec` and check its gates.

    A source that cannot be opened raises its error. An artifact that fails does not stop the others: the result has
    the artifacts that were made, what failed, and the first error. A gate that is not kept is no error here, since
    there may be others to tell of (`infconv.runs`).
    """
    start = time.perf_counter()
    watch = Observers(observers)
    jobs = plan(spec)
    shelf = open_shelf(spec, watch)
    try:
        with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
            opening = Opening(spec, Path(folder), watch, shelf)
            outcomes = _make_all(spec, jobs, opening, watch)
            made = [(job, done) for job, done in zip(jobs, outcomes, strict=True) if isinstance(done, Artifact)]
            with watch.stage("check the gates"):
                checks, figures = _check_gates(spec, opening, made, update_baseline)
    finally:
        if shelf is not None:
            shelf.close()
    failed = [(job, done) for job, done in zip(jobs, outcomes, strict=True) if isinstance(done, InfconvError)]
    failures = [failure_of(error, spec, job) for job, error in failed]
    errors = [_located(error, job, jobs) for job, error in failed]
    return Result(
        artifacts=[artifact for _, artifact in made],
        seconds=time.perf_counter() - start,
        error=errors[0] if errors else None,
        failures=failures,
        gates=checks,
        figures=figures,
        notes=shelf.cache.notes if shelf is not None else [],
    )


def _make_all(
    spec: PipelineSpec, jobs: Sequence[Job], opening: Opening, watch: Observers
) -> list[Artifact | InfconvError]:
    """Return the artifact of each job or why there is none; the source is opened when one is not in the cache."""
    shelf = opening.shelf
    found: dict[int, Artifact | InfconvError] = {}
    if shelf is not None and shelf.find_opened():
        for number, job in enumerate(jobs):
            artifact = _find_artifact(job, shelf, watch)
            if artifact is not None:
                found[number] = artifact
    left = [number for number in range(len(jobs)) if number not in found]
    if left:
        opened = opening.opened()
        works = [partial(_make_or_find, spec, jobs[number], opened, shelf) for number in left]
        for number, done in zip(left, run_each(works, processes(spec, len(works)), watch), strict=True):
            found[number] = done if isinstance(done, InfconvError) else done[0]
            if shelf is not None and not isinstance(done, InfconvError):
                shelf.cache.notes[:] = dict.fromkeys([*shelf.cache.notes, *done[1]])
    return [found[number] for number in range(len(jobs))]


def _find_artifact(job: Job, shelf: Shelf, watch: Observers) -> Artifact | InfconvError | None:
    with watch.stage(f"look for {job.exporter.target} {job.entry.precision} in the cache"):
        try:
            return shelf.find_artifact(job)
        except InfconvError as error:
            return error


def _make_or_find(
    spec: PipelineSpec, job: Job, opened: Opened, shelf: Shelf | None, watch: Observers
) -> tuple[Artifact, list[str]]:
    """Return the artifact of a job, and the cache's notes on it; this may run in a process of its own.

    A source that only now is known to be the same may have the artifact in the cache.
    """
    artifact = shelf.find_artifact(job) if shelf is not None and not shelf.request else None
    if artifact is None:
        reference = opened.calibrated if job.entry.precision in PRECISIONS else opened.reference
        artifact = _make_artifact(spec, job, opened, reference, watch, shelf)
    return artifact, shelf.cache.notes if shelf is not None else []


def failure_of(error: InfconvError, spec: PipelineSpec, job: Job) -> Failure:
    """Return what `error` means for the artifact of `job`."""
    entry = job.entry
    own = (spec.source.label(), job.exporter.target, entry.precision, str(job.output))
    return Failure(*own, error.code, error.message, error.hint)


def _check_gates(
    spec: PipelineSpec,
    opening: Opening,
    made: Sequence[tuple[Job, Artifact]],
    update_baseline: bool,
) -> tuple[list[GateCheck], list[Figures]]:
    """Check the gates on the first sample, which is of the usual size."""
    if spec.gates is None and not any(job.entry.gates for job, _ in made):
        return [], []
    source, reference = opening.opened().source, opening.opened().reference
    if reference is not None:
        inputs = reference.samples[0].inputs
    else:
        from infconv.reference import describe_inputs, make_inputs, size_plans
        from infconv.synthetic import limited

        found = describe_inputs(load_source(spec, source))
        infos = [limited(info, source.value_limits.get(info.name)) for info in found]
        sizes = next(iter(size_plans(infos, {**source.dims, **spec.source.dim_ranges()})))[1]
        inputs = make_inputs(infos, sizes, spec.seed)
    subjects = [Subject(artifact, job, inputs) for job, artifact in made]
    return check_gates(spec, subjects, update_baseline=update_baseline)


def _located(error: InfconvError, job: Job, jobs: Sequence[Job]) -> InfconvError:
    """Return `error`, naming its artifact when there are several."""
    if len(jobs) > 1:
        error.message = f"{job.exporter.target} {job.entry.precision}: {error.message}"
    return error


def _make_artifact(
    spec: PipelineSpec,
    job: Job,
    opened: Opened,
    reference: Reference | None,
    watch: Observers,
    shelf: Shelf | None = None,
) -> Artifact:
    from infconv.census import take_census
    from infconv.crash import report_crash
    from infconv.metrics import check_metric
    from infconv.passes import Context
    from infconv.publish import publish, staging
    from infconv.runner import StepFailed
    from infconv.verify import StepGuard, tolerance_for, verify

    source = opened.source
    key = shelf.artifact_key(job) if shelf is not None else ""
    model = load_source(spec, source)
    before = take_census(model)
    samples = [s.inputs for s in reference.samples] if reference else []
    depth, own = (reference.depth, reference.precision) if reference else (0, "fp32")
    tolerance = tolerance_for(job.entry.precision, spec.verify, depth, own)
    context = Context(target=job.exporter.target, samples=samples, tolerance=tolerance, progress=watch.tell)
    context.calibration = opened.calibration
    guard = StepGuard(job, spec.verify, reference) if reference and spec.verify.when == "each" else None
    graphs = shelf.graphs(job, model, context) if shelf is not None else None
    try:
        model, steps = run_or_resume(job.steps, lambda: load_source(spec, source), model, context, watch, guard, graphs)
    except StepFailed as failed:
        executed = failed.executed
        before_it = partial(_first_steps, job, context, executed)
        raise report_crash(failed, lambda: before_it(load_source(spec, source)), job.exporter.target) from failed
    after = take_census(model)
    with staging(job.output) as stage:
        with watch.stage(f"write {job.exporter.target} {job.entry.precision}"):
            ranges = {**source.dims, **spec.source.dim_ranges()}
            exported = _export(model, job, stage / job.output.name, ranges)
        delivered = job.exporter.delivered(exported)
        check_delivered(delivered, job.entry.precision, job.exporter.target, context.notes)
        documents = _write_documents(context, stage / job.output.name)
        with watch.stage(f"verify {job.exporter.target} {job.entry.precision}"):
            verification = verify(job, spec.verify, exported, reference)
        with watch.stage(f"measure {job.exporter.target} {job.entry.precision}"):
            metric = check_metric(spec, job, exported, opened.quality)
            verification = dataclasses.replace(verification, metric=metric)
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
            compute_share=delivered.shares,
            documents=[str(job.output.parent / f.name) for f in documents],
            source=spec.source.label(),
            verification=verification,
            steps=steps,
            notes=list(dict.fromkeys(notes)),
            facts=exported.facts,
        )
        files = [*exported.files, *documents]
        manifest = _write_manifest(artifact, spec, job, source, files, stage)
        kept = shelf.keep_artifact(key, job, artifact, files, manifest) if shelf is not None else {}
        publish([*files, manifest], job.output.parent)
    if shelf is not None:
        shelf.learn(job.output.parent, kept)
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


def _write_documents(context: Context, artifact: Path) -> list[Path]:
    """Write what the steps left for the user beside the artifact, which is still in staging."""
    files = [artifact.with_name(f"{artifact.name}.{suffix}") for suffix in context.documents]
    for file, text in zip(files, context.documents.values(), strict=True):
        file.write_text(text, encoding="utf-8")
    return files


def _write_manifest(
    artifact: Artifact, spec: PipelineSpec, job: Job, source: Source, files: Sequence[Path], stage: Path
) -> Path:
    from infconv.manifest import write_manifest

    return write_manifest(stage / Path(artifact.manifest).name, artifact, spec, job.steps, source, files)
