"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from infconv import garbage
from infconv.commands import bench, bisect, cache, compare, convert, diff, env, listing, manifest, run, start
from infconv.commands._base import guarded
from infconv.errors import InfconvError, UsageError, did_you_mean

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
    run.run,
    compare.compare,
    bisect.bisect,
    diff.diff,
    start.init,
    start.schema,
    bench.bench,
    manifest.verify_manifest,
    listing.inspect,
    listing.passes,
    listing.targets,
    listing.frontends,
    listing.doctor,
):
    app.command()(command)
app.add_typer(env.app)
app.add_typer(cache.app)


def main() -> None:
    """Run the command line. Wrong usage is told as every other failure is, with --json as a document."""
    words = io.StringIO()
    garbage.none_at_exit()
    try:
        with contextlib.redirect_stderr(words), garbage.rare_collections():
            app()
    except SystemExit as end:
        text = words.getvalue()
        if end.code == 2 and "Error:" in text:
            guarded(_raiser(_usage_error(text)), json="--json" in sys.argv)
        else:
            sys.stderr.write(text)
        raise


def _usage_error(text: str) -> UsageError:
    """Return what Typer says about wrong usage as the error that infconv tells of it."""
    before, _, after = text.partition("Error:")
    message = " ".join(after.split()).replace("Value error, ", "")
    message = re.sub(r"Input should be a valid (integer|number)\b.*", "a number is needed.", message)
    command = re.search(r"Usage: .*?((?: [a-z]+)?)(?: [\[{A-Z]|$)", before, re.MULTILINE)
    hint = f"See infconv{command[1] if command else ''} --help."
    choice = re.search(r"'([^']*)' is not one of (.+)", message)
    if choice:
        known = re.findall(r"'([^']*)'", choice[2])
        hint = f"{did_you_mean(choice[1], known)} {hint}"
    return UsageError(message, hint)


def _raiser(error: InfconvError) -> Callable[[], int]:
    def raise_it() -> int:
        raise error

    return raise_it


if __name__ == "__main__":
    main()
