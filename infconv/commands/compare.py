"""`infconv compare`: two models on the same inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from infconv.commands import _options as o
from infconv.commands._base import Json, guarded


def compare(
    a: Annotated[str, typer.Argument(help="The reference: any source, ONNX, IR, engine, or .npz of outputs.")],
    b: Annotated[str, typer.Argument(help="The model to compare with it.")],
    inputs: Annotated[str | None, typer.Option(help=".npz of inputs, or a folder; otherwise seeded ones.")] = None,
    as_: Annotated[str | None, typer.Option("--as", help="topk:K or detections[:SCORE]: compare decisions.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Align inner values; show where they first differ.")] = False,
    atol: o.Atol = None,
    rtol: o.Rtol = None,
    min_sqnr: o.MinSqnr = None,
    input: o.Input = None,
    dim: o.Dim = None,
    weights: o.Weights = None,
    trust_pickle: o.TrustPickle = False,
    python: o.Interpreter = None,
    seed: o.Seed = 0,
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
