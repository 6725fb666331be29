"""Several pipelines as one run: what there is to do, a selection of it, and the outcome of all."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.errors import InfconvError, ResourceError, UsageError, did_you_mean
from infconv.gates import check_baselines, gate_error, gates_of, store_baselines
from infconv.limits import execute_limited
from infconv.nearby import refuse_lost
from infconv.observe import Observers
from infconv.parallel import processes, run_each
from infconv.pipeline import failure_of
from infconv.planning import Job, plan
from infconv.result import Result
from infconv.spec import PipelineSpec

if TYPE_CHECKING:
    from infconv.observe import Observer


def plan_all(specs: Sequence[PipelineSpec]) -> list[list[Job]]:
    """Return the jobs of each pipeline. Raises UsageError or UnsupportedError before anything heavy is done."""
    jobs = [plan(spec) for spec in specs]
    seen: dict[Path, str] = {}
    for spec, own in zip(specs, jobs, strict=True):
        for job in own:
            output = job.output.resolve()
            if output in seen:
                raise UsageError(
                    f"'{seen[output]}' and '{spec.source.path}' would both be written to '{job.place}'.",
                    "Put ${source} or ${matrix:NAME} into the output.",
                )
            seen[output] = spec.source.path
    return jobs


def select(specs: Sequence[PipelineSpec], only: Sequence[str]) -> list[PipelineSpec]:
    """Return the pipelines with those targets only that one of `only` names; all of them when it is empty.

    A name is that of a source, a target, a precision or an artifact's file; `*` and `?` match as in a shell. Raises
    UsageError for a name that nothing has.
    """
    if not only:
        return list(specs)
    names = [[_names(spec, job) for job in jobs] for spec, jobs in zip(specs, plan_all(specs), strict=True)]
    known = {name for own in names for job in own for name in job if "/" not in name}
    for wanted in only:
        if not any(_matches(job, wanted) for own in names for job in own):
            raise UsageError(f"--only '{wanted}': nothing in the pipeline has that name.", did_you_mean(wanted, known))
    selected: list[PipelineSpec] = []
    for spec, own in zip(specs, names, strict=True):
        pairs = zip(spec.targets, own, strict=True)
        targets = [target for target, job in pairs if any(_matches(job, wanted) for wanted in only)]
        if targets:
            selected.append(spec.model_copy(update={"targets": targets}))
    return selected


def _names(spec: PipelineSpec, job: Job) -> set[str]:
    own = {spec.source.label(), spec.source.path, job.entry.target, job.exporter.target, job.entry.precision}
    return {*own, job.output.name, job.output.stem, job.place}


def _matches(names: set[str], wanted: str) -> bool:
    return any(fnmatch.fnmatchcase(name, wanted) for name in {*names}) or str(Path(wanted).absolute()) in names


def cached_by_default(specs: Sequence[PipelineSpec]) -> list[PipelineSpec]:
    """Return the pipelines with the cache on where nobody said anything: a pipeline file is run again and again."""
    if "INFCONV_CACHE" in os.environ:
        return list(specs)
    return [spec if spec.cache is not None else spec.model_copy(update={"cache": True}) for spec in specs]


def execute_all(
    specs: Sequence[PipelineSpec],
    observers: Sequence[Observer] = (),
    *,
    update_baseline: bool = False,
    on: str | None = None,
) -> Result:
    """Make every artifact of every pipeline, check the gates, and return the outcome with the first error.

    A pipeline that fails does not stop the others. With `update_baseline` the figures become the new baseline and are
    not compared with the old one. `on` names a Ray cluster (infconv.on_ray). Raises UsageError or UnsupportedError
    before anything is made.
    """
    planned = plan_all(specs)
    refuse_lost(specs, elsewhere=on is not None)
    if not update_baseline:
        check_baselines(specs)
    if on is None:
        outcomes = _execute_here(specs, observers, update_baseline)
    else:
        from infconv.on_ray import execute_on

        outcomes = execute_on(on, specs, Observers(observers), update_baseline=update_baseline)
    results: list[Result] = []
    for spec, jobs, done in zip(specs, planned, outcomes, strict=True):
        result = done
        if isinstance(result, InfconvError):
            result = Result(error=result, failures=[failure_of(result, spec, job) for job in jobs])
        if result.error is not None and len(specs) > 1:
            result.error.message = f"{spec.source.label()}: {result.error.message}"
        results.append(result)
    outcome = joined(results)
    notes = [*_cached(outcome), *outcome.notes, *store_baselines(specs, outcome, update=update_baseline)]
    return dataclasses.replace(outcome, notes=notes, error=outcome.error or gate_error(outcome.gates))


def execute_and_report(
    specs: Sequence[PipelineSpec],
    name: str,
    observers: Sequence[Observer] = (),
    *,
    reports: Sequence[str] = (),
    update_baseline: bool = False,
) -> Result:
    """Do as `execute_all`, and write the pipelines' reports and `reports`, whether the run fails or not.

    `name` is what the reports call the run.
    """
    from infconv.report import Report, write_reports

    paths = [*reports, *(path for spec in specs for path in spec.reports)]
    try:
        result = execute_all(specs, observers, update_baseline=update_baseline)
    except InfconvError as error:
        with contextlib.suppress(ResourceError):  # why the run failed matters more
            write_reports(paths, Report(name, Result(error=error)))
        raise
    with contextlib.suppress(*([ResourceError] if result.error else [])):
        write_reports(paths, Report(name, result))
    return result


def _execute_here(
    specs: Sequence[PipelineSpec], observers: Sequence[Observer], update_baseline: bool
) -> list[Result | InfconvError]:
    """Make the pipelines in as many processes as they ask for; one after another where one measures time."""
    most = processes(specs[0], len(specs)) if specs and not any(map(measures_time, specs)) else 1
    if most > 1:  # what is left of the processes goes to the targets of each
        inner = max(1, processes(specs[0], 1 << 30) // most)
        specs = [spec.model_copy(update={"jobs": inner}) for spec in specs]

    def work(spec: PipelineSpec, watch: Observers) -> Result:
        return execute_limited(spec, watch.each, update_baseline=update_baseline)

    return run_each([partial(work, spec) for spec in specs], most, Observers(observers))


def _cached(result: Result) -> list[str]:
    count = sum(artifact.cached for artifact in result.artifacts)
    words = f"From the cache, with the verification of the same bytes: {count} of {len(result.artifacts)} artifacts."
    return [words] if count else []


def measures_time(spec: PipelineSpec) -> bool:
    """Whether a gate is about time, which what else runs on the machine would disturb."""
    return any(gates_of(spec, target).latency_ms is not None for target in spec.targets)


def joined(results: Sequence[Result]) -> Result:
    """Return the outcome of several runs as that of one, with the first error."""
    return Result(
        artifacts=[artifact for result in results for artifact in result.artifacts],
        seconds=sum(result.seconds for result in results),
        error=next((result.error for result in results if result.error), None),
        failures=[failure for result in results for failure in result.failures],
        gates=[gate for result in results for gate in result.gates],
        figures=[figures for result in results for figures in result.figures],
        notes=list(dict.fromkeys(note for result in results for note in result.notes)),
    )
