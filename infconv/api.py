"""The Python interface: the same names as the command line's options."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infconv.errors import UsageError, did_you_mean
from infconv.spec import PipelineSpec, StepItem, load_spec, parse_spec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from infconv.observe import Observer
    from infconv.result import Result, SampleCheck

PathLike = str | os.PathLike[str]


def make_spec(
    source: PathLike,
    *,
    target: str | Sequence[str] = "onnx",
    output: PathLike | None = None,
    fp16: bool = False,
    bf16: bool = False,
    int8: bool = False,
    int4: bool = False,
    input: Mapping[str, Sequence[int | str]] | None = None,
    dim: Mapping[str, Any] | None = None,
    sample: PathLike | None = None,
    steps: Sequence[StepItem] | None = None,
    passes: Sequence[StepItem] = (),
    skip: Sequence[str] = (),
    opset: int | None = None,
    verify: Literal["off", "end", "each"] = "end",
    atol: float | None = None,
    rtol: float | None = None,
    min_sqnr: float | None = None,
    step_timeout: float | None = None,
    io_types: Literal["keep", "follow"] = "keep",
    options: Mapping[str, Any] | None = None,
    frontend: str | None = None,
    weights: PathLike | None = None,
    trust_pickle: bool = False,
    python: str | None = None,
    seed: int = 0,
) -> PipelineSpec:
    """Return the pipeline that these options mean. Raises UsageError when they contradict each other."""
    targets = [target] if isinstance(target, str) else list(target)
    precision = _precision(fp16=fp16, bf16=bf16, int8=int8, int4=int4)
    entries = [
        {
            "target": name,
            "precision": precision,
            "output": _output(output, len(targets)),
            "io_types": io_types,
            "options": dict(options or {}),
        }
        for name in targets
    ]
    data = {
        "source": {
            "path": os.fspath(source),
            "frontend": frontend,
            "inputs": {k: v if isinstance(v, Mapping) else list(v) for k, v in (input or {}).items()},
            "dims": {k: _dim(v) for k, v in (dim or {}).items()},
            "weights": None if weights is None else os.fspath(weights),
            "trust_pickle": trust_pickle,
            "python": python,
        },
        "sample": None if sample is None else os.fspath(sample),
        "opset": opset,
        "steps": None if steps is None else list(steps),
        "add": list(passes),
        "skip": list(skip),
        "targets": entries,
        "verify": {"when": verify, "atol": atol, "rtol": rtol, "min_sqnr": min_sqnr, "step_timeout": step_timeout},
        "seed": seed,
    }
    return parse_spec(data, "options")


def _precision(**asked: bool) -> str:
    chosen = [name for name, on in asked.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} exclude each other.", "Ask for one precision at a time.")
    return chosen[0] if chosen else "fp32"


def _output(output: PathLike | None, count: int) -> str | None:
    """Return the output for each target; with several targets it must be a folder."""
    if output is None:
        return None
    text = os.fspath(output)
    if count > 1 and Path(text).suffix and not Path(text).is_dir():
        raise UsageError(f"--output '{text}' is a file, but there are {count} targets.", "Name a folder.")
    return text


def _dim(value: Any) -> Any:
    """Return a dim entry: `8` is fixed, `(1, 8, 32)` is min, opt, max, a mapping is taken as it is."""
    if isinstance(value, int):
        return {"min": value, "opt": value, "max": value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        names = {2: ("min", "max"), 3: ("min", "opt", "max")}.get(len(value))
        if names is None:
            raise UsageError(f"A dim is a size, (min, max) or (min, opt, max), not {value}.")
        return dict(zip(names, value, strict=True))  # pyright: ignore[reportUnknownArgumentType]
    return value


def convert(source: PathLike, *, observers: Sequence[Observer] = (), **options: Any) -> Result:
    """Convert `source` to verified artifacts; `options` are those of `make_spec`.

    Raises an InfconvError: the first failure, when several targets were asked for (what was made stays).
    """
    from infconv.pipeline import execute

    result = execute(make_spec(source, **options), observers)
    if result.error:
        raise result.error
    return result


def run(pipeline: PathLike, *, observers: Sequence[Observer] = ()) -> Result:
    """Run a pipeline file. Raises an InfconvError as `convert` does."""
    from infconv.pipeline import execute

    result = execute(load_spec(os.fspath(pipeline)), observers)
    if result.error:
        raise result.error
    return result


def optimize(
    model: PathLike | onnx.ModelProto | ir.Model,
    *,
    target: str = "onnx",
    level: Literal["basic", "extended", "all"] = "all",
) -> ir.Model:
    """Return an optimised copy of `model`; nothing is written and nothing verified.

    `level`: `basic` keeps the operators, `extended` is the target's default, `all` adds what is not always faster.
    """
    from infconv.model import to_ir
    from infconv.observe import Observers
    from infconv.passes import Context
    from infconv.runner import run_steps
    from infconv.spec import ALIASES
    from infconv.steps import resolve

    target = ALIASES.get(target, target)
    graph, _ = run_steps(resolve(level_steps(target, level)), to_ir(model), Context(target=target), Observers())
    return graph


def level_steps(target: str, level: str) -> Sequence[StepItem]:
    """Return the shipped pipelines that make up a level: `basic` is the same for all targets."""
    levels = {"basic": ["basic"], "extended": [target], "all": [target, "all"]}
    if level not in levels:
        raise UsageError(f"Unknown level '{level}'.", did_you_mean(level, levels))
    return levels[level]


def load(path: PathLike) -> ir.Model:
    """Load an ONNX file with its weights mapped, not read. Raises SourceError."""
    from infconv.model import load as load_model

    return load_model(path)


def save(model: ir.Model, path: PathLike, *, external: bool | None = None) -> list[Path]:
    """Write `model` atomically to `path` (weights over 1.5 GB to `<path>.data`); return the files."""
    from infconv.model import save as save_model
    from infconv.publish import publish, staging

    with staging(Path(path)) as stage:
        return publish(save_model(model, stage / Path(path).name, external=external), Path(path).parent)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the outputs of model `b` differ from those of `a`, on each set of inputs."""

    a: str
    b: str
    passed: bool
    samples: Sequence[SampleCheck]


def compare(
    a: PathLike,
    b: PathLike,
    *,
    inputs: PathLike | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    min_sqnr: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Run ONNX files or OpenVINO IRs `a` and `b` on the same inputs and compare; `a` is the reference.

    The tolerance is that of float32 unless it is given. Raises SourceError when one of them cannot be read.
    """
    from infconv.compare import TOLERANCES, compare_outputs
    from infconv.result import SampleCheck
    from infconv.run_artifact import artifact_inputs, run_artifact

    tolerance = TOLERANCES["fp32"].override(rtol, atol, min_sqnr)
    samples = artifact_inputs(os.fspath(a), None if inputs is None else os.fspath(inputs), seed)
    feeds = [s.inputs for s in samples]
    references, actuals = run_artifact(os.fspath(a), feeds), run_artifact(os.fspath(b), feeds)
    checks = [
        SampleCheck(sample.label, compare_outputs(*_one_name_each(a, b, reference, actual), tolerance))
        for sample, reference, actual in zip(samples, references, actuals, strict=True)
    ]
    passed = all(o.ok for check in checks for o in check.outputs)
    return Comparison(os.fspath(a), os.fspath(b), passed, checks)


def _one_name_each(
    a: PathLike, b: PathLike, of_a: Mapping[str, Any], of_b: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the outputs with one name each: an OpenVINO IR knows an output by several, of which the other has one."""
    irs = [os.fspath(path).endswith(".xml") for path in (a, b)]
    if not any(irs):
        return of_a, of_b
    shared = [name for name in of_a if name in of_b]
    lone = [name for outputs, is_ir in ((of_a, irs[0]), (of_b, irs[1])) if not is_ir for name in outputs]
    keep = {*shared, *lone}
    return {n: v for n, v in of_a.items() if n in keep}, {n: v for n, v in of_b.items() if n in keep}
