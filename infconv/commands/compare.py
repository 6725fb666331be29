"""`infconv compare`: two models on the same inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from infconv.commands._base import Json, guarded


def compare(
    a: Annotated[str, typer.Argument(help="The reference: an ONNX file or OpenVINO IR.")],
    b: Annotated[str, typer.Argument(help="The model to compare with it.")],
    inputs: Annotated[str | None, typer.Option(help=".npz of inputs; otherwise seeded synthetic ones.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance.")] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Least signal-to-noise ratio, in dB.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    json: Json = False,
) -> None:
    """Run A and B on the same inputs and show how their outputs differ. Exit code 5 beyond tolerance."""

    def command() -> int:
        from infconv.api import compare as compare_models
        from infconv.commands import _show

        comparison = compare_models(a, b, inputs=inputs, atol=atol, rtol=rtol, min_sqnr=min_sqnr, seed=seed)
        _show.show_comparison(comparison, json)
        return 0 if comparison.passed else 5

    raise typer.Exit(guarded(command, json))
