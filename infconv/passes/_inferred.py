"""Types and shapes that onnx infers, borrowed for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx_ir import serde

from infconv import isolate
from infconv.errors import InfconvError
from infconv.model import skeleton
from infconv.passes._graphs import subgraphs

TIMEOUT = 60.0
"""Seconds for one native call. onnx's shape inference does not end on some models."""


def stand_in(model: ir.Model) -> onnx.ModelProto:
    """Return `model` as a proto in which large weights are inputs: nothing of them is copied."""
    proto = skeleton(model).proto
    inputs = {value.name for value in proto.graph.input}
    kept: list[onnx.TensorProto] = []
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            kept.append(tensor)
        elif tensor.name not in inputs:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(kept)
    return proto


@contextmanager
def inferred(model: ir.Model) -> Generator[None]:
    """Within the block, values whose type or shape is not known have those that onnx infers, where it can."""
    filled: list[tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None]] = []
    found = _infer(stand_in(model))
    if found is not None:
        _fill(model.graph, found, filled)
    try:
        yield
    finally:
        for value, kind, shape in filled:
            value.type, value.shape = kind, shape


def _infer(proto: onnx.ModelProto) -> onnx.GraphProto | None:
    """Return the graph with value infos; None when inference fails: it is a help, not a judge."""
    serialized = proto.SerializeToString()
    try:
        found = isolate.call(
            lambda: onnx.shape_inference.infer_shapes(serialized), what="Shape inference", timeout=TIMEOUT
        )
    except (InfconvError, onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return None
    return onnx.ModelProto.FromString(found).graph if isinstance(found, bytes) else found.graph


def _fill(
    graph: ir.Graph,
    proto: onnx.GraphProto,
    filled: list[tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None]],
) -> None:
    infos = {info.name: info for info in (*proto.value_info, *proto.output)}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for output in node.outputs:
            info = infos.get(output.name or "")
            if info is not None and (output.type is None or output.shape is None):
                filled.append((output, output.type, output.shape))
                known = serde.deserialize_value_info_proto(info, None)
                output.type = known.type if output.type is None else output.type
                output.shape = known.shape if output.shape is None else output.shape
        inner_protos = [g for a in node_proto.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
        for inner, inner_proto in zip(subgraphs(node), inner_protos, strict=True):
            _fill(inner, inner_proto, filled)
