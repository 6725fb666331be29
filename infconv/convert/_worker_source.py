"""A source whose original stays open in a worker process: what every framework's frontend returns."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.convert._base import DimRange, Source, SourceRequest
from infconv.convert._worker_client import WorkerProcess

if TYPE_CHECKING:
    import numpy as np

MODEL = "model.onnx"


def open_in_worker(
    framework: str, request: SourceRequest, python: str | None, workdir: Path, folder: Path | None = None
) -> WorkerSource:
    """Export in a worker of `framework` and return the opened source; what a failure left is removed.

    `folder` has the file `_worker_<framework>.py` of a plugin; None: it is one of infconv's own.
    """
    worker = WorkerProcess(framework, python, request.memory_limit, workdir / f"{framework}-worker.log", folder)
    try:
        answer = worker.ask(export_request(request, workdir), request.timeout)
    except BaseException:
        worker.close()
        for path in workdir.glob(f"{MODEL}*"):
            path.unlink()
        shutil.rmtree(workdir / "torchscript", ignore_errors=True)
        raise
    return WorkerSource(worker, workdir, answer, request.timeout)


def export_request(request: SourceRequest, workdir: Path) -> dict[str, Any]:
    """Return the `export` request of a worker, with absolute paths."""
    return {
        "op": "export",
        "source": str(Path(request.source).absolute()) if Path(request.source).exists() else request.source,
        "format": request.format,
        "workdir": str(workdir.absolute()),
        "inputs": {name: dataclasses.asdict(spec) for name, spec in request.inputs.items()},
        "dims": {name: dataclasses.asdict(span) for name, span in request.dims.items()},
        "weights": request.weights and str(Path(request.weights).absolute()),
        "sample": request.sample and str(Path(request.sample).absolute()),
        "opset": request.opset,
        "trust_pickle": request.trust_pickle,
        "options": dict(request.options),
        "python_path": [str(Path(folder).absolute()) for folder in request.python_path],
        "seed": request.seed,
    }


class WorkerSource(Source):
    """An exported model whose original stays open in a worker."""

    def __init__(self, worker: WorkerProcess, workdir: Path, answer: Mapping[str, Any], timeout: float | None) -> None:
        self.model_path = workdir / MODEL
        self.producer = answer["producer"]
        self.notes = answer["notes"]
        self.attempts = answer["attempts"]
        self.versions = answer["versions"]
        self.value_limits = answer["value_limits"]
        self.dims = {name: DimRange(low, None, high) for name, (low, high) in answer["dims"].items()}
        self._worker = worker
        self._workdir = workdir
        self._timeout = timeout

    @property
    def log(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The end of what the framework printed, line by line."""
        return self._worker.log

    @property
    def peak_memory(self) -> int:
        """The largest resident size of the worker so far, in bytes."""
        return self._worker.peak_memory

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run the original model; strings travel as numpy's unicode, since an .npz without pickle holds no objects.

        Raises UsageError when the model does not take these inputs, ResourceError, UnsupportedError (crash).
        """
        import numpy as np

        given, found = self._workdir / "inputs.npz", self._workdir / "outputs.npz"
        try:
            with given.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **{name: _portable(array) for name, array in inputs.items()})
            answer = self._worker.ask({"op": "run", "inputs": str(given), "outputs": str(found)}, self._timeout)
            with np.load(found, allow_pickle=False) as arrays:
                outputs = {name: arrays[name] for name in answer["outputs"]}
        finally:
            given.unlink(missing_ok=True)
            found.unlink(missing_ok=True)
        return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in outputs.items()}

    def close(self) -> None:
        """End the worker. Idempotent."""
        self._worker.close()


def _portable(array: np.ndarray) -> np.ndarray:
    """Return `array` in a type that .npz can hold."""
    import numpy as np

    if array.dtype.kind in "biufcU":
        return array
    return array.astype(str) if array.dtype.kind == "O" else array.astype(np.float32)
