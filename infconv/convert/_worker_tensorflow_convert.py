"""From the frozen graph to ONNX with tf2onnx: without its copies of the model, and without its silence about errors."""

from __future__ import annotations

import gc
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tf2onnx import optimizer  # pyright: ignore[reportMissingImports]
from tf2onnx.tfonnx import process_tf_graph  # pyright: ignore[reportMissingImports]

from . import _worker_tensorflow_operators as _operators
from ._worker import WorkerError, first_line, ran_out_of_memory
from ._worker_tensorflow_freeze import release_memory
from ._worker_tensorflow_subject import Graph, Subject

assert _operators

OPSET = 17
"""What tf2onnx writes best; it ends at 18. Newer ones are made by infconv's own conversion."""
_OPSETS = range(11, 19)
_LOWERED_HINT = (
    "The graph was frozen with its loops taken apart. Convert the SavedModel or the Keras file, or freeze it with "
    "convert_variables_to_constants_v2(function, lower_control_flow=False)."
)
_WRAPPERS = re.compile(r"^(StatefulPartitionedCall(_\d+)?|PartitionedCall(_\d+)?|while|body|cond|then|else)/")


class _PassFailedError(Exception):
    """One of tf2onnx's own optimizer passes raised an error and left the graph half changed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Errors(logging.Handler):
    """Keeps what tf2onnx only logs: it ends well with an invalid model after an operator that it does not know."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.unknown: dict[str, str] = {}
        """Node -> operator that has no conversion."""
        self.failed: dict[str, str] = {}
        """Node -> why its conversion failed."""
        self.others: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Sort `record` by what it says."""
        arguments: Any = record.args
        if record.msg.startswith("Tensorflow op ["):
            self.unknown[str(arguments[0])] = str(arguments[1])
        elif record.msg.startswith("Failed to convert node"):
            error = record.exc_info[1] if record.exc_info else None
            self.failed[str(arguments[0])] = first_line(error) if error else ""
        elif not record.msg.startswith("Unsupported ops"):
            self.others.append(record.getMessage())


def to_onnx(subject: Subject, handlers: Mapping[str, Any], opset: int | None) -> tuple[Any, list[dict[str, object]]]:
    """Return the ModelProto and what was tried. Raises WorkerError of kind unsupported that names the operator."""
    gc.collect()
    # What was imported stays: the collections below need not look at it again and again.
    gc.freeze()
    graph = subject.make_graph()
    release_memory()
    if graph.definition is not None:
        _set_shapes(graph.definition, subject)
    wanted = min(max(opset or OPSET, _OPSETS.start), _OPSETS.stop - 1)
    attempts: list[dict[str, object]] = []
    skipped: set[str] = set()
    while True:
        started = time.monotonic()
        error = ""
        try:
            model = _convert(graph, subject, handlers, wanted, skipped)
        except _PassFailedError as failed:
            skipped.add(failed.name)
            error = f"tf2onnx's pass {failed.name} failed: {first_line(failed.__cause__ or failed)}"
        seconds = round(time.monotonic() - started, 3)
        attempts.append({"road": "tf2onnx", "ok": not error, "seconds": seconds, "error": error or None})
        release_memory()
        if not error:
            return model, attempts  # pyright: ignore[reportPossiblyUnboundVariable]


def _convert(graph: Graph, subject: Subject, handlers: Mapping[str, Any], opset: int, skipped: set[str]) -> Any:
    errors = _Errors()
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(errors)
    try:
        with tf.Graph().as_default() as tf_graph:
            if graph.tflite is None:
                tf.import_graph_def(graph.definition, name="")
            converted = _process(tf_graph, graph, subject, handlers, opset)
            _raise_unsupported(errors, graph)
        release_memory()
        converted = _optimize(converted, skipped)
        model = converted.make_model("model")
    finally:
        logger.removeHandler(errors)
    _raise_unsupported(errors, graph)
    return model


def _process(tf_graph: Any, graph: Graph, subject: Subject, handlers: Mapping[str, Any], opset: int) -> Any:
    names = {each.tensor: each.name for each in (*subject.inputs, *subject.outputs)}
    common = {
        "opset": opset,
        "continue_on_error": True,
        "custom_op_handlers": {name: (handler, []) for name, handler in handlers.items()},
        "tensors_to_rename": names,
    }
    try:
        if graph.tflite is not None:
            return process_tf_graph(None, tflite_path=graph.tflite, **common)
        return process_tf_graph(
            tf_graph,
            input_names=[each.tensor for each in subject.inputs],
            output_names=[each.tensor for each in subject.outputs],
            const_node_values=graph.values,
            initialized_tables=graph.tables,
            **common,
        )
    except Exception as error:  # tf2onnx raises whatever it meets
        if ran_out_of_memory(error):
            raise
        raise WorkerError(
            "unsupported",
            f"tf2onnx cannot convert the model: {type(error).__name__}: {first_line(error)}",
            "Change the part named above, or give more of the inputs' dimensions fixed sizes (--input).",
        ) from error


def _set_shapes(definition: Any, subject: Subject) -> None:
    """Write the inputs' dims into the graph, so that shapes follow from what the user fixed."""
    ports = {each.tensor.partition(":")[0]: each for each in subject.inputs if each.dims is not None}
    for node in definition.node:
        node.attr.pop("_output_shapes", None)
        if node.op == "Placeholder" and node.name in ports:
            sizes = [dim if isinstance(dim, int) else None for dim in ports[node.name].dims or []]
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(sizes).as_proto())


def _optimize(graph: Any, skipped: set[str]) -> Any:
    """Run tf2onnx's passes to a fixpoint as it does, but without a copy of the whole graph before each.

    The copies are there to recover from a pass that fails; here the conversion is done again without that pass.
    """
    changed, iteration = True, 0
    while changed:
        changed = False
        for name, factory in optimizer._get_optimizers().items():
            if name in skipped:
                continue
            step = factory()
            try:
                graph = step.optimize(graph, iteration)
            except Exception as error:  # passes raise whatever they meet
                if ran_out_of_memory(error):
                    raise
                raise _PassFailedError(name) from error
            changed = changed or step.graph_been_opt
            release_memory()
        iteration += 1
    graph.topological_sort(graph.get_nodes())
    return graph


def _raise_unsupported(errors: _Errors, graph: Graph) -> None:
    """Raise WorkerError for what was logged, the operator and its layer first, with what can be done about it."""
    if errors.unknown:
        node, kind = next(iter(errors.unknown.items()))
        kinds = list(dict.fromkeys(errors.unknown.values()))
        more = f" Also without one: {', '.join(kinds[1:6])}." if len(kinds) > 1 else ""
        message = f"The operator {kind} ('{node}'{_in_layer(node)}) has no conversion to ONNX.{more}"
        hint = (
            "Write that layer with other operators, or convert the operator yourself: source option handlers=MODULE "
            "(docs/custom-operators.md)."
        )
    elif errors.failed:
        node, reason = next(iter(errors.failed.items()))
        message = f"tf2onnx cannot convert '{node}'{_in_layer(node)}: {reason}"
        hint = "Write that layer with other operators or attributes, or fix more dimensions (--input)."
    elif errors.others:
        message, hint = f"tf2onnx reports an error: {errors.others[0]}", "Report it to its developers, with the model."
    else:
        return
    raise WorkerError("unsupported", message, _LOWERED_HINT if _is_lowered(graph) else hint)


def _is_lowered(graph: Graph) -> bool:
    """Tell whether loops were taken apart into TensorFlow 1's operators around TensorFlow 2's lists: no way back."""
    kinds = {node.op for node in graph.definition.node} if graph.definition is not None else set()
    return "LoopCond" in kinds and any(kind.startswith("TensorList") for kind in kinds)


def layer_of(node: str) -> str:
    """Return the layer that a node belongs to: its name's scopes, without those that TensorFlow adds."""
    previous = ""
    while previous != node:
        previous, node = node, _WRAPPERS.sub("", node)
    return node.rpartition("/")[0]


def _in_layer(node: str) -> str:
    layer = layer_of(node)
    return f" of layer '{layer}'" if layer else ""
