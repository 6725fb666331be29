"""`infconv bisect`: from a conversion that fails, or two models that differ, to the smallest thing to blame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import Json, MemoryLimit, Target, guarded

if TYPE_CHECKING:
    from infconv.bisect import Bisection
    from infconv.spec import PipelineSpec

_List = list[str] | None


def bisect(
    source: Annotated[str, typer.Argument(help="A model, as for convert; with B the reference, as for compare.")],
    b: Annotated[str | None, typer.Argument(help="A second model, to be compared with the first.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The folder of the reproducer.")] = "repro",
    target: Target = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="As for convert.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="As for convert.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="As for convert.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="As for convert.")] = False,
    input: Annotated[_List, typer.Option("--input", help="As for convert. Repeatable.")] = None,
    dim: Annotated[_List, typer.Option("--dim", help="As for convert. Repeatable.")] = None,
    sample: Annotated[str | None, typer.Option(help="Real inputs: a .npz, or a folder of them.")] = None,
    inputs: Annotated[str | None, typer.Option(help="With B: .npz of inputs.")] = None,
    edge_cases: Annotated[str | None, typer.Option(help="As for convert.")] = None,
    calibration: Annotated[str | None, typer.Option(help="As for convert.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="A pipeline file, or a shipped one.")] = None,
    add: Annotated[_List, typer.Option("-p", "--pass", help="Add a step, as a YAML item. Repeatable.")] = None,
    skip: Annotated[_List, typer.Option(help="Leave a step out. Repeatable.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset of the result.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance.")] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Least signal-to-noise ratio, in dB.")] = None,
    option: Annotated[_List, typer.Option("--option", help="An exporter's option. Repeatable.")] = None,
    frontend: Annotated[str | None, typer.Option(help="Overrides the recognised frontend.")] = None,
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors for module:factory.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Allow a source that runs code.")] = False,
    python: Annotated[str | None, typer.Option(help="The interpreter that has the source's framework.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    step_timeout: Annotated[str | None, typer.Option(help="Time allowed for a step; by default 60s.")] = None,
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
