"""TensorFlow Lite files: run by the interpreter, converted by tf2onnx from the file itself."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from ._worker import Request, WorkerError
from ._worker_tensorflow_size import refuse_large
from ._worker_tensorflow_subject import Dim, Graph, Port, Subject

_DECORATION = re.compile(r"^serving_default_|^StatefulPartitionedCall/|:\d+$")
"""What the converter adds to an author's names."""


def load_lite(request: Request) -> Subject:
    """Return the subject of a .tflite file. Raises WorkerError (source) when it is damaged."""
    path = request["source"]
    refuse_large(Path(path).stat().st_size)
    _check(path)
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


def _check(path: str) -> None:
    """Raise WorkerError (source) when a part of the file is not in it: the interpreter trusts all its offsets."""
    from tensorflow.lite.python import schema_py_generated as schema  # pyright: ignore[reportMissingImports]

    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
            broken = _broken_index(model)
        except (struct.error, ValueError, TypeError, IndexError, OverflowError):
            broken = "parts of it lie beyond its end"
        else:
            del model  # which has views of the file
        if broken:
            raise WorkerError("source", f"'{path}' is damaged or cut short ({broken}).", "Copy the file again.")


def _broken_index(model: Any) -> str:
    """Return which of the model's numbers of its own parts names none, empty when each names one."""
    for graph in model.subgraphs or []:
        tensors, operators = len(graph.tensors or []), graph.operators or []
        sides = [side for part in (graph, *operators) for side in (part.inputs, part.outputs)]
        used = [index for side in sides for index in _listed(side)]
        if any(not -1 <= index < tensors for index in used):
            return "an operator reads a tensor that is not there"
        if any(not 0 <= each.opcodeIndex < len(model.operatorCodes or []) for each in operators):
            return "an operator has no kind"
        if any(not 0 <= each.buffer < len(model.buffers or []) for each in graph.tensors or []):
            return "a tensor has no buffer"
    return ""


def _listed(indices: Any) -> list[int]:
    return [] if indices is None else [int(index) for index in indices]


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
