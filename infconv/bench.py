"""Latency, throughput and memory of artifacts, measured side by side.

Each model lives in a process of its own, so that one's threads and memory do not disturb the other's. The models run
in turn, one inference each, in an order that is drawn anew for every round: what slows the machine down for a while
slows all of them. A ratio is the median over the rounds of the time beside the first model's in the same round, with a
bootstrap interval (B. Efron, "Bootstrap methods", 1979).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infconv.errors import InfconvError, ResourceError, SourceError, UnsupportedError, UsageError
from infconv.isolate import CAN_FORK
from infconv.reference import describe_inputs, load_sample, make_inputs, size_plans

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess, SpawnProcess

    from infconv.convert._base import DimRange

_RESAMPLES = 2000
_SECONDS_TO_LOAD = 600.0


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """What one artifact costs."""

    path: str
    runtime: str
    bytes: int
    """Size of its files."""
    load_seconds: float
    latency_ms: float
    """The median."""
    latency_ms_p10: float
    latency_ms_p90: float
    latency_ms_low: float
    latency_ms_high: float
    """The 95 % interval of the median."""
    throughput: float
    """Samples per second: the size of the first dimension of the first input, over the median latency."""
    memory_mb: float
    """Largest resident memory of its process, beyond what the process had before it loaded the model."""
    ratio: float
    """Its time beside the first model's, the median over the rounds; below 1 is faster."""
    ratio_low: float
    ratio_high: float
    """The 95 % interval of `ratio`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure."""

    runs: int = 50
    warmup: int = 5
    threads: int | None = None
    """Of each runtime; None: its own choice."""
    seed: int = 0


def bench(
    models: Sequence[str],
    *,
    inputs: str | None = None,
    dims: Mapping[str, DimRange] | None = None,
    settings: Settings | None = None,
) -> list[BenchRow]:
    """Measure the ONNX files, OpenVINO IRs and TensorRT engines `models` on the same inputs; return a row for each.

    `inputs` is an .npz; otherwise inputs are seeded, at the usual size of each of `dims`. Raises SourceError,
    UnsupportedError (an engine whose GPU is not here), UsageError.
    """
    chosen = settings or Settings()
    if not models:
        raise UsageError("There is no model to measure.", "Name one or more artifacts.")
    for model in models:
        _check(model)
    feeds = _feeds(models, inputs, dims or {}, chosen.seed)
    workers: list[_Worker] = []
    try:
        workers.extend(_Worker(model, feeds, chosen.threads) for model in models)
        times = _measure(workers, chosen)
        return [_row(worker, times, index, feeds) for index, worker in enumerate(workers)]
    finally:
        for worker in workers:
            worker.close()


def _check(path: str) -> None:
    if not Path(path).is_file():
        raise SourceError(f"'{path}' does not exist.", "Check the path.")
    if path.endswith(".engine"):
        from infconv.convert._tensorrt_execute import runtime_for

        runtime_for(Path(path))
    elif Path(path).suffix not in (".onnx", ".xml"):
        raise UsageError(f"'{path}' is no ONNX file, OpenVINO IR or TensorRT engine.", "Convert it first.")


def _feeds(models: Sequence[str], given: str | None, dims: Mapping[str, DimRange], seed: int) -> dict[str, Any]:
    """Return the inputs that all models get: as the first ONNX file declares them."""
    described = next((model for model in models if model.endswith(".onnx")), None)
    if described is None:
        if given is None:
            raise UsageError("Inputs can only be made from an ONNX file, and there is none.", "Give --inputs FILE.npz.")
        from infconv.reference import read_npz

        return dict(read_npz(given, "--inputs"))
    from infconv.model import load

    infos = describe_inputs(load(described))
    if given is not None:
        return load_sample(given, infos)
    return make_inputs(infos, next(iter(size_plans(infos, dims)))[1], seed)


# --- one model in a process of its own -------------------------------------------------------------------------


class _Worker:
    """The parent's end of a process that holds one model."""

    def __init__(self, path: str, feeds: Mapping[str, Any], threads: int | None) -> None:
        import multiprocessing

        # CUDA does not survive a fork, and this process has asked it for the GPU.
        forks = CAN_FORK and not path.endswith(".engine")
        context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
        self.path = path
        self._pipe, theirs = context.Pipe()
        self._process: ForkProcess | SpawnProcess = context.Process(
            target=_serve, args=(path, dict(feeds), threads, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self.runtime, self.load_seconds = self._receive(_SECONDS_TO_LOAD)

    def run(self) -> float:
        """Return the seconds of one inference."""
        self._pipe.send("run")
        return self._receive(None)

    def memory(self) -> float:
        """Return the megabytes that the process has needed."""
        self._pipe.send("memory")
        return self._receive(None)

    def _receive(self, timeout: float | None) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise ResourceError(f"Loading '{self.path}' did not finish within {timeout:g} s.")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise ResourceError(
                f"The process that ran '{self.path}' died (exit {self._process.exitcode}).",
                "It may have needed more memory than there is, or crashed in the runtime.",
            ) from None
        if isinstance(answer, InfconvError):
            raise answer
        return answer

    def close(self) -> None:
        # Closing the pipe would not end the process: it, and those started later, hold copies of this end.
        with contextlib.suppress(OSError):
            self._pipe.send("end")
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _serve(path: str, feeds: dict[str, Any], threads: int | None, pipe: Connection) -> None:
    """Answer the parent's requests until it closes the pipe."""
    try:
        before = _resident_mb()
        start = time.perf_counter()
        runtime, call = _OPENERS[Path(path).suffix](path, feeds, threads)
        call()
        pipe.send((runtime, time.perf_counter() - start))
        while (request := pipe.recv()) != "end":
            if request == "memory":
                pipe.send(max(0.0, _peak_mb() - before))
            else:
                pipe.send(_seconds(call))
    except EOFError:
        pass  # the parent has what it wanted
    except InfconvError as error:
        pipe.send(error)
    finally:
        pipe.close()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _in_onnxruntime(path: str, feeds: Mapping[str, Any], threads: int | None) -> tuple[str, Callable[[], object]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        known = {i.name for i in session.get_inputs()}
        given = {name: value for name, value in feeds.items() if name in known}
        session.run(None, given)
    except Exception as error:  # ONNX Runtime has exception types of its own
        raise _refused("ONNX Runtime", path, error) from error
    return f"onnxruntime {onnxruntime.__version__}", lambda: session.run(None, given)


def _in_openvino(path: str, feeds: Mapping[str, Any], threads: int | None) -> tuple[str, Callable[[], object]]:
    import importlib.util

    if importlib.util.find_spec("openvino") is None:
        raise UnsupportedError(f"'{path}' needs OpenVINO.", "pip install 'infconv[openvino]'")
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    import openvino

    config = {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", config)
        known = {name for port in compiled.inputs for name in port.get_names()}
        given = {name: np.asarray(value) for name, value in feeds.items() if name in known}
        request = compiled.create_infer_request()
        request.infer(given)
    except RuntimeError as error:
        raise _refused("OpenVINO", path, error) from error
    return f"openvino {openvino.__version__}", lambda: request.infer(given)


def _in_tensorrt(path: str, feeds: Mapping[str, Any], _threads: int | None) -> tuple[str, Callable[[], object]]:
    """Open an engine; a run includes the transfers to and from the GPU, as a caller pays for them."""
    from infconv.convert._tensorrt_execute import open_session
    from infconv.convert._tensorrt_session import NotRun

    by, session = open_session(Path(path))
    try:
        session.run(feeds)
    except NotRun as error:
        raise _refused("TensorRT", path, error) from error
    return by, lambda: session.run(feeds)


_OPENERS = {".onnx": _in_onnxruntime, ".xml": _in_openvino, ".engine": _in_tensorrt}


def _refused(runtime: str, path: str, error: Exception) -> UnsupportedError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UnsupportedError(
        f"{runtime} cannot run '{path}': {reason}", "Check that all models take the same inputs, or give --inputs."
    )


def _resident_mb() -> float:
    return _status_mb("VmRSS")


def _peak_mb() -> float:
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    """Return a memory figure of this process; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


# --- figures -----------------------------------------------------------------------------------------------------


def _measure(workers: Sequence[_Worker], settings: Settings) -> np.ndarray:
    """Return the seconds of each round (rows) and model (columns)."""
    draw = np.random.default_rng(settings.seed)
    times = np.zeros((settings.runs, len(workers)))
    for turn in range(-settings.warmup, settings.runs):
        for index in draw.permutation(len(workers)):
            seconds = workers[index].run()
            if turn >= 0:
                times[turn, index] = seconds
    return times


def _row(worker: _Worker, times: np.ndarray, index: int, feeds: Mapping[str, Any]) -> BenchRow:
    mine = times[:, index] * 1e3
    ratio, low, high = ratio_interval(times[:, index], times[:, 0])
    first = np.asarray(next(iter(feeds.values()))) if feeds else np.zeros(1)
    samples = first.shape[0] if first.ndim else 1
    median, least, most = ratio_interval(mine, np.ones(len(mine)))
    return BenchRow(
        path=worker.path,
        runtime=worker.runtime,
        bytes=_size_of(Path(worker.path)),
        load_seconds=worker.load_seconds,
        latency_ms=median,
        latency_ms_p10=float(np.percentile(mine, 10)),
        latency_ms_p90=float(np.percentile(mine, 90)),
        latency_ms_low=least,
        latency_ms_high=most,
        throughput=1e3 * samples / median,
        memory_mb=worker.memory(),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
    )


def _size_of(path: Path) -> int:
    companions = [path.with_suffix(".bin")] if path.suffix == ".xml" else [path.with_name(f"{path.name}.data")]
    return sum(file.stat().st_size for file in (path, *companions) if file.is_file())


def ratio_interval(times: np.ndarray, base: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the median of `times` / `base` round by round (both [rounds], seconds), and its 95 % interval."""
    ratios = times / base
    draws = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)
