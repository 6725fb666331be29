"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from infconv.commands import bench, compare, convert, listing
from infconv.commands._base import guarded
from infconv.errors import InfconvError, UsageError

_EPILOG = """Exit codes: 0 every artifact is complete and verified. 1 a bug in infconv. 2 wrong usage. 3 the source
cannot be read. 4 unsupported operator, type or feature. 5 verification failed. 6 a gate failed. 7 a resource ran out.
8 a dependency is missing. 130 interrupted."""

app = typer.Typer(
    name="infconv",
    help="Convert a trained model to an inference-ready artifact, offline, and prove that it computes the same.",
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main_options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Convert a trained model to an inference-ready artifact, offline, and prove that it computes the same."""
    if version:
        from infconv import __version__

        sys.stdout.write(f"infconv {__version__}\n")
        raise typer.Exit(0)


for command in (
    convert.convert,
    convert.run,
    compare.compare,
    bench.bench,
    listing.inspect,
    listing.passes,
    listing.targets,
    listing.frontends,
    listing.doctor,
):
    app.command()(command)


def main() -> None:
    """Run the command line. With --json, wrong usage is a JSON document as every other failure is."""
    if "--json" not in sys.argv:
        app()
        return
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            app()
    except SystemExit as end:
        text = words.getvalue()
        if end.code == 2 and "Error:" in text:
            error = UsageError(" ".join(text.partition("Error:")[2].split()), "See infconv --help.")
            guarded(_raiser(error), json=True)
        else:
            sys.stderr.write(text)
        raise


def _raiser(error: InfconvError) -> Callable[[], int]:
    def raise_it() -> int:
        raise error

    return raise_it


if __name__ == "__main__":
    main()
