"""A measure of quality on the user's own data, taken of the source and of each artifact.

The user's function is given the model as a callable, `model(inputs) -> outputs`, both dictionaries of arrays by name,
and returns one number. It is called once for the source and once for each artifact, in this process.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from infconv import registry
from infconv.errors import UsageError, VerificationError, did_you_mean
from infconv.result import MetricCheck

if TYPE_CHECKING:
    from infconv.convert._base import Source
    from infconv.convert._exporter import Exported
    from infconv.passes import Quality
    from infconv.planning import Job
    from infconv.spec import PipelineSpec, VerifyEntry

Model: TypeAlias = "Callable[[Mapping[str, Any]], dict[str, Any]]"
Metric: TypeAlias = "Callable[[Model], float]"


def measure_source(spec: PipelineSpec, source: Source) -> float | None:
    """Return the metric of the source itself; None when no metric was asked for."""
    if spec.verify.metric is None:
        return None
    function = find_metric(spec)
    return _measure(function, spec.verify.metric, lambda inputs: source.run(_arrays(inputs)))


def quality_of(spec: PipelineSpec, before: float | None) -> Quality | None:
    """Return the measure that `spec` asks for, `before` of the source; None without one, or without a budget."""
    entry = spec.verify
    if entry.metric is None or entry.max_drop is None or before is None:
        return None
    from infconv.passes import Quality

    function, name = find_metric(spec), entry.metric
    return Quality(
        name,
        lambda model: _measure(function, name, lambda inputs: model(_arrays(inputs))),
        before,
        entry.max_drop,
        entry.lower_is_better,
    )


def check_metric(spec: PipelineSpec, job: Job, exported: Exported, before: float | None) -> MetricCheck | None:
    """Return the metric of the finished artifact beside the source's. Raises VerificationError beyond the budget.

    What is run is what verification runs: the artifact, or for an engine the ONNX that it was built from.
    """
    entry = spec.verify
    if entry.metric is None or before is None:
        return None
    with opened(job, exported) as model:
        after = _measure(find_metric(spec), entry.metric, model)
    drop = after - before if entry.lower_is_better else before - after
    check = MetricCheck(entry.metric, before, after, drop, entry.max_drop)
    if entry.max_drop is not None and not drop <= entry.max_drop:
        raise _beyond(check, job, entry)
    return check


def _beyond(check: MetricCheck, job: Job, entry: VerifyEntry) -> VerificationError:
    went = "rose" if entry.lower_is_better else "fell"
    return VerificationError(
        f"The metric {check.metric} of the {job.exporter.target} artifact {went} from {check.before:.6g} to "
        f"{check.after:.6g}, by {check.drop:.3g}; the budget is {entry.max_drop:g}.",
        "Use a higher precision, calibration data that is more like yours, or a larger --max-drop.",
    )


def find_metric(spec: PipelineSpec) -> Metric:
    """Return the function `module:function`. Raises UsageError when it cannot be found or called."""
    reference = spec.verify.metric or ""
    module_name, separator, name = reference.partition(":")
    if not separator:
        raise UsageError(f"--metric '{reference}' is not module:function.", "Example: --metric my_eval:top1")
    registry.look_in([str(Path.cwd()), *spec.source.python_path])
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's own raises whatever it does
        why = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UsageError(f"--metric: cannot import '{module_name}': {why}.", "It is looked for here too.") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [other for other, value in vars(module).items() if callable(value)]
        raise UsageError(f"--metric: module '{module_name}' has no function '{name}'.", did_you_mean(name, known))
    return cast(Metric, function)


def _measure(function: Metric, name: str, model: Model) -> float:
    """Return what the user's function says. Raises UsageError when it fails or returns no number."""
    try:
        value: Any = function(model)
        number = float(value)
    except Exception as error:  # the user's code raises whatever it does
        raise UsageError(
            f"The metric {name} failed: {type(error).__name__}: {error}.",
            "It gets model(inputs: dict) -> dict of arrays, and returns a number.",
        ) from error
    if not math.isfinite(number):
        raise UsageError(f"The metric {name} returned {number}, which cannot be compared.")
    return number


@contextlib.contextmanager
def opened(job: Job, exported: Exported) -> Generator[Model]:
    """Yield the finished artifact as a callable that is loaded once."""
    from infconv.verify import as_inputs

    path = exported.compiled_from or exported.files[0]
    if path.suffix == ".xml":
        from infconv.convert.to_openvino import open_ir

        run = open_ir(path, exported.outputs)
    else:
        from infconv.convert._onnxruntime import open_session, run_session

        run = partial(run_session, open_session(str(path), optimize=True))

    yield lambda inputs: run(as_inputs(_arrays(inputs), job))


def _arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {name: np.asarray(value) for name, value in inputs.items()}
