"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infconv.errors import InfconvError, Interrupted, UsageError

if TYPE_CHECKING:
    from infconv.result import Result
    from infconv.spec import PipelineSpec

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


@app.callback(invoke_without_command=True)
def main_options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Convert a trained model to an inference-ready artifact, offline, and prove that it computes the same."""
    if version:
        from infconv import __version__

        sys.stdout.write(f"infconv {__version__}\n")
        raise typer.Exit(0)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A model: a file, a folder, or module:factory.")],
    target: Target = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="File, or folder.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16 where it is safe.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where it is safe.")] = False,
    input: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME:DIMS[:DTYPE], e.g. ids:batch,128:int64. Names are dynamic. Repeatable."),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", help="Sizes of a dynamic dimension: batch=1..32, batch=1,8,32. Repeatable."),
    ] = None,
    sample: Annotated[str | None, typer.Option(help=".npz of real inputs for verification.")] = None,
    add: Annotated[
        list[str] | None, typer.Option("-p", "--pass", help="Add a step, as a YAML item. Repeatable.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave a step out. Repeatable.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Start from a pipeline file, or a shipped one.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset of the result.")] = None,
    verify: Annotated[
        Literal["off", "end", "each"], typer.Option(help="When results are compared with the source's.")
    ] = "end",
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance.")] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Least signal-to-noise ratio, in dB.")] = None,
    io_types: Annotated[
        Literal["keep", "follow"], typer.Option(help="Float inputs and outputs: float32, or as the precision.")
    ] = "keep",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An exporter's option, e.g. compute_capability=sm89. Repeatable."),
    ] = None,
    frontend: Annotated[str | None, typer.Option(help="Overrides the recognised frontend.")] = None,
    weights: Annotated[str | None, typer.Option(help="State dict or safetensors for module:factory.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Allow a source that runs code when loaded.")
    ] = False,
    python: Annotated[str | None, typer.Option(help="The interpreter that has the source's framework.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    timeout: Timeout = None,
    step_timeout: Annotated[str | None, typer.Option(help="Time allowed for a step with --verify each.")] = None,
    memory_limit: MemoryLimit = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert SOURCE to verified artifacts. Without -t, optimise to ONNX."""
    from infconv import _options

    def build() -> PipelineSpec:
        from infconv.api import make_spec

        return _options.on_base(
            pipeline,
            lambda steps: make_spec(
                source,
                target=target or ["onnx"],
                output=output,
                fp16=fp16,
                bf16=bf16,
                input=_options.inputs(input or []),
                dim=_options.dims(dim or []),
                sample=sample,
                steps=steps,
                passes=_options.steps(add or []),
                skip=skip or [],
                opset=opset,
                verify=verify,
                atol=atol,
                rtol=rtol,
                min_sqnr=min_sqnr,
                step_timeout=_options.duration(step_timeout, "--step-timeout"),
                io_types=io_types,
                options=_options.exporter_options(option or []),
                frontend=frontend,
                weights=weights,
                trust_pickle=trust_pickle,
                python=python,
                seed=seed,
            ),
            targets_given=bool(target or output or fp16 or bf16),
        )

    _run_pipeline(build, dry_run, json, verbose, quiet, timeout, memory_limit)


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline file.")],
    timeout: Timeout = None,
    memory_limit: MemoryLimit = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a pipeline file."""

    def build() -> PipelineSpec:
        from infconv.spec import load_spec

        return load_spec(pipeline)

    _run_pipeline(build, dry_run, json, verbose, quiet, timeout, memory_limit)


def _run_pipeline(
    build: Callable[[], PipelineSpec],
    dry_run: bool,
    json: bool,
    verbose: bool,
    quiet: bool,
    timeout: str | None,
    memory_limit: str | None,
) -> None:
    """Build the pipeline and run it, in a supervised child; print the outcome and exit with its code."""

    def command() -> int:
        from infconv.pipeline import execute, plan

        spec = build()
        if dry_run:
            from infconv.spec import absolute, to_yaml

            plan(spec)
            sys.stdout.write(to_yaml(absolute(spec)))
            return 0
        from infconv.console import Progress

        progress = Progress(verbose)
        try:
            result = execute(spec, [] if quiet or json else [progress])
        finally:
            progress.close()
        return _report(result, json, quiet)

    def supervised() -> int:
        from infconv._options import duration, memory
        from infconv.supervise import supervised as in_child

        seconds, size = duration(timeout), memory(memory_limit)
        return in_child(lambda: _guarded(command, json), timeout=seconds, memory_limit=size)

    raise typer.Exit(_guarded(supervised, json))


def _report(result: Result, json: bool, quiet: bool) -> int:
    from infconv import console

    if json:
        console.print_json(result.as_json())
    elif not quiet:
        console.print_result(result)
    if result.error and not json:
        console.print_error(result.error)
    return result.exit_code


def _guarded(command: Callable[[], int], json: bool) -> int:
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


def _show(command: Callable[[], None], json: bool) -> None:
    """Run a command that only prints."""

    def with_code() -> int:
        command()
        return 0

    raise typer.Exit(_guarded(with_code, json))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="An ONNX file.")],
    target: Annotated[
        str | None, typer.Option("-t", "--target", help="Check what this target does not accept.")
    ] = None,
    json: Json = False,
) -> None:
    """Show inputs, outputs, operators, parameters and sizes of MODEL."""
    from infconv import _listing

    _show(lambda: _listing.show_model(model, target, json), json)


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(help="Show this pass in full.")] = None,
    why: Annotated[
        str | None, typer.Option("--why", help="Tell why the pass does not apply to this ONNX file.")
    ] = None,
    json: Json = False,
) -> None:
    """List the passes, or show one."""
    from infconv import _listing

    _show(lambda: _listing.show_passes(name, why, json), json)


@app.command()
def targets(json: Json = False) -> None:
    """List the targets, their precisions and shipped pipelines."""
    from infconv import _listing

    _show(lambda: _listing.show_targets(json), json)


@app.command()
def frontends(json: Json = False) -> None:
    """List the frontends and the formats that they read."""
    from infconv import _listing

    _show(lambda: _listing.show_frontends(json), json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show what works on this machine, what is missing, and the command that installs it."""
    from infconv import _listing

    _show(lambda: _listing.show_doctor(json), json)


@app.command()
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
        from infconv import _listing
        from infconv.api import compare as compare_models

        comparison = compare_models(a, b, inputs=inputs, atol=atol, rtol=rtol, min_sqnr=min_sqnr, seed=seed)
        _listing.show_comparison(comparison, json)
        return 0 if comparison.passed else 5

    raise typer.Exit(_guarded(command, json))


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
            _guarded(_raiser(error), json=True)
        else:
            sys.stderr.write(text)
        raise


def _raiser(error: InfconvError) -> Callable[[], int]:
    def raise_it() -> int:
        raise error

    return raise_it


if __name__ == "__main__":
    main()
