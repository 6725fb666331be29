"""Is the quantised model faster, here?

Runs are interleaved, on one thread, and what is compared is processor time: on a busy machine the wall clock tells
how busy it is, and would decide otherwise the next time.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.errors import UnsupportedError
from infconv.model import save

Array = np.ndarray[Any, np.dtype[Any]]
Runner = Callable[[], object]

_ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""Targets that run on this machine."""
_ROUNDS, _LEAST = 15, 6
_SECONDS = 0.3
"""A comparison ends after so many rounds, or this time when the least number of rounds is done."""
_NOTICEABLE = 1e-4
"""Differences below this many seconds are nothing."""
_AGREE = 0.8
"""The share of rounds that must agree on which one is faster."""


@dataclasses.dataclass(frozen=True)
class Race:
    """The processor times of two models in the same rounds, in seconds."""

    first: Sequence[float]
    second: Sequence[float]

    @property
    def ratio(self) -> float:
        """Return second / first, each at the 20th percentile: what disturbs a run only makes it longer."""
        return float(np.percentile(self.second, 20) / np.percentile(self.first, 20))

    def second_is_faster(self, margin: float) -> bool:
        """Whether the second is faster, by more than the share `margin`, beyond noise."""
        wins = float(np.mean(np.less(self.second, self.first)))
        gain = float(np.percentile(self.first, 20) - np.percentile(self.second, 20))
        return self.ratio < 1 - margin and gain > _NOTICEABLE and wins >= _AGREE

    def __str__(self) -> str:
        low = [1e3 * float(np.percentile(times, 20)) for times in (self.second, self.first)]
        return f"{low[0]:.3g} ms against {low[1]:.3g} ms"


class Racer:
    """Races models on `feed` in the runtime of `target`, in this process; each is opened once.

    Raises UnsupportedError when the runtime refuses one of them.
    """

    def __init__(self, target: str, feed: Mapping[str, Array], folder: Path) -> None:
        self._target, self._feed, self._folder = target, feed, folder
        self._opened: dict[int, tuple[ir.Model, Runner]] = {}
        """id -> model, held so that the id stays its own, and what runs it."""
        self._number = 0

    def race(self, first: ir.Model, second: ir.Model) -> Race:
        """Run two models in turn."""
        return _race([self._runner(first), self._runner(second)])

    def drop(self, model: ir.Model) -> None:
        """Close a model that races no more."""
        self._opened.pop(id(model), None)

    def _runner(self, model: ir.Model) -> Runner:
        if id(model) not in self._opened:
            self._number += 1
            path = save(model, self._folder / f"{self._number}.onnx")[0]
            opening = _openvino if self._target == "openvino" else _onnxruntime
            self._opened[id(model)] = model, opening(path, self._feed)
        return self._opened[id(model)][1]


def _race(runners: Sequence[Runner]) -> Race:
    for runner in runners:
        runner()
    times: tuple[list[float], list[float]] = ([], [])
    start = time.process_time()
    for done in range(_ROUNDS):
        if done >= _LEAST and time.process_time() - start > _SECONDS:
            break
        for place in (0, 1) if done % 2 else (1, 0):  # whoever comes second finds the other's data in the cache
            begin = time.process_time()
            runners[place]()
            times[place].append(time.process_time() - begin)
    return Race(*times)


def _onnxruntime(path: Path, feed: Mapping[str, Array]) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise UnsupportedError(f"ONNX Runtime does not load the model: {error}") from error
    names = {value.name for value in session.get_inputs()}
    inputs = {name: array for name, array in feed.items() if name in names}
    return lambda: session.run(None, inputs)


def _openvino(path: Path, feed: Mapping[str, Array]) -> Runner:
    from infconv.convert.to_openvino import _core as open_core

    try:
        compiled = open_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **_ONE_THREAD})
    except RuntimeError as error:
        raise UnsupportedError(f"OpenVINO does not load the model: {error}") from error
    known = {name for port in compiled.inputs for name in port.get_names()}
    request = compiled.create_infer_request()
    inputs = {name: array for name, array in feed.items() if name in known}
    return lambda: request.infer(inputs)
