"""Frontend `torch`: torch.export programs, TorchScript, Python factories, Hugging Face folders, trusted pickles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from infconv.convert import _torch_files as files
from infconv.convert._base import DimRange, Frontend, Source, SourceRequest
from infconv.convert._worker_client import WorkerProcess

if TYPE_CHECKING:
    import numpy as np

MODEL = "model.onnx"
LOG = "torch-worker.log"


class FromTorch(Frontend):
    """Exports with torch.onnx in a worker process, and keeps the model open there as the reference."""

    summary: ClassVar[str] = "PyTorch: torch.export, TorchScript, module:factory, Hugging Face folders"
    formats: ClassVar[Mapping[str, str]] = {
        files.EXPORTED_PROGRAM: ".pt2 written by torch.export.save",
        files.TORCHSCRIPT: "TorchScript .pt written by torch.jit.save (needs --input)",
        files.FACTORY: "module:factory, a callable that returns an nn.Module (needs --input; takes --weights)",
        files.HUGGINGFACE: "Hugging Face folder: config.json with model.safetensors or pytorch_model.bin",
        files.PICKLED_MODULE: "nn.Module written by torch.save: only with --trust-pickle (needs --input)",
        files.WEIGHTS: "state dict or safetensors: refused, it holds no model (use module:factory --weights)",
    }
    requires: ClassVar[Mapping[str, str]] = {"torch": "torch"}

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return the format of `source` from its content: zip entries, pickle opcodes, headers."""
        return files.find_format(source)

    def open(self, request: SourceRequest, workdir: Path) -> TorchSource:
        """Export `request.source` to `workdir`.

        Raises SourceError, UsageError, UnsupportedError (each road with its reason), DependencyError, ResourceError.
        """
        files.refuse(request.source, request.format, request.trust_pickle)
        worker = WorkerProcess("torch", request.python, request.memory_limit, workdir / LOG)
        try:
            answer = worker.ask(_export_request(request, workdir), request.timeout)
        except BaseException:
            worker.close()
            _remove_results(workdir)
            raise
        return TorchSource(worker, workdir, answer, request.timeout)


class TorchSource(Source):
    """An exported PyTorch model whose original stays open in a worker."""

    def __init__(self, worker: WorkerProcess, workdir: Path, answer: Mapping[str, Any], timeout: float | None) -> None:
        self.model_path = workdir / MODEL
        self.producer = answer["producer"]
        self.notes = answer["notes"]
        self.attempts = answer["attempts"]
        self.versions = answer["versions"]
        self.value_limits = {i["name"]: i["high"] for i in answer["inputs"] if i["high"] is not None}
        self.dims = {name: DimRange(low, None, high) for name, (low, high) in answer["dims"].items()}
        self.output_types: dict[str, str] = {}
        """Output name -> the type that the model computed, such as bfloat16; known after the first `run`."""
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
        """Run the original model; float types that numpy lacks go in and come out as float32.

        Raises UsageError when the model does not take these inputs, ResourceError, UnsupportedError (crash).
        """
        import numpy as np

        given, found = self._workdir / "inputs.npz", self._workdir / "outputs.npz"
        try:
            with given.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **{name: _portable(array) for name, array in inputs.items()})
            answer = self._worker.ask({"op": "run", "inputs": str(given), "outputs": str(found)}, self._timeout)
            with np.load(found, allow_pickle=False) as arrays:
                outputs = {name: arrays[name] for name in answer["dtypes"]}
        finally:
            given.unlink(missing_ok=True)
            found.unlink(missing_ok=True)
        self.output_types = answer["dtypes"]
        return outputs

    def close(self) -> None:
        """End the worker. Idempotent."""
        self._worker.close()


def _export_request(request: SourceRequest, workdir: Path) -> dict[str, Any]:
    source = request.source if request.format == files.FACTORY else _absolute(request.source)
    return {
        "op": "export",
        "source": source,
        "format": request.format,
        "workdir": str(workdir.absolute()),
        "inputs": {name: dataclasses.asdict(spec) for name, spec in request.inputs.items()},
        "dims": {name: dataclasses.asdict(span) for name, span in request.dims.items()},
        "weights": request.weights and _absolute(request.weights),
        "sample": request.sample and _absolute(request.sample),
        "opset": request.opset,
        "trust_pickle": request.trust_pickle,
        "options": dict(request.options),
        "python_path": [_absolute(folder) for folder in request.python_path],
        "seed": request.seed,
    }


def _absolute(path: str) -> str:
    """Return `path` from the root: the framework's loaders resolve relative names in ways of their own."""
    return str(Path(path).absolute())


def _portable(array: np.ndarray) -> np.ndarray:
    """Return `array` in a type that .npz can hold: bfloat16 and float8 become float32, which holds their values."""
    import numpy as np

    return array if array.dtype.kind in "biuf" else array.astype(np.float32)


def _remove_results(workdir: Path) -> None:
    import shutil

    for path in workdir.glob(f"{MODEL}*"):
        path.unlink()
    shutil.rmtree(workdir / "torchscript", ignore_errors=True)
