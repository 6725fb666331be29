"""TensorFlow Lite files: run by the interpreter, converted by tf2onnx from the file itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from ._worker import Request
from ._worker_tensorflow_freeze import refuse_large
from ._worker_tensorflow_subject import Dim, Graph, Port, Subject

_DECORATION = re.compile(r"^serving_default_|^StatefulPartitionedCall/|:\d+$")
"""What the converter adds to an author's names."""


def load_lite(request: Request) -> Subject:
    """Return the subject of a .tflite file."""
    path = request["source"]
    refuse_large(Path(path).stat().st_size)
    interpreter = tf.lite.Interpreter(model_path=path)
    titles = _titles(interpreter)
    details = [
        sorted(found, key=lambda each: list(title).index(each["index"])) if title else found
        for found, title in zip(
            (interpreter.get_input_details(), interpreter.get_output_details()), titles, strict=True
        )
    ]
    inputs, outputs = (_ports(each, title) for each, title in zip(details, titles, strict=True))

    def call(given: Mapping[str, Any]) -> Mapping[str, Any]:
        for port, detail in zip(inputs, details[0], strict=True):
            interpreter.resize_tensor_input(detail["index"], given[port.name].shape)
        interpreter.allocate_tensors()
        for port, detail in zip(inputs, details[0], strict=True):
            interpreter.set_tensor(detail["index"], given[port.name])
        interpreter.invoke()
        # get_tensor copies, as it must: the next run writes to the same memory.
        return {port.name: interpreter.get_tensor(d["index"]) for port, d in zip(outputs, details[1], strict=True)}

    return Subject(inputs, outputs, call, lambda: Graph(tflite=path))


def _titles(interpreter: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Return tensor index -> name of the inputs and of the outputs, as the file's only signature has them."""
    signatures = list(interpreter._get_full_signature_list().values())
    if len(signatures) != 1:
        return {}, {}
    found = tuple({index: name for name, index in signatures[0][side].items()} for side in ("inputs", "outputs"))
    return found[0], found[1]


def _ports(details: list[dict[str, Any]], titles: Mapping[int, str]) -> list[Port]:
    names: list[str] = []
    for detail in details:
        plain = _DECORATION.sub("", _DECORATION.sub("", detail["name"])) or "value"
        name = titles.get(detail["index"], plain)
        while name in names:
            name += "_"
        names.append(name)
    return [
        Port(name, detail["name"], tf.as_dtype(detail["dtype"]), _dims(detail))
        for name, detail in zip(names, details, strict=True)
    ]


def _dims(detail: Mapping[str, Any]) -> list[Dim]:
    signature = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return [None if size < 0 else int(size) for size in signature]
