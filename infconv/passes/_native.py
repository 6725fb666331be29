"""onnx's own shape inference (C++), run on a copy of the model that has no weights.

It knows every operator, but segfaults on some models and runs without end on others: it works in a child process with
a time limit, and whatever happens there, the caller goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from infconv import isolate
from infconv.errors import InfconvError
from infconv.passes._dims import Dims
from infconv.passes._graphs import with_subgraphs
from infconv.passes._symbolic import Symbolic, has_rule

if TYPE_CHECKING:
    import onnx

_SMALL = 1024
"""Constants up to this many bytes travel with the skeleton: they may be shapes, axes or scales."""
_SECONDS, _SECONDS_PER_NODE = 10.0, 0.0005


def infer(model: ir.Model, facts: Symbolic, wanted: Collection[ir.Value], notes: list[str]) -> dict[ir.Value, bytes]:
    """Return what onnx infers for the `wanted` values, as serialized TypeProtos.

    `facts` are stated to it, so that it need not find out again. Failures are told in `notes`.
    """
    nodes = sum(len(graph) for graph in with_subgraphs(model.graph))
    order = {value: index for index, value in enumerate(wanted)}
    try:
        found = isolate.call(
            lambda: _infer(model, facts, order), what="Shape inference", timeout=_SECONDS + _SECONDS_PER_NODE * nodes
        )
    except (InfconvError, RuntimeError, ValueError, TypeError, OSError) as error:
        notes.append(f"onnx's shape inference gave up, some shapes stay unknown: {str(error).splitlines()[0]}")
        return {}
    values = list(wanted)
    return {values[index]: payload for index, payload in found.items()}


def _infer(model: ir.Model, facts: Symbolic, wanted: dict[ir.Value, int]) -> dict[int, bytes]:
    import onnx

    proto = skeleton(model, facts)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise InfconvError(str(error)) from error
    return dict(_match(model.graph, inferred.graph, wanted))


def _match(graph: ir.Graph, proto: onnx.GraphProto, wanted: dict[ir.Value, int]) -> Iterator[tuple[int, bytes]]:
    """Yield (index, TypeProto) for the wanted values of a graph and of the graphs inside it."""
    infos = {info.name: info for info in (*proto.value_info, *proto.output)}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            info = infos.get(value.name or "")
            if value in wanted and info is not None and info.HasField("type"):
                yield wanted[value], info.type.SerializeToString()
        for attribute in node_proto.attribute:
            if attribute.HasField("g"):
                yield from _match(node.attributes[attribute.name].as_graph(), attribute.g, wanted)


def skeleton(model: ir.Model, facts: Symbolic) -> onnx.ModelProto:
    """Return `model` without the bytes of its large constants, which only keep their type and shape."""
    import onnx

    proto = onnx.ModelProto(ir_version=model.ir_version)
    used = {
        node.domain: 1 for graph in with_subgraphs(model.graph) for node in graph
    }  # one that is missing fails the whole model
    for domain, version in {**used, **model.opset_imports}.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    _add_graph(proto.graph, model.graph, facts)
    return proto


def _add_graph(proto: onnx.GraphProto, graph: ir.Graph, facts: Symbolic) -> None:
    proto.name = graph.name or "graph"
    for value in graph.inputs:
        ir.serde.serialize_value_into(proto.input.add(), value)
    for value in graph.initializers.values():
        if value.const_value is not None:
            _add_tensor(proto.initializer.add(), value.const_value, value.name or "")
    outputs = set(graph.outputs)
    for value in graph.outputs:
        _add_info(proto.output.add(), value, facts)
    for node in graph:
        _add_node(proto.node.add(), node, facts)
        for value in node.outputs:
            if value not in outputs and value.name and facts.dims(value) is not None and has_rule(node):
                _add_info(proto.value_info.add(), value, facts)


def _add_info(proto: onnx.ValueInfoProto, value: ir.Value, facts: Symbolic) -> None:
    """State what is known of a value; a declared type that is not a plain tensor is taken as it is."""
    dtype, dims = facts.facts.dtype(value), facts.dims(value)
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        ir.serde.serialize_value_into(proto, value)
        return
    proto.name = value.name or ""
    if dtype is None:
        return
    proto.type.tensor_type.elem_type = int(dtype)
    if dims is not None:
        _add_dims(proto.type.tensor_type.shape, dims)


def _add_dims(proto: onnx.TensorShapeProto, dims: Dims) -> None:
    for dim in dims:
        if isinstance(dim, int):
            proto.dim.add(dim_value=dim)
        else:
            proto.dim.add(dim_param=str(dim))


def _add_node(proto: onnx.NodeProto, node: ir.Node, facts: Symbolic) -> None:
    proto.op_type, proto.domain, proto.overload = node.op_type, node.domain, node.overload
    if node.op_type == "Einsum" and "......" in node.attributes.get_string("equation", "").replace(" ", ""):
        proto.domain = "unknown"  # onnx's inference of two ellipses in one term does not end
    proto.input.extend(value.name or "" if value is not None else "" for value in node.inputs)
    proto.output.extend(value.name or "" for value in node.outputs)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            target = proto.attribute.add(name=attribute.name, type=5)  # AttributeProto.GRAPH
            _add_graph(target.g, attribute.as_graph(), facts)
        elif attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            target = proto.attribute.add(name=attribute.name, type=4)  # AttributeProto.TENSOR
            _add_tensor(target.t, attribute.as_tensor(), "")
        else:
            ir.serde.serialize_attribute_into(proto.attribute.add(), attribute)


def _add_tensor(proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str) -> None:
    """Write a tensor; a large one as if its bytes were in another file, which nobody opens."""
    if tensor.nbytes <= _SMALL and not isinstance(tensor, ir.ExternalTensor):
        ir.serde.serialize_tensor_into(proto, tensor)
        proto.name = name
        return
    proto.name, proto.data_type = name, int(tensor.dtype)
    proto.dims.extend(int(dim) for dim in tensor.shape.numpy())
    if tensor.nbytes <= _SMALL:
        proto.raw_data = tensor.tobytes()
        return
    proto.data_location = type(proto).EXTERNAL
    proto.external_data.add(key="location", value="skeleton")
