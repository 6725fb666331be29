"""`infconv run`: artifacts from a pipeline file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import CacheDir, Jobs, Json, MemoryLimit, Quiet, Timeout, UseCache, Verbose
from infconv.commands._run import Reports, Request, Sbom, UpdateBaseline, run_pipelines

if TYPE_CHECKING:
    from infconv.planning import Job
    from infconv.shelf import Shelf
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
    cache: UseCache = None,
    cache_dir: CacheDir = None,
    jobs: Jobs = None,
    on: Annotated[
        str | None, typer.Option(help="ray, or ray://host:port: make the artifacts on a Ray cluster.")
    ] = None,
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
        from infconv.commands import _parse
        from infconv.run_file import load_run
        from infconv.runs import cached_by_default, select

        for path in report or ():
            texts.report(path)
        limits = {
            "timeout": texts.duration(timeout) if timeout else None,
            "memory_limit": texts.memory(memory_limit) if memory_limit else None,
            "cache": _parse.cache(cache, cache_dir),
            "jobs": jobs,
        }
        update = {name: value for name, value in limits.items() if value is not None}
        specs = [spec.model_copy(update=update) for spec in select(load_run(pipeline, set or ()), only or ())]
        return cached_by_default(specs)

    run_pipelines(
        Request(
            pipeline,
            build,
            reports=report or (),
            sbom=sbom,
            update_baseline=update_baseline,
            on=on,
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
    jobs = [row for spec, own in zip(specs, planned, strict=True) for row in _rows(spec, own)]
    if json:
        data = [to_data(absolute(spec)) for spec in specs]
        console.print_json(Result().as_json() | {"jobs": jobs, "pipelines": data})
    elif verbose:
        sys.stdout.write("---\n".join(to_yaml(absolute(spec)) for spec in specs))
    else:
        console.print_table("", list(jobs[0]), [[str(value) for value in job.values()] for job in jobs], ("steps",))


def _rows(spec: PipelineSpec, jobs: Sequence[Job]) -> list[dict[str, str | int]]:
    from infconv.shelf import open_shelf

    shelf = open_shelf(spec)
    try:
        return [_row(spec, job, shelf) for job in jobs]
    finally:
        if shelf is not None:
            shelf.close()


def _row(spec: PipelineSpec, job: Job, shelf: Shelf | None) -> dict[str, str | int]:
    from infconv.gates import gates_of
    from infconv.steps import flatten

    gates = gates_of(spec, job.entry).model_dump(exclude_none=True)
    return {
        "source": spec.source.label(),
        "target": job.exporter.target,
        "precision": job.entry.precision,
        "output": job.place,
        "steps": len(list(flatten(job.steps))),
        "verify": spec.verify.when,
        "gates": ", ".join(gates) or "-",
        "cached": shelf.state(job) if shelf is not None else "off",
    }
