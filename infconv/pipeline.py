"""Run a pipeline: open the source once, then for each target run its steps, export, verify and publish."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.calibrated import PRECISIONS
from infconv.errors import InfconvError
from infconv.gates import Subject, check_gates
from infconv.given import as_given
from infconv.making import make_artifact
from infconv.nearby import deliver, near
from infconv.observe import Observer, Observers
from infconv.opening import Opened, Opening, load_source
from infconv.parallel import processes, run_each
from infconv.planning import Job, plan
from infconv.result import Artifact, Failure, Figures, GateCheck, Result
from infconv.shelf import Shelf, open_shelf
from infconv.spec import PipelineSpec
from infconv.workers import forked

if TYPE_CHECKING:
    from infconv.passes import Workers


def execute(
    spec: PipelineSpec,
    observers: Sequence[Observer] = (),
    *,
    update_baseline: bool = False,
    workers: Workers | None = None,
) -> Result:
    """Make every artifact of `spec` and check its gates.

    A source that cannot be opened raises its error. An artifact that fails does not stop the others: the result has
    the artifacts that were made, what failed, and the first error. A gate that is not kept is no error here, since
    there may be others to tell of (`infconv.runs`). `workers` take on parts of long steps; by default the processes
    that `jobs` leaves.
    """
    watch = Observers(observers)
    with near(spec, watch) as local:
        return as_given(_execute(local, watch, update_baseline, workers), local)


def _execute(spec: PipelineSpec, watch: Observers, update_baseline: bool, workers: Workers | None) -> Result:
    start = time.perf_counter()
    jobs = plan(spec)
    shelf = open_shelf(spec, watch)
    try:
        with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
            opening = Opening(spec, Path(folder), watch, shelf)
            outcomes = _make_all(spec, jobs, opening, watch, workers)
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
    spec: PipelineSpec, jobs: Sequence[Job], opening: Opening, watch: Observers, workers: Workers | None
) -> list[Artifact | InfconvError]:
    """Return the artifact of each job or why there is none; the source is opened when one is not in the cache."""
    shelf = opening.shelf
    found: dict[int, Artifact | InfconvError] = {}
    if shelf is not None and shelf.find_opened():
        for number, job in enumerate(jobs):
            artifact = _find_artifact(spec, job, shelf, watch)
            if artifact is not None:
                found[number] = artifact
    left = [number for number in range(len(jobs)) if number not in found]
    if left:
        opened = opening.opened()
        most = processes(spec, len(left))
        helpers = workers or forked(processes(spec, 1 << 30) // most)
        works = [partial(_make_or_find, spec, jobs[number], opened, shelf, helpers) for number in left]
        for number, done in zip(left, run_each(works, most, watch), strict=True):
            found[number] = done if isinstance(done, InfconvError) else done[0]
            if shelf is not None and not isinstance(done, InfconvError):
                shelf.cache.notes[:] = dict.fromkeys([*shelf.cache.notes, *done[1]])
    return [found[number] for number in range(len(jobs))]


def _find_artifact(spec: PipelineSpec, job: Job, shelf: Shelf, watch: Observers) -> Artifact | InfconvError | None:
    with watch.stage(f"look for {job.exporter.target} {job.entry.precision} in the cache"):
        try:
            artifact = shelf.find_artifact(job)
            if artifact is not None:
                deliver(artifact, spec, watch)
            return artifact
        except InfconvError as error:
            return error


def _make_or_find(
    spec: PipelineSpec, job: Job, opened: Opened, shelf: Shelf | None, workers: Workers | None, watch: Observers
) -> tuple[Artifact, list[str]]:
    """Return the artifact of a job, and the cache's notes on it; this may run in a process of its own.

    A source that only now is known to be the same may have the artifact in the cache.
    """
    artifact = shelf.find_artifact(job) if shelf is not None and not shelf.request else None
    if artifact is None:
        reference = opened.calibrated if job.entry.precision in PRECISIONS else opened.reference
        artifact = make_artifact(spec, job, opened, reference, watch, shelf, workers)
    deliver(artifact, spec, watch)
    return artifact, shelf.cache.notes if shelf is not None else []


def failure_of(error: InfconvError, spec: PipelineSpec, job: Job) -> Failure:
    """Return what `error` means for the artifact of `job`."""
    entry = job.entry
    own = (spec.source.label(), job.exporter.target, entry.precision, job.place)
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
