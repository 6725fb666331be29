"""What `convert` and `run` do with their pipelines: plan or run them in a supervised child, tell and report."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import guarded
from infconv.errors import InfconvError

if TYPE_CHECKING:
    from infconv.report import Report
    from infconv.result import Result
    from infconv.spec import PipelineSpec

Reports = Annotated[
    list[str] | None,
    typer.Option("--report", help="Write a report: .html .json .md .xml (JUnit) .sarif. Repeatable."),
]
Sbom = Annotated[str | None, typer.Option("--sbom", help="Write a CycloneDX bill of materials (JSON).")]
UpdateBaseline = Annotated[
    bool, typer.Option("--update-baseline", help="Store the figures as the gates' new baseline.")
]


@dataclasses.dataclass(frozen=True)
class Request:
    """A run, as the command line asks for it."""

    name: str
    """What reports call it: the pipeline file or the source."""
    build: Callable[[], list[PipelineSpec]]
    reports: Sequence[str] = ()
    sbom: str | None = None
    update_baseline: bool = False
    on: str | None = None
    """The cluster that makes the artifacts; None: this machine."""
    dry_run: Callable[[Sequence[PipelineSpec]], None] | None = None
    json: bool = False
    verbose: bool = False
    quiet: bool = False


def run_pipelines(request: Request) -> None:
    """Build the pipelines and run them, in a supervised child; print the outcome and exit with its code."""

    def in_child() -> int:
        from infconv.supervise import supervised

        try:
            return supervised(lambda: guarded(lambda: _run(request), request.json))
        except InfconvError as error:  # the child died: what it knew went with it
            _report_failure(request, _specs_again(request), error)
            raise

    raise typer.Exit(guarded(in_child, request.json))


def _run(request: Request) -> int:
    from infconv.console import Progress
    from infconv.nearby import refuse_lost
    from infconv.runs import execute_all
    from infconv.supervise import Diary

    specs: list[PipelineSpec] = []
    progress = Progress(request.verbose)
    try:
        specs = request.build()
        if request.dry_run is not None:
            request.dry_run(specs)
            return 0
        refuse_lost(specs, elsewhere=True)  # this is a child, which ends with the command
        watchers = [Diary()] if request.quiet or request.json else [Diary(), progress]
        result = execute_all(specs, watchers, update_baseline=request.update_baseline, on=request.on)
    except InfconvError as error:
        _report_failure(request, specs, error)
        raise
    except Exception as error:
        from infconv.crash import report_bug

        failure = report_bug(error)
        _report_failure(request, specs, failure)
        raise failure from error
    finally:
        progress.close()
    _print(result, request)
    return _report(request, specs, result)


def _specs_again(request: Request) -> list[PipelineSpec]:
    """Return the pipelines once more, in the parent of a child that died; none when they cannot be built."""
    try:
        return request.build()
    except InfconvError:
        return []


def _print(result: Result, request: Request) -> None:
    from infconv import console

    if request.json:
        console.print_json(result.as_json())
    elif not request.quiet:
        console.print_result(result)
    if result.error and not request.json:
        console.print_error(result.error)


def _report_failure(request: Request, specs: Sequence[PipelineSpec], error: InfconvError) -> None:
    from infconv.result import Result

    if request.dry_run is None:
        _report(request, specs, Result(error=error))


def _report(request: Request, specs: Sequence[PipelineSpec], result: Result) -> int:
    """Write every report and the bill of materials, tell the CI service, and return the exit code.

    A report that cannot be written does not hide how the run ended: it counts only after a run without errors.
    """
    from infconv.report import Report

    try:
        _write(request, specs, Report(request.name, result))
    except InfconvError as error:
        if result.error is None:
            raise
        from infconv import console

        console.print_error(error)
    return result.exit_code


def _write(request: Request, specs: Sequence[PipelineSpec], report: Report) -> None:
    from infconv import texts
    from infconv.report import ci, write_reports
    from infconv.sbom import write_sbom

    sys.stderr.writelines(f"{line}\n" for line in ci.workflow_commands(report))
    ci.append_summary(report)
    if request.sbom and report.result.artifacts:
        write_sbom(request.sbom, [artifact.manifest for artifact in report.result.artifacts])
    own = [path for path in request.reports if texts.report_kind(path) in texts.REPORTS]  # of others the error tells
    write_reports([*own, *(path for spec in specs for path in spec.reports)], report)
