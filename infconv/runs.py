"""Several pipelines as one run: what there is to do, a selection of it, and the outcome of all."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.errors import InfconvError, UsageError, did_you_mean
from infconv.gates import gate_error, store_baselines
from infconv.limits import execute_limited
from infconv.pipeline import Job, failure_of, plan
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
                    f"'{seen[output]}' and '{spec.source.path}' would both be written to '{job.output}'.",
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
    return {*own, job.output.name, job.output.stem, str(job.output)}


def _matches(names: set[str], wanted: str) -> bool:
    return any(fnmatch.fnmatchcase(name, wanted) for name in {*names}) or str(Path(wanted).absolute()) in names


def execute_all(
    specs: Sequence[PipelineSpec], observers: Sequence[Observer] = (), *, update_baseline: bool = False
) -> Result:
    """Make every artifact of every pipeline, check the gates, and return the outcome with the first error.

    A pipeline that fails does not stop the others. With `update_baseline` the figures become the new baseline and are
    not compared with the old one. Raises UsageError or UnsupportedError before anything is made.
    """
    planned = plan_all(specs)
    results: list[Result] = []
    for spec, jobs in zip(specs, planned, strict=True):
        try:
            result = execute_limited(spec, observers, update_baseline=update_baseline)
        except InfconvError as error:
            failures = [failure_of(error, spec, job) for job in jobs]
            result = Result(error=error, failures=failures)
        if result.error is not None and len(specs) > 1:
            result.error.message = f"{spec.source.label()}: {result.error.message}"
        results.append(result)
    outcome = _joined(results)
    notes = store_baselines(specs, outcome, update=update_baseline)
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
        write_reports(paths, Report(name, Result(error=error)))
        raise
    write_reports(paths, Report(name, result))
    return result


def _joined(results: Sequence[Result]) -> Result:
    return Result(
        artifacts=[artifact for result in results for artifact in result.artifacts],
        seconds=sum(result.seconds for result in results),
        error=next((result.error for result in results if result.error), None),
        failures=[failure for result in results for failure in result.failures],
        gates=[gate for result in results for gate in result.gates],
        figures=[figures for result in results for figures in result.figures],
    )
