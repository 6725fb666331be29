"""Bring a freshly parsed ModelProto into the forms that the graph representation holds, losing nothing.

onnx_ir has no sparse tensors and no map types, and reads attributes by their declared type. Sparse tensors become dense
ones; types that it cannot hold are kept aside and written back on saving.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from infconv.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

_FIRST_TYPED_IR = 3
"""Attributes declare their type from IR version 3 on."""


def normalise(proto: onnx.ModelProto) -> dict[str, bytes]:
    """Change `proto` in place; return value name -> serialised TypeProto of the types that were set aside.

    Raises UnsupportedError for what would be lost.
    """
    if proto.training_info:
        raise UnsupportedError(
            "The model carries training information (gradients, optimizer steps).",
            "Export it for inference: training graphs cannot be converted.",
        )
    aside: dict[str, bytes] = {}
    for graph in _graphs(proto.graph):
        _densify_initializers(graph)
        _set_types_aside(graph, aside)
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nodes(nodes):
            _normalise_node(node, proto.ir_version)
    for opset in proto.opset_import:
        if opset.domain == "ai.onnx":
            opset.domain = ""
        _check_opset(opset)
    return aside


def _check_opset(opset: onnx.OperatorSetIdProto) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not opset.domain and opset.version > newest:
        raise UnsupportedError(
            f"The model is of opset {opset.version}; the newest that is known here is {newest}.",
            "Upgrade with: pip install --upgrade onnx onnxruntime, or export the model with an older opset.",
        )


def _nodes(nodes: Iterator[onnx.NodeProto] | object) -> Iterator[onnx.NodeProto]:
    """Yield nodes, those of subgraphs included."""
    todo = [nodes]
    while todo:
        for node in todo.pop():  # pyright: ignore[reportGeneralTypeIssues]  (a repeated field)
            yield node
            if node.attribute:
                todo += [graph.node for graph in _subgraphs(node)]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found += attribute.graphs
    return found


def inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors in attributes and subgraphs, those of functions included."""
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nodes(nodes):
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
            for graph in _subgraphs(node):
                yield from graph.initializer


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and the graphs in its nodes, at every depth."""
    todo = [graph]
    for current in todo:  # grows while it is walked
        yield current
        for node in current.node:
            if node.attribute:
                todo += _subgraphs(node)


def _densify_initializers(graph: onnx.GraphProto) -> None:
    from onnx import numpy_helper

    for sparse in graph.sparse_initializer:
        graph.initializer.append(numpy_helper.from_array(_dense(sparse), sparse.values.name))
    graph.ClearField("sparse_initializer")


def _normalise_node(node: onnx.NodeProto, ir_version: int) -> None:
    import onnx
    from onnx import numpy_helper

    for attribute in node.attribute:
        if ir_version < _FIRST_TYPED_IR and not attribute.type:
            attribute.type = _guess_type(attribute)
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
            if node.op_type != "Constant":
                raise UnsupportedError(
                    f"Node '{node.name}' ({node.op_type}) has a sparse tensor, which no target reads.",
                    "Export the model with dense tensors.",
                )
            dense = onnx.helper.make_attribute("value", numpy_helper.from_array(_dense(attribute.sparse_tensor)))
            attribute.CopyFrom(dense)


def _guess_type(attribute: onnx.AttributeProto) -> onnx.AttributeProto.AttributeType:
    """Return the type that the filled field implies."""
    import onnx

    kinds = onnx.AttributeProto
    singular = {"s": kinds.STRING, "t": kinds.TENSOR, "g": kinds.GRAPH, "i": kinds.INT, "f": kinds.FLOAT}
    plural = {"floats": kinds.FLOATS, "ints": kinds.INTS, "strings": kinds.STRINGS}
    plural |= {"tensors": kinds.TENSORS, "graphs": kinds.GRAPHS}
    filled = {descriptor.name for descriptor, _ in attribute.ListFields()}
    return next((kind for name, kind in {**singular, **plural}.items() if name in filled), kinds.UNDEFINED)


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Return the dense tensor; indices are [nnz] positions in the flat tensor, or [nnz, rank]."""
    from onnx import numpy_helper

    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _set_types_aside(graph: onnx.GraphProto, aside: dict[str, bytes]) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if _has_map(info.type):
            aside[info.name] = info.type.SerializeToString(deterministic=True)
            info.ClearField("type")


def _has_map(kind: onnx.TypeProto) -> bool:
    while True:
        if kind.HasField("map_type"):
            return True
        if kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        elif kind.HasField("optional_type"):
            kind = kind.optional_type.elem_type
        else:
            return False


def restore_types(proto: onnx.ModelProto, aside: dict[str, bytes]) -> None:
    """Give the values in `aside` their types back, in every graph of `proto`."""
    if not aside:
        return
    for graph in _graphs(proto.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.name in aside:
                info.type.ParseFromString(aside[info.name])
