"""Variables become constants, and large constants travel beside the graph: every step of TensorFlow's copies its graph.

With its weights in it, the graph of ResNet50 (0.1 GB) took 2 GB while it was frozen and optimised.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tf2onnx import graph as onnx_graph  # pyright: ignore[reportMissingImports]
from tf2onnx import tf_loader  # pyright: ignore[reportMissingImports]

from ._worker_tensorflow_size import bytes_of, refuse_large
from ._worker_tensorflow_subject import Graph, Port

LARGE_CONSTANT = 64 << 10
"""Constants of fewer bytes stay in the graph, where TensorFlow's and tf2onnx's folding see them."""


def freeze(owner: Any, function: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> Graph:
    """Return the graph of `function`, whose variables `owner` holds; the function can be called as before."""
    check_size(function)
    captures = function.graph.function_captures
    kept = dict(captures.by_val_internal), dict(captures.by_val_external), list(function._captured_inputs)
    values: dict[str, bytes] = {}

    def freeze_light(concrete: Any, feeds: list[str], results: list[str], *_: Any) -> Any:
        definition = tf_loader.fix_freezing_errors_part2(tf_loader.convert_variables_to_constants_large_model(concrete))
        found = optimise(definition, feeds, results)
        values.update(found.values)
        return found.definition

    original = tf_loader.from_function
    tf_loader.from_function = freeze_light
    try:
        with tf.device("/cpu:0"):
            names = [each.tensor for each in inputs], [each.tensor for each in outputs]
            definition, tables = tf_loader.from_trackable(owner, function, *names, False)
    finally:
        tf_loader.from_function = original
        # tf2onnx takes the tables out of the captures and, since TensorFlow 2.13, does not put them back.
        for target, before in ((captures.by_val_internal, kept[0]), (captures.by_val_external, kept[1])):
            target.clear()
            target.update(before)
        function._captured_inputs[:] = kept[2]
    return Graph(definition, tables, values)


def optimise(definition: Any, inputs: list[str], outputs: list[str]) -> Graph:
    """Return what `outputs` need of a frozen graph, folded and inlined by TensorFlow, large constants beside it."""
    values = _take_out(definition)
    # A new message: the old one keeps the memory of what was taken out.
    light = tf.compat.v1.GraphDef.FromString(definition.SerializeToString())
    definition.Clear()
    # Grappler wants a graph as the current one, whatever it holds.
    with tf.Graph().as_default(), tf.device("/cpu:0"):
        light = tf_loader.tf_optimize(inputs, outputs, light)
    _put_back(light, values)
    return Graph(light, None, values)


def _take_out(definition: Any) -> dict[str, bytes]:
    """Turn large constants into placeholders, which nothing folds, and return their contents."""
    values: dict[str, bytes] = {}
    for node in definition.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is not None and len(tensor.tensor_content) > LARGE_CONSTANT:
            values[node.name] = tensor.tensor_content
            node.op = "Placeholder"
            node.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
            del node.attr["value"]
    return values


def _put_back(definition: Any, values: dict[str, bytes]) -> None:
    """Turn the placeholders into constants again, whose contents stay in `values`, and read them directly."""
    aliases: dict[str, str] = {}
    for node in definition.node:
        if node.name in values and node.op == "Placeholder":
            shape = node.attr["shape"].shape
            node.op = "Const"
            node.attr["value"].tensor.dtype = node.attr["dtype"].type
            node.attr["value"].tensor.tensor_shape.CopyFrom(shape)
            del node.attr["shape"]
        elif node.op == "Identity" and len(node.input) == 1 and node.input[0] in values:
            aliases[node.name] = node.input[0]
    for node in definition.node:
        for i, name in enumerate(node.input):
            node.input[i] = aliases.get(name.removesuffix(":0"), name)


def check_size(function: Any) -> None:
    """Raise WorkerError of kind unsupported for a model that no ONNX graph can hold, before memory is gone."""
    refuse_large(bytes_of(function.graph.variables) + function.graph.as_graph_def().ByteSize())


def release_memory() -> None:
    """Return freed memory to the system: what one step leaves in the allocator's lists adds up otherwise."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def _update_proto(node: Any, external_tensor_storage: Any = None) -> None:
    """Leave constants alone: tf2onnx copies each into memory that lives as long as the graph, on every pass."""
    if not node.is_const():
        _original_update_proto(node, external_tensor_storage)


_original_update_proto = onnx_graph.Node.update_proto
onnx_graph.Node.update_proto = _update_proto
