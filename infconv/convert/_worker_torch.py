"""The PyTorch half of the worker: opens a model, exports it to ONNX, and runs the original.

Runs in the framework's interpreter, loaded by `_worker.py`. Operations:

- `export` {source, format, workdir, inputs, dims, weights, sample, opset, trust_pickle, options,
  python_path, seed}: writes
  `model.onnx` (and `model.onnx.data`) to workdir and tells producer, versions, notes, attempts, inputs and outputs.
- `run` {inputs, outputs}: runs the model that `export` opened on the arrays of the .npz `inputs`, by ONNX input name,
  and writes the .npz `outputs`, by ONNX output name. Types that numpy lacks travel as float32; the answer tells the
  true ones.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

# The reference is computed on the CPU, whatever else the machine has; code that asks for a GPU takes its other branch.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch

from ._worker import Handler, Request, WorkerError, load_handlers
from ._worker_torch_load import Loaded, load
from ._worker_torch_roads import export, operator_table
from ._worker_torch_subject import Subject, open_module, open_program

OPTIONS = {"optimize": bool, "dtype": str, "handlers": str}
"""What `options` may hold: `optimize` runs the exporter's own optimizer; `dtype` of a Hugging Face model; `handlers`, a
module whose `handlers` map operators that the exporter lacks (and may define them: it is imported before the model)."""


def operations() -> dict[str, Handler]:
    """Return the handlers of one worker."""
    # One global: the thread count belongs to the process, and this process to one model.
    torch.set_num_threads(os.cpu_count() or 1)
    session = Session()
    return {"export": session.export, "run": session.run}


class Session:
    """The model that stays open between requests."""

    def __init__(self) -> None:
        self._subject: Subject | None = None
        self._seed = 0

    def export(self, request: Request) -> dict[str, object]:
        """Open the source and write its ONNX form."""
        _check_options(request["options"])
        sys.path[:0] = [folder for folder in request["python_path"] if folder not in sys.path]
        self._seed = request["seed"]
        torch.manual_seed(self._seed)
        request = {**request, "handlers": operator_table(load_handlers(request["options"]))}
        loaded = load(request)
        subject = _open(loaded, request)
        self._subject = subject
        attempts = export(subject, request)
        return {
            "producer": f"torch {torch.__version__.partition('+')[0]}",
            "versions": _versions(loaded.packages),
            "notes": subject.notes,
            "attempts": attempts,
            "value_limits": {each.name: each.high for each in subject.inputs if each.high is not None},
            "dims": subject.dim_ranges,
        }

    def run(self, request: Request) -> dict[str, object]:
        """Run the original model on an .npz."""
        if self._subject is None:
            raise WorkerError("bug", "No model is open.")
        with np.load(request["inputs"], allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
        torch.manual_seed(self._seed)
        tensors = self._subject.take(given)
        outputs = self._subject.run(tensors)
        names = self._subject.output_names
        arrays_out = {name: _to_numpy(tensor) for name, tensor in zip(names, outputs, strict=True)}
        with Path(request["outputs"]).open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays_out)
        return {"outputs": names}


def _open(loaded: Loaded, request: Request) -> Subject:
    if loaded.program is not None:
        return open_program(loaded, request)
    return open_module(loaded, request)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    try:
        return plain.numpy()
    except TypeError:  # bfloat16 and the float8 types: float32 holds each of their values
        return plain.to(torch.float32).numpy()


def _check_options(options: dict[str, object]) -> None:
    for name, value in options.items():
        if name not in OPTIONS:
            raise WorkerError(
                "usage", f"The torch frontend has no option '{name}'.", f"Known: {', '.join(sorted(OPTIONS))}."
            )
        if not isinstance(value, OPTIONS[name]):
            raise WorkerError("usage", f"Option '{name}' takes a {OPTIONS[name].__name__}, not {value!r}.")


def _versions(packages: list[str]) -> dict[str, str]:
    names = ["torch", "numpy", "onnx", "onnx_ir", "onnxscript", *packages]
    return {name: importlib.metadata.version(name) for name in names if _installed(name)}


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
