"""Is the quantised model faster, here? Interleaved runs, so that a busy machine slows down all candidates alike."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv import isolate
from infconv.errors import UnsupportedError
from infconv.model import save

Array = np.ndarray[Any, np.dtype[Any]]
Runner = Callable[[], object]

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""Targets that run on this machine."""
_ROUNDS, _LEAST = 20, 10
_SECONDS = 0.5
"""A comparison ends after so many rounds, or this time when the least number of rounds is done."""
_MARGIN = 0.03
"""Differences below this are noise."""
_NOTICEABLE = 1e-4
"""Differences below this many seconds are nothing."""
_AGREE = 0.75
"""The share of rounds that must agree on which one is faster."""


@dataclasses.dataclass(frozen=True)
class Race:
    """The times of two models in the same rounds, in seconds."""

    first: Sequence[float]
    second: Sequence[float]

    @property
    def ratio(self) -> float:
        """Return second / first, each at the 20th percentile: what disturbs a run only makes it longer."""
        return float(np.percentile(self.second, 20) / np.percentile(self.first, 20))

    def second_is_faster(self) -> bool:
        """Whether the second is faster beyond noise."""
        wins = float(np.mean(np.less(self.second, self.first)))
        gain = float(np.percentile(self.first, 20) - np.percentile(self.second, 20))
        return self.ratio < 1 - _MARGIN and gain > _NOTICEABLE and wins >= _AGREE

    def second_is_slower(self) -> bool:
        """Whether the second is slower beyond noise."""
        return Race(self.second, self.first).second_is_faster()

    def __str__(self) -> str:
        low = [1e3 * float(np.percentile(times, 20)) for times in (self.second, self.first)]
        return f"{low[0]:.3g} ms against {low[1]:.3g} ms"


def race(target: str, first: ir.Model, second: ir.Model, feed: Mapping[str, Array]) -> Race:
    """Run two models in turn on `feed` in the runtime of `target`, in a child process.

    Raises UnsupportedError when the runtime refuses one of them.
    """
    with tempfile.TemporaryDirectory(prefix="infconv-latency-") as folder:
        paths = [save(model, Path(folder) / f"{i}.onnx")[0] for i, model in enumerate((first, second))]
        return isolate.call(lambda: _race([_runner(target, path, feed) for path in paths]), what="Measuring latency")


def _race(runners: Sequence[Runner]) -> Race:
    for runner in runners:
        runner()
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= _LEAST and time.perf_counter() - start > _SECONDS:
            break
        for place in (0, 1) if done % 2 else (1, 0):  # whoever comes second finds the other's data in the cache
            begin = time.perf_counter()
            runners[place]()
            times[place].append(time.perf_counter() - begin)
    return Race(*times)


def _runner(target: str, path: Path, feed: Mapping[str, Array]) -> Runner:
    return (_openvino if target == "openvino" else _onnxruntime)(path, feed)


def _onnxruntime(path: Path, feed: Mapping[str, Array]) -> Runner:
    from infconv.convert._onnxruntime import open_session

    try:
        session = open_session(os.fspath(path), optimize=True)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise UnsupportedError(f"ONNX Runtime does not load the model: {error}") from error
    names = {value.name for value in session.get_inputs()}
    inputs = {name: array for name, array in feed.items() if name in names}
    return lambda: session.run(None, inputs)


def _openvino(path: Path, feed: Mapping[str, Array]) -> Runner:
    from infconv.convert.to_openvino import _core as open_core

    try:
        compiled = open_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise UnsupportedError(f"OpenVINO does not load the model: {error}") from error
    known = {name for port in compiled.inputs for name in port.get_names()}
    request = compiled.create_infer_request()
    inputs = {name: array for name, array in feed.items() if name in known}
    return lambda: request.infer(inputs)
