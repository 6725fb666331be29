"""`infconv inspect`, `passes`, `targets`, `frontends`, `doctor`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from infconv.commands._base import Json, show


def inspect(
    model: Annotated[str, typer.Argument(help="An ONNX file.")],
    target: Annotated[
        str | None, typer.Option("-t", "--target", help="Check what this target does not accept.")
    ] = None,
    dim: Annotated[list[str] | None, typer.Option("--dim", help="Size of a dynamic dimension: batch=8.")] = None,
    json: Json = False,
) -> None:
    """Show inputs, outputs, operators, parameters, FLOPs and memory of MODEL."""

    def command() -> None:
        from infconv.commands import _show
        from infconv.nearby import fetched

        with fetched(model) as local:
            _show.show_model(local.paths[0], model, target, dim or [], json)

    show(command, json)


def passes(
    name: Annotated[str | None, typer.Argument(help="Show this pass in full.")] = None,
    why: Annotated[
        str | None, typer.Option("--why", help="Tell why the pass does not apply to this ONNX file.")
    ] = None,
    json: Json = False,
) -> None:
    """List the passes, or show one."""
    from infconv.commands import _show

    show(lambda: _show.show_passes(name, why, json), json)


def targets(json: Json = False) -> None:
    """List the targets, their precisions and shipped pipelines."""
    from infconv.commands import _show

    show(lambda: _show.show_targets(json), json)


def frontends(json: Json = False) -> None:
    """List the frontends and the formats that they read."""
    from infconv.commands import _show

    show(lambda: _show.show_frontends(json), json)


def doctor(json: Json = False) -> None:
    """Show what works on this machine, what is missing, and the command that installs it."""
    from infconv.commands import _show

    show(lambda: _show.show_doctor(json), json)
