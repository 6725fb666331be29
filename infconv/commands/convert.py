"""`infconv convert` and `infconv run`: the main job, from flags or from a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infconv.commands._base import DryRun, Json, MemoryLimit, Quiet, Target, Timeout, Verbose, guarded

if TYPE_CHECKING:
    from infconv.result import Result
    from infconv.spec import PipelineSpec


def convert(
    source: Annotated[str, typer.Argument(help="A model: a file, a folder, or module:factory.")],
    target: Target = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="File, or folder.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16 where it is safe.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where it is safe.")] = False,
    input: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME:DIMS[:DTYPE], e.g. ids:batch,128:int64. Names are dynamic. Repeatable."),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", help="Sizes of a dynamic dimension: batch=1..32, batch=1,8,32. Repeatable."),
    ] = None,
    sample: Annotated[str | None, typer.Option(help=".npz of real inputs for verification.")] = None,
    add: Annotated[
        list[str] | None, typer.Option("-p", "--pass", help="Add a step, as a YAML item. Repeatable.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave a step out. Repeatable.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Start from a pipeline file, or a shipped one.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset of the result.")] = None,
    verify: Annotated[
        Literal["off", "end", "each"], typer.Option(help="When results are compared with the source's.")
    ] = "end",
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance.")] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Least signal-to-noise ratio, in dB.")] = None,
    io_types: Annotated[
        Literal["keep", "follow"], typer.Option(help="Float inputs and outputs: float32, or as the precision.")
    ] = "keep",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An exporter's option, e.g. compute_capability=sm89. Repeatable."),
    ] = None,
    frontend: Annotated[str | None, typer.Option(help="Overrides the recognised frontend.")] = None,
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors for module:factory.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Allow a source that runs code when loaded.")
    ] = False,
    python: Annotated[str | None, typer.Option(help="The interpreter that has the source's framework.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    timeout: Timeout = None,
    step_timeout: Annotated[str | None, typer.Option(help="Time allowed for a step with --verify each.")] = None,
    memory_limit: MemoryLimit = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert SOURCE to verified artifacts. Without -t, optimise to ONNX."""
    from infconv.commands import _parse

    def build() -> PipelineSpec:
        from infconv.api import make_spec

        return _parse.on_base(
            pipeline,
            lambda steps: make_spec(
                source,
                target=target or ["onnx"],
                output=output,
                fp16=fp16,
                bf16=bf16,
                input=_parse.inputs(input or []),
                dim=_parse.dims(dim or []),
                sample=sample,
                steps=steps,
                passes=_parse.steps(add or []),
                skip=skip or [],
                opset=opset,
                verify=verify,
                atol=atol,
                rtol=rtol,
                min_sqnr=min_sqnr,
                step_timeout=_parse.duration(step_timeout, "--step-timeout"),
                io_types=io_types,
                options=_parse.exporter_options(option or []),
                frontend=frontend,
                weights=weights,
                trust_pickle=trust_pickle,
                python=python,
                seed=seed,
            ),
            targets_given=bool(target or output or fp16 or bf16),
        )

    _run_pipeline(build, dry_run, json, verbose, quiet, timeout, memory_limit)


def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline file.")],
    timeout: Timeout = None,
    memory_limit: MemoryLimit = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a pipeline file."""

    def build() -> PipelineSpec:
        from infconv.spec import load_spec

        return load_spec(pipeline)

    _run_pipeline(build, dry_run, json, verbose, quiet, timeout, memory_limit)


def _run_pipeline(
    build: Callable[[], PipelineSpec],
    dry_run: bool,
    json: bool,
    verbose: bool,
    quiet: bool,
    timeout: str | None,
    memory_limit: str | None,
) -> None:
    """Build the pipeline and run it, in a supervised child; print the outcome and exit with its code."""

    def command() -> int:
        from infconv.pipeline import execute, plan

        spec = build()
        if dry_run:
            from infconv.spec import absolute, to_yaml

            plan(spec)
            sys.stdout.write(to_yaml(absolute(spec)))
            return 0
        from infconv.console import Progress

        progress = Progress(verbose)
        try:
            result = execute(spec, [] if quiet or json else [progress])
        finally:
            progress.close()
        return _report(result, json, quiet)

    def supervised() -> int:
        from infconv.commands._parse import duration, memory
        from infconv.supervise import supervised as in_child

        seconds, size = duration(timeout), memory(memory_limit)
        return in_child(lambda: guarded(command, json), timeout=seconds, memory_limit=size)

    raise typer.Exit(guarded(supervised, json))


def _report(result: Result, json: bool, quiet: bool) -> int:
    from infconv import console

    if json:
        console.print_json(result.as_json())
    elif not quiet:
        console.print_result(result)
    if result.error and not json:
        console.print_error(result.error)
    return result.exit_code
