"""`infconv convert`: the main job, from flags."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infconv.commands import _options as o
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
    fp16: o.Fp16 = False,
    bf16: o.Bf16 = False,
    int8: o.Int8 = False,
    int4: o.Int4 = False,
    input: o.Input = None,
    dim: o.Dim = None,
    sample: o.Sample = None,
    calibration: o.Calibration = None,
    calibration_samples: Annotated[int, typer.Option(help="How many of them; 0: all.")] = 0,
    add: o.AddStep = None,
    skip: o.Skip = None,
    pipeline: o.Pipeline = None,
    opset: o.Opset = None,
    verify: o.Verify = "end",
    atol: o.Atol = None,
    rtol: o.Rtol = None,
    min_sqnr: o.MinSqnr = None,
    edge_cases: o.EdgeCases = None,
    metric: o.Metric = None,
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
    option: o.ExporterOptions = None,
    frontend: o.Frontend = None,
    layout: Annotated[
        Literal["keep", "nchw", "nhwc"],
        typer.Option(help="Where images at inputs and outputs have their channels; --input is as the source has it."),
    ] = "keep",
    weights: o.Weights = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option("--source-option", help="A frontend's option, e.g. handlers=my_operators. Repeatable."),
    ] = None,
    trust_pickle: o.TrustPickle = False,
    python: o.Interpreter = None,
    env: Annotated[str | None, typer.Option(help="The environment that runs the framework (infconv env list).")] = None,
    seed: o.Seed = 0,
    timeout: Timeout = None,
    step_timeout: o.StepTimeout = None,
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
    from infconv.planning import plan
    from infconv.spec import absolute, to_data, to_yaml

    plan(spec)
    if json:
        from infconv import console
        from infconv.result import Result

        console.print_json(Result().as_json() | {"pipeline": to_data(absolute(spec))})
    else:
        sys.stdout.write(to_yaml(absolute(spec)))
