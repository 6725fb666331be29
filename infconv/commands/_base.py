"""What all commands share: common options, and how an error becomes a message and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from infconv.errors import InfconvError, Interrupted

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print each step as it ends.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the pipeline that would run, and stop.")]
Target = Annotated[
    list[str] | None,
    typer.Option("-t", "--target", help="onnx, onnxruntime (ort), openvino (ov) or tensorrt (trt). Repeatable."),
]
Timeout = Annotated[str | None, typer.Option(help="Time allowed for the whole run, e.g. 30m.")]
MemoryLimit = Annotated[str | None, typer.Option(help="Memory allowed, e.g. 8GiB.")]
UseCache = Annotated[
    bool | None,
    typer.Option("--cache/--no-cache", help="Take results from the cache and leave them there; run does, convert not."),
]
CacheDir = Annotated[str | None, typer.Option("--cache-dir", help="The cache's folder, or a URL such as s3://…")]
Jobs = Annotated[
    int | None, typer.Option("-j", "--jobs", min=0, help="Artifacts made at the same time; 0: one for each core.")
]


def guarded(command: Callable[[], int], json: bool) -> int:
    """Return `command()`'s exit code, or that of what it raised, which is printed: one document with `json`."""
    try:
        with contextlib.redirect_stderr(sys.__stderr__):
            return command()
    except InfconvError as error:
        failure = error
    except KeyboardInterrupt:
        failure = Interrupted("Interrupted.", "Nothing was written.")
    except Exception as error:  # a bug, of whatever kind: it is told as one, and its traceback kept
        from infconv.crash import report_bug

        failure = report_bug(error)
    from infconv import console
    from infconv.result import Result

    with contextlib.redirect_stderr(sys.__stderr__):
        if json:
            console.print_json(Result(error=failure).as_json())
        else:
            console.print_error(failure)
    return failure.exit_code


def show(command: Callable[[], None], json: bool) -> None:
    """Run a command that only prints."""

    def with_code() -> int:
        command()
        return 0

    raise typer.Exit(guarded(with_code, json))
