"""`infconv compare`: two models on the same inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from infconv.commands._base import Json, guarded


def compare(
    a: Annotated[str, typer.Argument(help="The reference: any source, an ONNX file, an IR, or .npz of outputs.")],
    b: Annotated[str, typer.Argument(help="The model to compare with it.")],
    inputs: Annotated[str | None, typer.Option(help=".npz of inputs, or a folder; otherwise seeded ones.")] = None,
    as_: Annotated[str | None, typer.Option("--as", help="topk:K or detections[:SCORE]: compare decisions.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Align inner values; show where they first differ.")] = False,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance.")] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Least signal-to-noise ratio, in dB.")] = None,
    input: Annotated[list[str] | None, typer.Option("--input", help="Of a source, as for convert.")] = None,
    dim: Annotated[list[str] | None, typer.Option("--dim", help="Of a source, as for convert.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of a source, as for convert.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Allow a source that runs code.")] = False,
    python: Annotated[str | None, typer.Option(help="The interpreter that has the source's framework.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    json: Json = False,
) -> None:
    """Run A and B on the same inputs and show how their outputs differ. Exit code 5 beyond tolerance."""

    def command() -> int:
        from infconv.api import compare as compare_models
        from infconv.commands import _show

        comparison = compare_models(
            a,
            b,
            inputs=inputs,
            as_=as_,
            layers=layers,
            atol=atol,
            rtol=rtol,
            min_sqnr=min_sqnr,
            input=input or [],
            dim=dim or [],
            weights=weights,
            trust_pickle=trust_pickle,
            python=python,
            seed=seed,
        )
        _show.show_comparison(comparison, json)
        return 0 if comparison.passed else 5

    raise typer.Exit(guarded(command, json))
