"""The Python interface: the same names as the command line's options."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from infconv import texts
from infconv.errors import UsageError, did_you_mean
from infconv.graphs import load, optimize, save
from infconv.options import DEFAULTS, ConvertOptions, Dims, PathLike, Sizes
from infconv.spec import PipelineSpec, parse_options

if TYPE_CHECKING:
    from infconv.bisect import Bisection
    from infconv.compare import Tolerance
    from infconv.comparison import Comparison
    from infconv.observe import Observer
    from infconv.result import Result

__all__ = ["bisect", "bisect_spec", "compare", "convert", "load", "make_spec", "optimize", "run", "save"]


def make_spec(source: PathLike, **options: Unpack[ConvertOptions]) -> PipelineSpec:
    """Return the pipeline that these options mean. Raises UsageError when they contradict each other.

    Raises TypeError for an unknown option.
    """
    known = ConvertOptions.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"infconv.convert() has no option '{name}'. {did_you_mean(name, known)}")
    precision = _precision(options)
    given = {
        "source": _source(source, options),
        "calibration": _calibration(options.get("calibration"), precision),
        "add": _listed(options.get("passes", ())),
        "skip": _listed(options.get("skip", ())),
        "targets": _targets(options, precision),
        "verify": {"when": options.get("verify", "end"), **_same(options, _VERIFY)},
        "reports": _listed(options.get("report", ())),
    }
    return parse_options(given | _same(options, _PIPELINE))


_PIPELINE = ("sample", "opset", "steps", "seed", "timeout", "memory_limit", "cache", "jobs")
_SOURCE = ("frontend", "layout", "weights", "trust_pickle", "python", "env")
_TARGET = ("io_types", "precision_plan")
_VERIFY = (*("atol", "rtol", "min_sqnr", "edge_cases", "metric", "max_drop", "lower_is_better", "step_timeout"),)
"""The options that the pipeline file has by the same name; what is not given has the file's default."""


def _same(options: ConvertOptions, names: Sequence[str]) -> dict[str, Any]:
    """Return those of `options` that `names` lists, as plain data."""
    given = cast("Mapping[str, Any]", options)
    return {name: _plain(given[name]) for name in names if name in given}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    return list(cast("Sequence[Any]", value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _listed(given: PathLike | Sequence[Any]) -> list[Any]:
    """Return a list of what may be given alone."""
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [_plain(item) for item in given]


def _source(source: PathLike, options: ConvertOptions) -> dict[str, Any]:
    return {
        "path": os.fspath(source),
        "inputs": texts.inputs(options.get("input", ())),
        "dims": texts.dims(options.get("dim", ())),
        "options": dict(options.get("source_options") or {}),
        **_same(options, _SOURCE),
    }


def _targets(options: ConvertOptions, precision: str) -> list[dict[str, Any]]:
    """Return an entry for each target; all have the same output, which is a folder when there are several."""
    names = _listed(options.get("target", "onnx"))
    output = _output(options.get("output"), len(names))
    own = {"precision": precision, "output": output, "options": dict(options.get("options") or {})}
    return [{"target": name, **own, **_same(options, _TARGET)} for name in names]


def _path(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _calibration(given: PathLike | Mapping[str, Any] | None, precision: str) -> Mapping[str, Any] | None:
    """Return the entry that a path, or the entry's keys, stand for."""
    if given is not None and precision not in {"int8", "int4"}:
        raise UsageError("--calibration is for --int8 and --int4.", "Ask for one of them, or leave it out.")
    return given if given is None or isinstance(given, Mapping) else {"path": os.fspath(given)}


def _precision(options: ConvertOptions) -> str:
    chosen = [name for name in ("fp16", "bf16", "int8", "int4") if options.get(name)]
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} exclude each other.", "Ask for one precision at a time.")
    plan = options.get("precision_plan")
    if plan is not None and not chosen:
        return _planned(plan)
    return chosen[0] if chosen else "fp32"


def _planned(path: PathLike) -> str:
    """Return the precision that a plan was made for."""
    from infconv.nearby import fetched
    from infconv.quantize._plan_file import PrecisionPlan

    with fetched(os.fspath(path)) as local:
        return PrecisionPlan.load(local.paths[0]).precision


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

    result = execute_and_report([make_spec(source, **options)], os.fspath(source), observers)
    if result.error:
        raise result.error
    return result


def _full_signature() -> inspect.Signature:
    """Return the signature of `convert` with every option and its default, for help() and editors."""
    source, _, observers = sorted(inspect.signature(convert).parameters.values(), key=lambda p: p.name == "observers")
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=annotation)
        for name, annotation in ConvertOptions.__annotations__.items()
    ]
    return inspect.Signature([source, *own, observers], return_annotation="Result")


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

    Each is a source of any framework, an ONNX file, an OpenVINO IR or, where its GPU is, a TensorRT engine; `a` may be
    a .npz of recorded outputs. `as_` is `topk:K` or `detections[:SCORE]`; `layers` looks inside. `input`, `dim`,
    `weights`, `trust_pickle` and `python` are those of `convert`, for a source; the first two also say the sizes that
    an ONNX file is run at. The tolerance is that of float32 unless it is given. Raises SourceError when one cannot be
    read, UsageError when the inputs do not fit both, UnsupportedError for an engine whose GPU is not here.
    """
    from infconv.agreement import parse_view
    from infconv.comparison import compare_models
    from infconv.given import told
    from infconv.nearby import fetched

    tolerance, view = _tolerance(rtol, atol, min_sqnr), None if as_ is None else parse_view(as_)
    with fetched(os.fspath(a), os.fspath(b), *([] if inputs is None else [os.fspath(inputs)])) as local:
        first, second, *fed = local.paths
        entries = [
            make_spec(
                path, input=input, dim=dim, weights=weights, trust_pickle=trust_pickle, python=python, seed=seed
            ).source
            for path in (first, second)
        ]
        found = compare_models(
            *entries, inputs=fed[0] if fed else None, tolerance=tolerance, view=view, layers=layers, seed=seed
        )
        return told(found, local.urls)


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
    from infconv.nearby import near
    from infconv.observe import Observers

    if other is None:
        with near(spec, Observers(observers)) as local:
            return bisect_conversion(local, Path(repro), observers)
    entries = [spec.source, spec.source.model_copy(update={"path": os.fspath(other)})]
    tolerance = _tolerance(spec.verify.rtol, spec.verify.atol, spec.verify.min_sqnr)
    return bisect_models(*entries, inputs=_path(inputs), tolerance=tolerance, seed=spec.seed, folder=Path(repro))
