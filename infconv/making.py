"""Make one artifact: run its steps, export, verify, write the manifest and publish."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.convert._delivery import check_delivered
from infconv.convert._exporter import Exported
from infconv.errors import InfconvError, SourceError
from infconv.observe import Observers
from infconv.opening import Opened, load_source
from infconv.planning import Job
from infconv.result import Artifact, StepResult, Verification
from infconv.resume import run_or_resume
from infconv.shelf import Shelf
from infconv.spec import PipelineSpec
from infconv.steps import Repeat

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.census import Census
    from infconv.convert._base import DimRange, Source
    from infconv.convert._exporter import Delivered
    from infconv.passes import Context, Workers
    from infconv.reference import Reference


def make_artifact(
    spec: PipelineSpec,
    job: Job,
    opened: Opened,
    reference: Reference | None,
    watch: Observers,
    shelf: Shelf | None = None,
    workers: Workers | None = None,
) -> Artifact:
    """Make the artifact of `job`, verified against `reference`; it appears under its name when it is complete.

    `workers` take on parts of long steps, which change no result.
    Raises InfconvErrors: of the steps, the exporter, verification, or for an output that cannot be written.
    """
    from infconv.publish import publish, staging

    source, what = opened.source, f"{job.exporter.target} {job.entry.precision}"
    key = shelf.artifact_key(job) if shelf is not None else ""
    context = _context(spec, job, opened, reference, watch)
    context.workers = workers
    ran = _run_steps(spec, job, source, reference, context, watch, shelf)
    with staging(job.output) as stage:
        with watch.stage(f"write {what}"):
            ranges = {**source.dims, **spec.source.dim_ranges()}
            exported = _export(ran.model, job, stage / job.output.name, ranges)
        delivered = job.exporter.delivered(exported)
        check_delivered(delivered, job.entry.precision, job.exporter.target, context.notes)
        documents = _write_documents(context, stage / job.output.name)
        verification = _verify(spec, job, exported, reference, opened, watch)
        artifact = dataclasses.replace(
            _describe(job, ran, exported, delivered, verification),
            documents=[str(job.output.parent / file.name) for file in documents],
            source=spec.source.label(),
            notes=_notes(source, reference, context, exported),
        )
        files = [*exported.files, *documents]
        manifest = _write_manifest(artifact, spec, job, source, files, stage)
        kept = shelf.keep_artifact(key, job, artifact, files, manifest) if shelf is not None else {}
        publish([*files, manifest], job.output.parent)
    if shelf is not None:
        shelf.learn(job.output.parent, kept)
    return artifact


def _context(spec: PipelineSpec, job: Job, opened: Opened, reference: Reference | None, watch: Observers) -> Context:
    """Return what the steps are told about the job."""
    from infconv.metrics import quality_of
    from infconv.passes import Context
    from infconv.verify import tolerance_for

    samples = [s.inputs for s in reference.samples] if reference else []
    depth, own = (reference.depth, reference.precision) if reference else (0, "fp32")
    tolerance = tolerance_for(job.entry.precision, spec.verify, depth, own)
    context = Context(target=job.exporter.target, samples=samples, tolerance=tolerance, progress=watch.tell)
    context.calibration = opened.calibration
    context.quality = quality_of(spec, opened.quality)
    return context


@dataclasses.dataclass(frozen=True)
class _Ran:
    """The graph after its steps, and what they did."""

    model: ir.Model
    steps: Sequence[StepResult]
    before: Census
    """Of the source's graph."""
    after: Census


def _run_steps(
    spec: PipelineSpec,
    job: Job,
    source: Source,
    reference: Reference | None,
    context: Context,
    watch: Observers,
    shelf: Shelf | None,
) -> _Ran:
    from infconv.census import take_census
    from infconv.crash import report_crash
    from infconv.runner import StepFailed
    from infconv.verify import StepGuard

    model = load_source(spec, source)
    before = take_census(model)
    guard = StepGuard(job, spec.verify, reference) if reference and spec.verify.when == "each" else None
    graphs = shelf.graphs(job, model, context) if shelf is not None else None
    try:
        model, steps = run_or_resume(job.steps, lambda: load_source(spec, source), model, context, watch, guard, graphs)
    except StepFailed as failed:
        executed = failed.executed
        before_it = partial(_first_steps, job, context, executed)
        raise report_crash(failed, lambda: before_it(load_source(spec, source)), spec, job) from failed
    return _Ran(model, steps, before, take_census(model))


def _verify(
    spec: PipelineSpec, job: Job, exported: Exported, reference: Reference | None, opened: Opened, watch: Observers
) -> Verification:
    """Compare the exported files with the reference, and measure the user's metric of them."""
    from infconv.metrics import check_metric
    from infconv.verify import verify

    what = f"{job.exporter.target} {job.entry.precision}"
    with watch.stage(f"verify {what}"):
        verification = verify(job, spec.verify, exported, reference)
    with watch.stage(f"measure {what}"):
        metric = check_metric(spec, job, exported, opened.quality)
        return dataclasses.replace(verification, metric=metric)


def _describe(job: Job, ran: _Ran, exported: Exported, delivered: Delivered, verification: Verification) -> Artifact:
    """Return what there is to tell of an artifact, at its final name."""
    folder = job.output.parent
    return Artifact(
        target=job.exporter.target,
        precision=job.entry.precision,
        path=str(job.output),
        files=[str(folder / file.name) for file in exported.files],
        manifest=str(job.output) + ".infconv.json",
        bytes=sum(file.stat().st_size for file in exported.files),
        nodes_before=ran.before.nodes,
        nodes_after=ran.after.nodes,
        source_bytes=ran.before.weights_bytes,
        compute=delivered.compute,
        compute_evidence=delivered.evidence,
        compute_share=delivered.shares,
        verification=verification,
        steps=ran.steps,
        facts=exported.facts,
    )


def _notes(source: Source, reference: Reference | None, context: Context, exported: Exported) -> list[str]:
    """Return what the user should know, each sentence once."""
    told = [*source.notes, *(reference.notes if reference else ()), *context.notes, *exported.notes]
    return list(dict.fromkeys(told))


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
