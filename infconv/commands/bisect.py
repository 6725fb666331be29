"""`infconv bisect`: from a conversion that fails, or two models that differ, to the smallest thing to blame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands import _options as o
from infconv.commands._base import Json, MemoryLimit, Target, guarded

if TYPE_CHECKING:
    from infconv.bisect import Bisection
    from infconv.spec import PipelineSpec


def bisect(
    source: Annotated[str, typer.Argument(help="A model, as for convert; with B the reference, as for compare.")],
    b: Annotated[str | None, typer.Argument(help="A second model, to be compared with the first.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The folder of the reproducer.")] = "repro",
    target: Target = None,
    fp16: o.Fp16 = False,
    bf16: o.Bf16 = False,
    int8: o.Int8 = False,
    int4: o.Int4 = False,
    input: o.Input = None,
    dim: o.Dim = None,
    sample: Annotated[str | None, typer.Option(help="Real inputs: a .npz, or a folder of them.")] = None,
    inputs: Annotated[str | None, typer.Option(help="With B: .npz of inputs.")] = None,
    edge_cases: o.EdgeCases = None,
    calibration: o.Calibration = None,
    pipeline: o.Pipeline = None,
    add: o.AddStep = None,
    skip: o.Skip = None,
    opset: o.Opset = None,
    atol: o.Atol = None,
    rtol: o.Rtol = None,
    min_sqnr: o.MinSqnr = None,
    option: o.ExporterOptions = None,
    frontend: o.Frontend = None,
    weights: o.Weights = None,
    trust_pickle: o.TrustPickle = False,
    python: o.Interpreter = None,
    seed: o.Seed = 0,
    step_timeout: o.StepTimeout = None,
    memory_limit: MemoryLimit = None,
    json: Json = False,
) -> None:
    """Find the step, then the rewrite or node, that makes a conversion of SOURCE, or the model B, differ.

    Writes a folder with the smallest model that still shows it. Exit code 0: nothing differs. 5: found.
    """
    from infconv.commands import _parse

    def build() -> PipelineSpec:
        from infconv.api import make_spec

        return _parse.on_base(
            pipeline,
            lambda steps: make_spec(
                source,
                target=target or ["onnx"],
                fp16=fp16,
                bf16=bf16,
                int8=int8,
                int4=int4,
                input=input or [],
                dim=dim or [],
                sample=sample,
                calibration=calibration,
                steps=steps,
                passes=_parse.steps(add or []),
                skip=skip or [],
                opset=opset,
                atol=atol,
                rtol=rtol,
                min_sqnr=min_sqnr,
                edge_cases=_parse.names(edge_cases),
                step_timeout=step_timeout,
                options=_parse.exporter_options(option or []),
                frontend=frontend,
                weights=weights,
                trust_pickle=trust_pickle,
                python=python,
                seed=seed,
                memory_limit=memory_limit,
            ),
            targets_given=bool(target or fp16 or bf16 or int8 or int4),
        )

    def command() -> int:
        from infconv.api import bisect_spec

        found = bisect_spec(build(), b, repro=output, inputs=inputs)
        return _report(found, json)

    raise typer.Exit(guarded(command, json))


def _report(found: Bisection, json: bool) -> int:
    from infconv.commands import _show

    _show.show_bisection(found, json)
    return 5 if found.culprit else 0
