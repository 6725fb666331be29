"""From what tf2onnx returns to the file that infconv reads: names, dimensions, origins, weights beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf

from ._worker_checker import check
from ._worker_tensorflow_convert import layer_of
from ._worker_tensorflow_loops import count_trips, free_invariants
from ._worker_tensorflow_subject import Port, Subject

MODEL = "model.onnx"
DATA = "model.onnx.data"
INLINE_BYTES = 256
"""Smaller tensors stay in the model file."""


def finish(model: Any, subject: Subject, workdir: str) -> None:
    """Write `model` to workdir as model.onnx with its weights in model.onnx.data. Raises WorkerError (unsupported)."""
    graph = model.graph
    graph.name = "model"
    graph.ClearField("value_info")
    _restore_inputs(graph, subject.inputs)
    _restore_outputs(graph, subject.outputs)
    free_invariants(graph)
    count_trips(graph)
    for inner in _graphs(graph):
        _tidy(inner)
    folder = Path(workdir)
    path = folder / MODEL
    for old in (path, folder / DATA):
        old.unlink(missing_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=True, location=DATA, size_threshold=INLINE_BYTES)
    check(str(path), "tf2onnx")


def _restore_inputs(graph: Any, ports: list[Port]) -> None:
    """Give the graph the inputs of the model in its order, those too that nothing reads."""
    known = {value.name: value.type for value in graph.input}
    del graph.input[:]
    for port in ports:
        kind = known[port.name].tensor_type.elem_type if port.name in known else _onnx_type(port.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(port.name, kind, port.dims))


def _restore_outputs(graph: Any, ports: list[Port]) -> None:
    """Order the outputs as the model has them, with its names of dims, not those that tf2onnx made up."""
    found = {value.name: value for value in graph.output}
    if set(found) != {port.name for port in ports}:
        raise ValueError(f"the conversion has the outputs {sorted(found)}, the model {[p.name for p in ports]}")
    del graph.output[:]
    for port in ports:
        kind = found[port.name].type.tensor_type.elem_type
        graph.output.append(onnx.helper.make_tensor_value_info(port.name, kind, port.dims))


def _onnx_type(dtype: Any) -> int:
    if dtype == tf.string:
        return onnx.TensorProto.STRING
    return onnx.helper.np_dtype_to_tensor_dtype(dtype.as_numpy_dtype)


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _tidy(graph: Any) -> None:
    """Tell of each node the layer that it came from; drop texts for tf2onnx's authors."""
    graph.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                dim.ClearField("dim_param")
    for node in graph.node:
        node.ClearField("doc_string")
        layer = layer_of(node.name)
        if layer:
            node.metadata_props.append(onnx.StringStringEntryProto(key="infconv.module", value=layer))
