"""The Python interface: the same names as the command line's options."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from infconv import texts
from infconv.errors import UsageError, did_you_mean
from infconv.options import ConvertOptions, Dims, PathLike, Sizes
from infconv.spec import PipelineSpec, StepItem, parse_options

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from infconv.bisect import Bisection
    from infconv.compare import Tolerance
    from infconv.comparison import Comparison
    from infconv.observe import Observer
    from infconv.result import Result


def make_spec(
    source: PathLike,
    *,
    target: str | Sequence[str] = "onnx",
    output: PathLike | None = None,
    fp16: bool = False,
    bf16: bool = False,
    int8: bool = False,
    int4: bool = False,
    input: Mapping[str, Dims] | Sequence[str] = (),
    dim: Mapping[str, Sizes] | Sequence[str] = (),
    sample: PathLike | None = None,
    calibration: PathLike | Mapping[str, Any] | None = None,
    steps: Sequence[StepItem] | None = None,
    passes: str | Sequence[StepItem] = (),
    skip: str | Sequence[str] = (),
    opset: int | None = None,
    verify: Literal["off", "end", "each"] = "end",
    atol: float | None = None,
    rtol: float | None = None,
    min_sqnr: float | None = None,
    edge_cases: Sequence[str] = (),
    metric: str | None = None,
    max_drop: float | None = None,
    lower_is_better: bool = False,
    step_timeout: float | str | None = None,
    io_types: Literal["keep", "follow"] = "keep",
    precision_plan: PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    frontend: str | None = None,
    layout: Literal["keep", "nchw", "nhwc"] = "keep",
    weights: PathLike | None = None,
    source_options: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    python: PathLike | None = None,
    env: str | None = None,
    seed: int = 0,
    timeout: float | str | None = None,
    memory_limit: int | str | None = None,
    cache: bool | str | None = None,
    jobs: int | None = None,
    report: PathLike | Sequence[PathLike] = (),
) -> PipelineSpec:
    """Return the pipeline that these options mean. Raises UsageError when they contradict each other."""
    targets = [target] if isinstance(target, str) else list(target)
    precision = _precision(fp16=fp16, bf16=bf16, int8=int8, int4=int4)
    if precision_plan is not None and precision == "fp32":
        precision = _planned(precision_plan)
    entries = [
        {
            "target": name,
            "precision": precision,
            "output": _output(output, len(targets)),
            "io_types": io_types,
            "precision_plan": _path(precision_plan),
            "options": dict(options or {}),
        }
        for name in targets
    ]
    data = {
        "source": {
            "path": os.fspath(source),
            "frontend": frontend,
            "inputs": texts.inputs(input),
            "dims": texts.dims(dim),
            "layout": layout,
            "weights": _path(weights),
            "trust_pickle": trust_pickle,
            "options": dict(source_options or {}),
            "python": _path(python),
            "env": env,
        },
        "sample": _path(sample),
        "calibration": _calibration(calibration, precision),
        "opset": opset,
        "steps": None if steps is None else list(steps),
        "add": [passes] if isinstance(passes, str) else list(passes),
        "skip": [skip] if isinstance(skip, str) else list(skip),
        "targets": entries,
        "verify": {
            "when": verify,
            "atol": atol,
            "rtol": rtol,
            "min_sqnr": min_sqnr,
            "edge_cases": list(edge_cases),
            "metric": metric,
            "max_drop": max_drop,
            "lower_is_better": lower_is_better,
            "step_timeout": step_timeout,
        },
        "seed": seed,
        "timeout": timeout,
        "memory_limit": memory_limit,
        "cache": cache,
        "jobs": jobs,
        "reports": [os.fspath(path) for path in ([report] if isinstance(report, str | os.PathLike) else report)],
    }
    return parse_options(data)


def _path(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _calibration(given: PathLike | Mapping[str, Any] | None, precision: str) -> Mapping[str, Any] | None:
    """Return the entry that a path, or the entry's keys, stand for."""
    if given is not None and precision not in {"int8", "int4"}:
        raise UsageError("--calibration is for --int8 and --int4.", "Ask for one of them, or leave it out.")
    return given if given is None or isinstance(given, Mapping) else {"path": os.fspath(given)}


def _precision(**asked: bool) -> str:
    chosen = [name for name, on in asked.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} exclude each other.", "Ask for one precision at a time.")
    return chosen[0] if chosen else "fp32"


def _planned(path: PathLike) -> str:
    """Return the precision that a plan was made for."""
    from infconv.quantize._plan_file import PrecisionPlan

    return PrecisionPlan.load(path).precision


def _output(output: PathLike | None, count: int) -> str | None:
    """Return the output for each target; with several targets it must be a folder."""
    if output is None:
        return None
    text = os.fspath(output)
    if count > 1 and texts.names_file(text):
        raise UsageError(f"--output '{text}' is a file, but there are {count} targets.", "Name a folder.")
    return text


def convert(source: PathLike, *, observers: Sequence[Observer] = (), **options: Unpack[ConvertOptions]) -> Result:
    """Convert `source` to verified artifacts; the options are the command line's, by the same names.

    Raises an InfconvError: the first failure, when several targets were asked for (what was made stays). Raises
    TypeError for an unknown option.
    """
    from infconv.runs import execute_and_report

    known = inspect.signature(make_spec).parameters
    for name in options:
        if name not in known:
            raise TypeError(f"infconv.convert() has no option '{name}'. {did_you_mean(name, known)}")
    result = execute_and_report([make_spec(source, **options)], os.fspath(source), observers)
    if result.error:
        raise result.error
    return result


def _full_signature() -> inspect.Signature:
    """Return the signature of `convert` with every option and its default, for help() and editors."""
    parameters = list(inspect.signature(make_spec).parameters.values())
    observers = inspect.signature(convert).parameters["observers"]
    return inspect.Signature([*parameters, observers], return_annotation="Result")


convert.__signature__ = _full_signature()  # pyright: ignore[reportFunctionMemberAccess]


def run(
    pipeline: PathLike,
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    only: str | Sequence[str] = (),
    report: PathLike | Sequence[PathLike] = (),
    update_baseline: bool = False,
    observers: Sequence[Observer] = (),
) -> Result:
    """Run a pipeline file; the options are the command line's. Raises an InfconvError as `convert` does.

    `set` is {"targets.0.precision": "fp16"} or ["targets.0.precision=fp16"].
    """
    from infconv.run_file import load_run
    from infconv.runs import cached_by_default, execute_and_report, select

    reports = [texts.report(os.fspath(p)) for p in ([report] if isinstance(report, str | os.PathLike) else report)]
    overrides = [f"{key}={json.dumps(value)}" for key, value in set.items()] if isinstance(set, Mapping) else set
    selected = select(load_run(os.fspath(pipeline), overrides), [only] if isinstance(only, str) else only)
    specs = cached_by_default(selected)
    result = execute_and_report(specs, os.fspath(pipeline), observers, reports=reports, update_baseline=update_baseline)
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


def compare(
    a: PathLike,
    b: PathLike,
    *,
    inputs: PathLike | None = None,
    as_: str | None = None,
    layers: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    min_sqnr: float | None = None,
    input: Mapping[str, Dims] | Sequence[str] = (),
    dim: Mapping[str, Sizes] | Sequence[str] = (),
    weights: PathLike | None = None,
    trust_pickle: bool = False,
    python: PathLike | None = None,
    seed: int = 0,
) -> Comparison:
    """Run `a` and `b` on the same inputs and compare; `a` is the reference.

    Each is a source of any framework, an ONNX file or an OpenVINO IR; `a` may be a .npz of recorded outputs. `as_` is
    `topk:K` or `detections[:SCORE]`; `layers` looks inside. `input`, `dim`, `weights`, `trust_pickle` and `python` are
    those of `convert`, for a source. The tolerance is that of float32 unless it is given. Raises SourceError when one
    of them cannot be read.
    """
    from infconv.agreement import parse_view
    from infconv.comparison import compare_models

    entries = [
        make_spec(
            path, input=input, dim=dim, weights=weights, trust_pickle=trust_pickle, python=python, seed=seed
        ).source
        for path in (a, b)
    ]
    return compare_models(
        *entries,
        inputs=_path(inputs),
        tolerance=_tolerance(rtol, atol, min_sqnr),
        view=None if as_ is None else parse_view(as_),
        layers=layers,
        seed=seed,
    )


def _tolerance(rtol: float | None, atol: float | None, min_sqnr: float | None) -> Tolerance:
    """Return the tolerance of float32 with what the user gave."""
    from infconv.compare import TOLERANCES

    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and value < 0:
            raise UsageError(f"--{name} is {value:g}; it must be at least 0.")
    return TOLERANCES["fp32"].override(rtol, atol, min_sqnr)


def bisect(
    source: PathLike,
    other: PathLike | None = None,
    *,
    repro: PathLike = "repro",
    inputs: PathLike | None = None,
    observers: Sequence[Observer] = (),
    **options: Unpack[ConvertOptions],
) -> Bisection:
    """Find which step, then which rewrite or node, makes a conversion of `source` differ; write a reproducer.

    The options are those of `convert`. With `other` the two are compared instead: ONNX files or sources, `source`
    being the reference; `inputs`, `rtol`, `atol`, `min_sqnr` and `seed` apply. The folder `repro` is written when
    something is found; an empty Bisection says that nothing differs. Raises the InfconvErrors of `convert`.
    """
    return bisect_spec(make_spec(source, **options), other, repro=repro, inputs=inputs, observers=observers)


def bisect_spec(
    spec: PipelineSpec,
    other: PathLike | None = None,
    *,
    repro: PathLike = "repro",
    inputs: PathLike | None = None,
    observers: Sequence[Observer] = (),
) -> Bisection:
    """Do as `bisect`, for a pipeline."""
    from infconv.bisect import bisect as bisect_conversion
    from infconv.bisect_models import bisect_models

    if other is None:
        return bisect_conversion(spec, Path(repro), observers)
    entries = [spec.source, spec.source.model_copy(update={"path": os.fspath(other)})]
    tolerance = _tolerance(spec.verify.rtol, spec.verify.atol, spec.verify.min_sqnr)
    return bisect_models(*entries, inputs=_path(inputs), tolerance=tolerance, seed=spec.seed, folder=Path(repro))
