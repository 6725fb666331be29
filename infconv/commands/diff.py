"""`infconv diff`: how the graphs of two models differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infconv.commands._base import Json, show

if TYPE_CHECKING:
    from infconv.difference import Changes, Difference


def diff(
    a: Annotated[str, typer.Argument(help="An ONNX file.")],
    b: Annotated[str, typer.Argument(help="The ONNX file to compare with it.")],
    json: Json = False,
) -> None:
    """Show what was added, removed and changed from the graph of A to that of B. `compare` compares results."""

    def command() -> None:
        from infconv import console
        from infconv.convert import require_onnx
        from infconv.difference import find_difference
        from infconv.model import load
        from infconv.nearby import fetched
        from infconv.plain import plain

        with fetched(a, b) as local:
            for path in local.paths:
                require_onnx(path, "diff")
            found = find_difference(*map(load, local.paths))
        if json:
            console.print_json({"a": a, "b": b, "equal": found.equal, **plain(found)})
        else:
            _print(found)

    show(command, json)


_PARTS = ("inputs", "outputs", "opsets", "operators", "initializers", "functions", "nodes")


def _print(found: Difference) -> None:
    from infconv import console

    if found.equal:
        console.print_mapping({"equal": f"the same graph of {found.same_nodes} nodes"})
        return
    rows: list[list[str]] = []
    for part in _PARTS:
        changes: Changes = getattr(found, part)
        rows += [[part, "-", name, ""] for name in changes.removed]
        rows += [[part, "+", name, ""] for name in changes.added]
        rows += [[part, "~", change.name, "; ".join(change.how)] for change in changes.changed]
    console.print_table("", ["part", "", "what", "how"], rows)
    console.print_mapping({"nodes in both": found.same_nodes})
