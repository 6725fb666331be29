"""`infconv env list`, `create` and `remove`: isolated environments of frontends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import Json, Quiet, show

if TYPE_CHECKING:
    from infconv.environments import Environment

app = typer.Typer(name="env", help="Isolated environments of frontends.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="The environment's name.")]


@app.command(name="list")
def list_(json: Json = False) -> None:
    """List the environments, their Python, frameworks and sizes."""

    def command() -> None:
        from infconv import console
        from infconv.environments import every

        rows = every()
        if json:
            console.print_json({"environments": [row.as_json() for row in rows]})
            return
        _print(rows)

    show(command, json)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="tensorflow, paddle or torch; or a name of yours with --requirements.")],
    python: Annotated[str | None, typer.Option(help="The Python to make it from; by default one that fits.")] = None,
    requirements: Annotated[
        str | None, typer.Option(help="A pip requirements file, for an environment of your own.")
    ] = None,
    recreate: Annotated[bool, typer.Option("--recreate", help="Make it anew even if it is there.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the environment NAME from the versions that infconv was tested with."""

    def command() -> None:
        from infconv import console
        from infconv.environments._create import create as make

        progress = console.Progress(verbose=False)
        watch = (lambda _: None) if quiet or json else progress.stage
        try:
            made, new = make(
                name, _requires(), python=python, requirements=requirements, recreate=recreate, watch=watch
            )
        finally:
            progress.close()
        if json:
            console.print_json({"environment": made.as_json(), "created": new})
        elif not quiet:
            _print([made])

    show(command, json)


@app.command()
def remove(name: Name, json: Json = False) -> None:
    """Delete the environment NAME."""

    def command() -> None:
        from infconv import console
        from infconv.environments._create import remove as delete

        delete(name)
        if json:
            console.print_json({"removed": name})

    show(command, json)


def _requires() -> dict[str, list[str]]:
    """Return frontend -> the packages that it imports."""
    from infconv import registry

    return {name: list(kind.requires) for name, kind in registry.classes("frontend") if kind.requires}


def _print(rows: list[Environment]) -> None:
    from infconv import console
    from infconv.environments import shipped

    table = [
        [
            row.name,
            row.python or "-",
            ", ".join(row.frontends) or "-",
            ", ".join(f"{name} {version}" for name, version in row.versions.items()) or "-",
            console.size(row.size_mb * 1e6),
            _state(row),
        ]
        for row in rows
    ]
    if table:
        console.print_table("", ["name", "python", "frontends", "versions", "size", ""], table, right=("size",))
    else:
        console.print_mapping({"none": f"infconv env create NAME makes one: {', '.join(shipped())}"})


def _state(row: Environment) -> str:
    if not row.ok:
        return f"{row.problem}: infconv env create {row.name}"
    return f"outdated: infconv env create {row.name}" if row.outdated else "ok"
