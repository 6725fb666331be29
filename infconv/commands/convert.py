"""`infconv convert`: the main job, from flags."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infconv.commands._base import (
    CacheDir,
    DryRun,
    Jobs,
    Json,
    MemoryLimit,
    Quiet,
    Target,
    Timeout,
    UseCache,
    Verbose,
)
from infconv.commands._run import Reports, Request, Sbom, UpdateBaseline, run_pipelines

if TYPE_CHECKING:
    from infconv.spec import PipelineSpec


def convert(
    source: Annotated[str, typer.Argument(help="A model: a file, a folder, or module:factory.")],
    target: Target = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="File, or folder.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16 where it is safe.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where it is safe.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Compute in 8-bit integers; static with --calibration.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Store the weights of products in 4 bits.")] = False,
    input: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME:DIMS[:DTYPE], e.g. ids:batch,128:int64. Names are dynamic. Repeatable."),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", help="Sizes of a dynamic dimension: batch=1..32, batch=1,8,32. Repeatable."),
    ] = None,
    sample: Annotated[str | None, typer.Option(help=".npz of real inputs for verification.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Data for --int8: .npz, .jsonl, a folder of arrays or images, module:function.")
    ] = None,
    calibration_samples: Annotated[int, typer.Option(help="How many of them; 0: all.")] = 0,
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
    edge_cases: Annotated[
        str | None,
        typer.Option("--edge-cases", help="More samples: zeros,ones,large,denormal,padding, or all."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="module:function, a measure of quality on your own data.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="By how much the metric may be worse than the source's.")
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="A smaller metric is a better one.")
    ] = False,
    io_types: Annotated[
        Literal["keep", "follow"], typer.Option(help="Float inputs and outputs: float32, or as the precision.")
    ] = "keep",
    precision_plan: Annotated[
        str | None, typer.Option("--precision-plan", help="Apply a precision plan (<artifact>.precision.yaml).")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An exporter's option, e.g. compute_capability=sm89. Repeatable."),
    ] = None,
    frontend: Annotated[str | None, typer.Option(help="Overrides the recognised frontend.")] = None,
    layout: Annotated[
        Literal["keep", "nchw", "nhwc"],
        typer.Option(help="Where images at inputs and outputs have their channels; --input is as the source has it."),
    ] = "keep",
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors for module:factory.")] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option("--source-option", help="A frontend's option, e.g. handlers=my_operators. Repeatable."),
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Allow a source that runs code when loaded.")
    ] = False,
    python: Annotated[str | None, typer.Option(help="The interpreter that has the source's framework.")] = None,
    env: Annotated[str | None, typer.Option(help="The environment that runs the framework (infconv env list).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    timeout: Timeout = None,
    step_timeout: Annotated[str | None, typer.Option(help="Time allowed for a step with --verify each.")] = None,
    memory_limit: MemoryLimit = None,
    cache: UseCache = None,
    cache_dir: CacheDir = None,
    jobs: Jobs = None,
    report: Reports = None,
    sbom: Sbom = None,
    update_baseline: UpdateBaseline = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert SOURCE to verified artifacts. Without -t, optimise to ONNX."""
    from infconv.commands import _parse

    def build() -> list[PipelineSpec]:
        from infconv.api import make_spec

        spec = _parse.on_base(
            pipeline,
            lambda steps: make_spec(
                source,
                target=target or ["onnx"],
                output=output,
                fp16=fp16,
                bf16=bf16,
                int8=int8,
                int4=int4,
                input=input or [],
                dim=dim or [],
                sample=sample,
                calibration={"path": calibration, "samples": calibration_samples} if calibration else None,
                steps=steps,
                passes=_parse.steps(add or []),
                skip=skip or [],
                opset=opset,
                verify=verify,
                atol=atol,
                rtol=rtol,
                min_sqnr=min_sqnr,
                edge_cases=_parse.names(edge_cases),
                metric=metric,
                max_drop=max_drop,
                lower_is_better=lower_is_better,
                step_timeout=step_timeout,
                io_types=io_types,
                precision_plan=precision_plan,
                options=_parse.exporter_options(option or []),
                frontend=frontend,
                layout=layout,
                weights=weights,
                source_options=_parse.exporter_options(source_option or [], "--source-option"),
                trust_pickle=trust_pickle,
                python=python,
                env=env,
                seed=seed,
                timeout=timeout,
                memory_limit=memory_limit,
                cache=_parse.cache(cache, cache_dir),
                jobs=jobs,
                report=report or [],
            ),
            targets_given=bool(target or output or fp16 or bf16 or int8 or int4 or precision_plan),
        )
        return [spec]

    run_pipelines(
        Request(
            source,
            build,
            reports=report or (),
            sbom=sbom,
            update_baseline=update_baseline,
            dry_run=(lambda specs: _print_plan(specs[0], json)) if dry_run else None,
            json=json,
            verbose=verbose,
            quiet=quiet,
        )
    )


def _print_plan(spec: PipelineSpec, json: bool) -> None:
    """Check everything that needs no model, and print the pipeline file that would run."""
    from infconv.pipeline import plan
    from infconv.spec import absolute, to_data, to_yaml

    plan(spec)
    if json:
        from infconv import console
        from infconv.result import Result

        console.print_json(Result().as_json() | {"pipeline": to_data(absolute(spec))})
    else:
        sys.stdout.write(to_yaml(absolute(spec)))
