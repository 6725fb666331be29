"""The TensorFlow half of the worker: opens a model, exports it to ONNX, and runs the original.

Runs in the framework's interpreter, loaded by `_worker.py`. Operations:

- `export` {source, format, workdir, inputs, dims, sample, opset, trust_pickle, options, python_path, seed}: writes
  `model.onnx` and `model.onnx.data` to workdir and tells producer, versions, notes, attempts, dims, inputs, outputs.
- `run` {inputs, outputs}: runs the model that `export` opened on the arrays of the .npz `inputs`, by ONNX input name,
  and writes the .npz `outputs`, by ONNX output name. Strings travel as numpy's unicode type.

The road is the same for every format but .tflite: a function with a signature, its variables frozen to constants, then
tf2onnx. Keras files are exported to a SavedModel first, since tf2onnx misreads Keras models that it is given directly.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from pathlib import Path

# The reference is computed on the CPU, whatever else the machine has.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# A user's keras.json may name another framework.
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import tensorflow as tf

from ._worker import Handler, Request, WorkerError, load_handlers
from ._worker_tensorflow_convert import to_onnx
from ._worker_tensorflow_dims import name_dims, name_output_dims
from ._worker_tensorflow_finish import finish
from ._worker_tensorflow_load import load
from ._worker_tensorflow_subject import Subject

OPTIONS = ("signature", "tags", "outputs", "handlers", "libraries")
"""What `options` may hold: `signature` and `tags` of a SavedModel; `outputs` of a frozen graph; `handlers`, a module
with conversions of custom operators; `libraries`, files of custom operators for tf.load_op_library."""


def operations() -> dict[str, Handler]:
    """Return the handlers of one worker."""
    session = Session()
    return {"export": session.export, "run": session.run}


class Session:
    """The model that stays open between requests."""

    def __init__(self) -> None:
        self._subject: Subject | None = None

    def export(self, request: Request) -> dict[str, object]:
        """Open the source and write its ONNX form."""
        options = _checked_options(request["options"])
        sys.path[:0] = [folder for folder in request["python_path"] if folder not in sys.path]
        handlers = load_handlers(options)
        _load_libraries(options.get("libraries", []))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # written for the authors of the libraries
            subject = load(request)
            name_dims(subject, request)
            name_output_dims(subject)
            model, attempts = to_onnx(subject, handlers, request["opset"])
            finish(model, subject, request["workdir"])
        self._subject = subject
        return {
            "producer": f"tensorflow {tf.__version__}",
            "versions": _versions(subject.packages),
            "notes": subject.notes,
            "attempts": attempts,
            "inputs": [each.describe() for each in subject.inputs],
            "outputs": [each.name for each in subject.outputs],
            "value_limits": {},
            "dims": {},
        }

    def run(self, request: Request) -> dict[str, object]:
        """Run the original model on an .npz."""
        if self._subject is None:
            raise WorkerError("bug", "No model is open.")
        with np.load(request["inputs"], allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
        outputs = self._subject.run(given)
        with Path(request["outputs"]).open("wb") as stream:
            np.savez(stream, allow_pickle=False, **outputs)
        return {"outputs": list(outputs)}


def _load_libraries(paths: list[str]) -> None:
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            tf.load_op_library(str(Path(path).absolute()))
        except (tf.errors.NotFoundError, OSError) as error:
            raise WorkerError("usage", f"The operator library '{path}' cannot be loaded: {error}") from error


def _checked_options(options: Request) -> Request:
    for name in options:
        if name not in OPTIONS:
            raise WorkerError(
                "usage", f"The tensorflow frontend has no option '{name}'.", f"Known: {', '.join(OPTIONS)}."
            )
    return options


def _versions(packages: list[str]) -> dict[str, str]:
    found = {"tensorflow": tf.__version__}
    for name in ("numpy", "onnx", "tf2onnx", *packages):
        found[name] = importlib.metadata.version(name)
    return found
