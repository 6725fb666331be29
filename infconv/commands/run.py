"""`infconv run`: artifacts from a pipeline file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import Json, MemoryLimit, Quiet, Timeout, Verbose
from infconv.commands._run import Reports, Request, Sbom, UpdateBaseline, run_pipelines

if TYPE_CHECKING:
    from infconv.pipeline import Job
    from infconv.spec import PipelineSpec


def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline file.")],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in place of the file's, e.g. targets.0.precision=fp16. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A source, target, precision or artifact; * matches anything. Repeatable."),
    ] = None,
    report: Reports = None,
    sbom: Sbom = None,
    update_baseline: UpdateBaseline = False,
    timeout: Timeout = None,
    memory_limit: MemoryLimit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be made, with -v the full pipelines, and stop.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a pipeline file."""

    def build() -> list[PipelineSpec]:
        from infconv import texts
        from infconv.run_file import load_run
        from infconv.runs import select

        for path in report or ():
            texts.report(path)
        limits = {
            "timeout": texts.duration(timeout) if timeout else None,
            "memory_limit": texts.memory(memory_limit) if memory_limit else None,
        }
        update = {name: limit for name, limit in limits.items() if limit}
        return [spec.model_copy(update=update) for spec in select(load_run(pipeline, set or ()), only or ())]

    run_pipelines(
        Request(
            pipeline,
            build,
            reports=report or (),
            sbom=sbom,
            update_baseline=update_baseline,
            dry_run=(lambda specs: _print_plan(specs, json, verbose)) if dry_run else None,
            json=json,
            verbose=verbose,
            quiet=quiet,
        )
    )


def _print_plan(specs: Sequence[PipelineSpec], json: bool, verbose: bool) -> None:
    """Check everything that needs no model, and print what would be made."""
    from infconv import console
    from infconv.result import Result
    from infconv.runs import plan_all
    from infconv.spec import absolute, to_data, to_yaml

    planned = plan_all(specs)
    jobs = [_row(spec, job) for spec, own in zip(specs, planned, strict=True) for job in own]
    if json:
        data = [to_data(absolute(spec)) for spec in specs]
        console.print_json(Result().as_json() | {"jobs": jobs, "pipelines": data})
    elif verbose:
        sys.stdout.write("---\n".join(to_yaml(absolute(spec)) for spec in specs))
    else:
        console.print_table("", list(jobs[0]), [[str(value) for value in job.values()] for job in jobs], ("steps",))


def _row(spec: PipelineSpec, job: Job) -> dict[str, str | int]:
    from infconv.gates import gates_of
    from infconv.steps import flatten

    gates = gates_of(spec, job.entry).model_dump(exclude_none=True)
    return {
        "source": spec.source.label(),
        "target": job.exporter.target,
        "precision": job.entry.precision,
        "output": str(job.output),
        "steps": len(list(flatten(job.steps))),
        "verify": spec.verify.when,
        "gates": ", ".join(gates) or "-",
    }
