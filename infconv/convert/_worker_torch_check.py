"""Whether an export is good enough to stop trying: the checker, and a comparison with the module where it is cheap."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ._worker import WorkerError
from ._worker_torch_inputs import other_sizes
from ._worker_torch_subject import Subject

LARGEST_BYTES = 512 << 20
"""Larger models are compared by the parent alone: a second copy of the weights would not be cheap."""
RELATIVE_ERROR = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Of the largest value of an output. It tells a wrong graph from rounding; the parent judges accuracy."""

REFUSED = "the model refuses these inputs"

RANDOM = "The model gives other outputs on the same inputs: it draws random numbers or keeps a state between runs."


def check(path: str, subject: Subject, seed: int, *, traced: bool, doubted: bool) -> str | None:
    """Return what is wrong with the ONNX file at `path`, None if nothing was found.

    `traced`: the exporter ran the module once, so that sizes and branches may be frozen; other sizes are compared too.
    `doubted`: another road found a dimension fixed, so that the module has to run with another size of it.
    """
    if importlib.util.find_spec("onnx"):
        from ._worker_checker import fault

        found = fault(path)
        if found:
            return f"the ONNX checker refuses the result: {found}"
    if not importlib.util.find_spec("onnxruntime") or _bytes(path) > LARGEST_BYTES:
        return None
    return _compare(path, subject, seed, traced, doubted)


def _compare(path: str, subject: Subject, seed: int, traced: bool, doubted: bool) -> str | None:
    session = _session(path)
    if isinstance(session, str):
        return session
    if session is None:
        return None
    problem = _compare_one(session, subject, subject.examples)
    return problem if problem or not traced else _compare_others(session, subject, seed, doubted)


def _compare_others(session: Any, subject: Subject, seed: int, doubted: bool) -> str | None:
    """Compare at other sizes and other values than the example's, which a trace may have frozen."""
    for tensors in _other_values(subject.examples):
        problem = _compare_one(session, subject, tensors)
        if problem not in (None, REFUSED):
            return f"{problem} (on other values than the example's)"
    problems: list[str | None] = []
    for sizes in other_sizes(subject.sizes, subject.ranges):
        problem = _compare_one(session, subject, subject.examples_of(sizes, seed + 1))
        if problem not in (None, REFUSED):
            return f"{problem} (at {', '.join(f'{name}={size}' for name, size in sizes.items())})"
        problems.append(problem)
    judged = problems[:1] if doubted else problems
    if judged and all(problem == REFUSED for problem in judged):
        return f"the model itself does not run with other sizes of {', '.join(subject.sizes)}"
    return None


def _other_values(examples: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(t * factor if t.dtype.is_floating_point else t for t in examples) for factor in (-1, 0, 3)]


def _session(path: str) -> Any:
    """Return a session, None where ONNX Runtime lacks a kernel (it cannot judge then), or what is wrong."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # torch and the model's own code raise whatever they meet
        if "NOT_IMPLEMENTED" in str(error):
            return None
        return f"ONNX Runtime refuses the result: {str(error).strip().splitlines()[0]}"


def _compare_one(session: Any, subject: Subject, tensors: Sequence[torch.Tensor]) -> str | None:
    """Return how the outputs differ, None if they do not, or REFUSED when the model itself does not run on these."""
    try:
        expected = subject.run(tensors)
    except WorkerError:
        return REFUSED
    try:
        found = session.run(None, {i.name: t.numpy() for i, t in zip(subject.inputs, tensors, strict=True)})
    except TypeError:  # numpy has no bfloat16
        return None
    except Exception as error:  # torch and the model's own code raise whatever they meet
        return f"the result does not run: {str(error).strip().splitlines()[0]}"
    wrong = [
        (name, problem, want.shape != got.shape, index)
        for index, (name, want, got) in enumerate(zip(subject.output_names, expected, found, strict=True))
        if hasattr(got, "dtype") and (problem := _difference(want, torch.from_numpy(got)))
    ]
    # A model that draws random numbers cannot be told from a wrong graph by one run.
    repeated = list(map(_same, expected, subject.run(tensors))) if wrong else []
    if not all(repeated) and RANDOM not in subject.notes:
        subject.notes.append(RANDOM)
    certain = (f"output '{name}' {problem}" for name, problem, reshaped, i in wrong if reshaped or repeated[i])
    return next(certain, None)


def _difference(want: torch.Tensor, got: torch.Tensor) -> str | None:
    if want.shape != got.shape:
        return f"has shape {list(got.shape)}, the model's has {list(want.shape)}"
    limit = RELATIVE_ERROR.get(want.dtype)
    if limit is None or want.numel() == 0:
        return None  # integers
    scale = float(want.nan_to_num().abs().max()) or 1.0
    error = float((want.to(torch.float64) - got.to(torch.float64)).nan_to_num().abs().max()) / scale
    return f"is off by {error:.2g} of its largest value" if error > limit else None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _bytes(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).parent.glob(f"{Path(path).name}*"))
