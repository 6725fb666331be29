"""Run ONNX files: in ONNX Runtime, and in onnx's reference evaluator where ONNX Runtime has no kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infconv import isolate
from infconv.errors import InfconvError, UnsupportedError

_NUMPY_LACKS = re.compile("bfloat16|float8|float4|int4|int2|uint4|uint2")


def run_samples(
    path: str | os.PathLike[str], samples: Sequence[Mapping[str, Any]], *, optimize: bool, timeout: float | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """Run the model at `path` on each sample in a child process; return (what ran it, the outputs by name).

    `optimize`: with ONNX Runtime's default graph optimizations, as users run it; False: the graph as it is written.
    Raises UnsupportedError when nothing here can run the model, or ResourceError.
    """
    by, outcomes = run_or_errors(path, samples, optimize=optimize, timeout=timeout)
    outputs: list[dict[str, Any]] = []
    for outcome in outcomes:
        if isinstance(outcome, InfconvError):
            raise outcome
        outputs.append(outcome)
    return by, outputs


def run_or_errors(
    path: str | os.PathLike[str], samples: Sequence[Mapping[str, Any]], *, optimize: bool, timeout: float | None = None
) -> tuple[str, list[dict[str, Any] | InfconvError]]:
    """Do as `run_samples`, with the error of a sample that the model does not accept in its place in the list."""
    return isolate.call(lambda: run_here(path, samples, optimize=optimize), what=f"Running '{path}'", timeout=timeout)


def run_here(
    path: str | os.PathLike[str], samples: Sequence[Mapping[str, Any]], *, optimize: bool
) -> tuple[str, list[dict[str, Any] | InfconvError]]:
    """Do as `run_or_errors`, in this process."""
    import onnxruntime

    path = os.fspath(path)

    try:
        session = open_session(path, optimize)
    except Exception as refusal:  # ONNX Runtime's exceptions share no base class but Exception
        return _run_bfloat16(path, samples) or _run_reference(path, samples, refusal)
    return f"onnxruntime {onnxruntime.__version__}", [run_or_error(session, sample) for sample in samples]


def run_or_error(session: Any, inputs: Mapping[str, Any]) -> dict[str, Any] | InfconvError:
    """Do as `run_session`, but return the error of inputs that the model does not accept."""
    try:
        return run_session(session, inputs)
    except InfconvError as error:
        return error


def open_session(path: str, optimize: bool) -> Any:
    """Return an InferenceSession on the CPU that prints nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run `session` on numpy inputs; returns numpy outputs, bfloat16 and smaller types included."""
    names = [output.name for output in session.get_outputs()]
    wanted = {i.name: i.type for i in session.get_inputs()}
    feeds = {name: value for name, value in inputs.items() if name in wanted}
    exotic = [*(o.type for o in session.get_outputs()), *(wanted[n] for n in feeds)]
    try:
        if not any(_NUMPY_LACKS.search(kind) for kind in exotic):
            return _readable(dict(zip(names, session.run(names, feeds), strict=True)))
        values = {name: _to_ort(value) for name, value in feeds.items()}
        results = session.run_with_ort_values(names, values)
    except Exception as error:  # as above
        raise UnsupportedError(f"ONNX Runtime cannot run the model on these inputs: {_one_line(error)}") from error
    return {name: _from_ort(value) for name, value in zip(names, results, strict=True)}


def _readable(outputs: dict[str, Any]) -> dict[str, Any]:
    """Return `outputs`. Raises UnsupportedError for a sparse tensor, which exists in the runtime only."""
    for name, value in outputs.items():
        if type(value).__name__ == "SparseTensor":
            raise UnsupportedError(f"Output '{name}' is a sparse tensor, which cannot be compared.")
    return outputs


def _to_ort(value: Any) -> Any:
    import onnx
    import onnxruntime

    array = np.asarray(value)
    if array.dtype.kind in "biufcOUS" and array.dtype.name != "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    bits = np.ascontiguousarray(array).view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, element)


def _from_ort(value: Any) -> Any:
    """Return the numpy form of an OrtValue, also for types that its own binding refuses."""
    if not value.is_tensor() or not _NUMPY_LACKS.search(value.data_type()):
        return value.numpy()
    import ctypes

    import ml_dtypes

    names = {"bfloat16": "bfloat16", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz"}
    names |= {"float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz"}
    kind = value.data_type().removeprefix("tensor(").removesuffix(")")
    if kind not in names:
        raise UnsupportedError(f"An output of type {kind} cannot be read from ONNX Runtime.")
    dtype = np.dtype(getattr(ml_dtypes, names[kind]))
    count = int(np.prod(value.shape()))
    data = ctypes.string_at(value.data_ptr(), count * dtype.itemsize) if count else b""
    return np.frombuffer(data, dtype).reshape(value.shape()).copy()


def _run_bfloat16(
    path: str, samples: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any] | InfconvError]] | None:
    """Run a bfloat16 model in float32 that is rounded after every operator; None when that is not what it takes."""
    from infconv.convert._rounded import run_rounded_here

    try:
        return run_rounded_here(path, samples)
    except Exception:  # ONNX Runtime's again: the evaluator is slow, but knows more operators
        return None


def _run_reference(
    path: str, samples: Sequence[Mapping[str, Any]], refusal: Exception
) -> tuple[str, list[dict[str, Any] | InfconvError]]:
    """Run where ONNX Runtime has no kernel. `refusal` is its reason, told when the evaluator fails as well."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(path)
        names = [str(name) for name in evaluator.output_names]
        outputs: list[dict[str, Any] | InfconvError] = [
            dict(zip(names, evaluator.run(None, dict(s)), strict=True)) for s in samples
        ]  # pyright: ignore[reportArgumentType]  (typed as one array, returns a list)
    except InfconvError:
        raise
    except Exception as error:  # the evaluator raises whatever its operators raise
        raise UnsupportedError(
            f"ONNX Runtime cannot run the model: {_one_line(refusal)}",
            f"onnx's reference evaluator cannot either: {_one_line(error)}",
        ) from error
    return f"onnx reference evaluator {onnx.__version__}", outputs


def _one_line(error: BaseException) -> str:
    """Return the error's first line, without the runtime's own prefix."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.splitlines()[0])[:300]
