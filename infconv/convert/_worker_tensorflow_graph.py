"""Frozen graphs: a GraphDef with its variables as constants, whose inputs and outputs are found or told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from ._worker import Request, WorkerError
from ._worker_tensorflow_freeze import optimise
from ._worker_tensorflow_size import refuse_large
from ._worker_tensorflow_subject import Graph, Port, Subject, shape_of

_VARIABLES = {"Variable", "VariableV2", "VarHandleOp"}
_NO_RESULT = {"NoOp", "Const", "Assert", "Placeholder", "PlaceholderWithDefault", "Print", "PrintV2"}
"""Operators that end a graph without being its result."""


def load_frozen(request: Request) -> Subject:
    """Return the subject of a .pb. Raises WorkerError: source (variables, damage), usage (unknown names)."""
    data = Path(request["source"]).read_bytes()
    refuse_large(len(data))
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(data)
    del data
    held = next((node.name for node in definition.node if node.op in _VARIABLES), None)
    if held:
        raise WorkerError(
            "source",
            f"'{request['source']}' is no frozen graph: '{held}' is a variable, whose value is in a checkpoint.",
            "Freeze it (tf.compat.v1.graph_util.convert_variables_to_constants), or convert the SavedModel.",
        )
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    graph = wrapped.graph
    results = _told_outputs(graph, request["options"].get("outputs")) or _found_outputs(graph)
    if not results:
        raise WorkerError("usage", "The graph's outputs cannot be found.", "Name them with the source option outputs.")
    feeds = _inputs(graph, results, list(request["inputs"]))
    inputs = [Port(name, t.name, t.dtype, shape_of(t)) for name, t in zip(_names(feeds), feeds, strict=True)]
    outputs = [Port(name, t.name, t.dtype, shape_of(t)) for name, t in zip(_names(results), results, strict=True)]
    run = wrapped.prune(feeds, results)
    definition = _cut(definition, feeds, results)

    def call(given: Mapping[str, Any]) -> Mapping[str, Any]:
        found = run(*(tf.constant(given[each.name], each.dtype) for each in inputs))
        return {each.name: value for each, value in zip(outputs, found, strict=True)}

    def make_graph() -> Graph:
        return optimise(definition, [each.tensor for each in inputs], [each.tensor for each in outputs])

    shown = ", ".join(each.name for each in inputs), ", ".join(each.name for each in outputs)
    note = f"Found in the graph: inputs {shown[0]}; outputs {shown[1]}."
    return Subject(inputs, outputs, call, make_graph, [note])


def _cut(definition: Any, feeds: Sequence[Any], results: Sequence[Any]) -> Any:
    """Return what the results need, with the feeds as placeholders and other defaults of placeholders as constants."""
    chosen = {tensor.op.name: tensor for tensor in feeds}
    for node in definition.node:
        tensor = chosen.get(node.name)
        if tensor is not None and node.op != "Placeholder":
            if tensor.value_index or len(tensor.op.outputs) > 1:
                raise WorkerError(
                    "usage",
                    f"'{tensor.name}' cannot be an input: its operator {node.op} has several results.",
                    "Name the tensors that follow it.",
                )
            node.Clear()
            node.name, node.op = tensor.op.name, "Placeholder"
            node.attr["dtype"].type = tensor.dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())
        elif tensor is None and node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            node.attr["T"].type = node.attr["dtype"].type
            del node.attr["dtype"], node.attr["shape"]
    return tf.compat.v1.graph_util.extract_sub_graph(definition, list({tensor.op.name for tensor in results}))


def _told_outputs(graph: Any, told: Any) -> list[Any]:
    names = [told] if isinstance(told, str) else list(told or [])
    return [_tensor(graph, str(name)) for name in names]


def _found_outputs(graph: Any) -> list[Any]:
    """Return the tensors that nobody reads; those that follow from no input only if there are no others."""
    found = list(_unread(graph))
    fed = {op.name for op in graph.get_operations() if op.type.startswith("Placeholder")}
    return [tensor for tensor in found if fed & _needed([tensor])] or found


def _unread(graph: Any) -> Iterator[Any]:
    for operation in graph.get_operations():
        if operation.type in _NO_RESULT or any(tensor.consumers() for tensor in operation.outputs):
            continue
        yield from (tensor for tensor in operation.outputs if tensor.dtype not in (tf.resource, tf.variant))


def _inputs(graph: Any, results: Sequence[Any], told: Sequence[str]) -> list[Any]:
    """Return the placeholders that the results depend on, or, when one is told that is none, what is told."""
    chosen = [_tensor(graph, name) for name in told]
    if any(tensor.op.type not in ("Placeholder", "PlaceholderWithDefault") for tensor in chosen):
        return chosen
    needed = _needed(results)
    found = [op.outputs[0] for op in graph.get_operations() if op.type == "Placeholder" and op.name in needed]
    kept = {tensor.name for tensor in found}
    return found + [tensor for tensor in chosen if tensor.name not in kept]


def _needed(results: Sequence[Any]) -> set[str]:
    seen: set[str] = set()
    todo = [tensor.op for tensor in results]
    while todo:
        operation = todo.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            todo += [tensor.op for tensor in operation.inputs]
    return seen


def _tensor(graph: Any, name: str) -> Any:
    """Return the tensor `name`, which may leave out `:0`. Raises WorkerError with what is like it."""
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError) as error:
        import difflib

        known = [operation.name for operation in graph.get_operations()]
        close = difflib.get_close_matches(name.partition(":")[0], known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"It has {len(known)} operators."
        raise WorkerError("usage", f"The graph has no tensor '{name}'.", hint) from error


def _names(tensors: Sequence[Any]) -> list[str]:
    """Return unique names: an operator's own for its first result, numbered for the others."""
    names: list[str] = []
    for tensor in tensors:
        name = tensor.op.name if tensor.value_index == 0 else f"{tensor.op.name}_{tensor.value_index}"
        while name in names:
            name += "_"
        names.append(name)
    return names
