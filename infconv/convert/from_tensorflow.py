"""Frontend `tensorflow`: SavedModels, Keras files, frozen graphs and TensorFlow Lite models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from infconv.convert import _tensorflow_files as files
from infconv.convert._base import Frontend, SourceRequest
from infconv.convert._worker_source import WorkerSource, open_in_worker


class FromTensorflow(Frontend):
    """Exports with tf2onnx in a worker process, and keeps the model open there as the reference."""

    summary: ClassVar[str] = "TensorFlow: SavedModel, Keras (2 and 3), frozen graphs, TensorFlow Lite"
    formats: ClassVar[Mapping[str, str]] = {
        files.SAVED_MODEL: "SavedModel folder of TensorFlow 1 or 2 (source options signature, tags)",
        files.KERAS: ".keras of Keras 3, or of Keras 2 by way of tf_keras",
        files.KERAS_H5: ".h5 of Keras 2 or 3; Lambda layers only with --trust-pickle",
        files.FROZEN: "frozen graph .pb (inputs and outputs are found; --input and source option outputs override)",
        files.TFLITE: ".tflite, float or quantised (its Quantize and Dequantize are kept)",
        files.WEIGHTS: "checkpoint: refused, it holds no model",
    }
    requires: ClassVar[Mapping[str, str]] = {
        "tensorflow": "tensorflow",
        "tf2onnx": "tensorflow",
        "onnx": "tensorflow",
    }
    takes: ClassVar[frozenset[str]] = frozenset({"--python", "--trust-pickle", "source options"})

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return the format of `source` from its content: zip entries, magic numbers, protobuf tags."""
        return files.find_format(source)

    def open(self, request: SourceRequest, workdir: Path) -> WorkerSource:
        """Export `request.source` to `workdir`.

        Raises SourceError, UsageError, UnsupportedError (the operator, its layer), DependencyError, ResourceError.
        """
        files.refuse(request.source, request.format)
        path = Path(request.source)
        if request.format == files.SAVED_MODEL and path.is_file():
            request = dataclasses.replace(request, source=str(path.parent))
        return open_in_worker("tensorflow", request, request.python, workdir)
