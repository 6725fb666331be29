"""`infconv init` and `infconv schema`: what helps to write a pipeline file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infconv.commands._base import Json, show
from infconv.errors import UsageError


def init(
    source: Annotated[str | None, typer.Argument(help="A model: a file, a folder, or module:factory.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The file to write.")] = "pipeline.yaml",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    json: Json = False,
) -> None:
    """Write a pipeline file to start from, with what SOURCE says of its inputs."""

    def command() -> None:
        from infconv import console
        from infconv.starting_pipeline import starting_pipeline

        path = Path(output)
        if path.exists() and not force:
            raise UsageError(f"'{path}' exists already.", "Overwrite it with --force, or name another file with -o.")
        text = starting_pipeline(source, path)
        _write(path, text)
        if json:
            console.print_json({"status": "ok", "pipeline": str(path)})
        else:
            console.print_mapping({"wrote": path, "run it": f"infconv run {path}"})

    show(command, json)


def _write(path: Path, text: str) -> None:
    from infconv.publish import publish, staging

    with staging(path) as stage:
        (stage / path.name).write_text(text, encoding="utf-8")
        publish([stage / path.name], path.parent)


def schema() -> None:
    """Print the JSON schema of the pipeline file."""

    def command() -> None:
        from infconv import console
        from infconv.schema import pipeline_schema

        console.print_json(pipeline_schema())

    show(command, json=False)
