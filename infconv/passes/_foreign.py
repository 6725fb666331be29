"""Take over what another tool made of a model: weights that stayed the same are shared, not copied."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from infconv.model import skeleton, tensor_bytes


def take_over(model: ir.Model, result: ir.Model) -> int:
    """Put the graph of `result` in the place of the model's own and return the number of changes.

    That is the difference in nodes, at least 1; 0, and `model` is left alone, when both say the same but for the
    order and names of nodes, documentation, and the types of inner values.
    """
    _share_weights(model, result)
    if _says_the_same(model, result):
        return 0
    changes = abs(_count(model) - _count(result))
    model.graph = result.graph
    model.ir_version = result.ir_version
    model.functions.clear()
    model.functions.update(result.functions)
    model.meta.update(result.meta)
    return max(1, changes)


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def _share_weights(model: ir.Model, result: ir.Model) -> None:
    """Replace the initializers of `result` that are equal to the model's of that name by those."""
    for name, value in result.graph.initializers.items():
        known = model.graph.initializers.get(name)
        old, new = (None if known is None else known.const_value), value.const_value
        if old is not None and new is not None and _equal(old, new):
            value.const_value = old


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a.dtype != b.dtype or a.shape.numpy() != b.shape.numpy():
        return False
    if a.dtype == ir.DataType.STRING:
        return a.numpy().tolist() == b.numpy().tolist()
    return tensor_bytes(a) == tensor_bytes(b)


def _says_the_same(model: ir.Model, result: ir.Model) -> bool:
    a, b = skeleton(model), skeleton(result)
    # a tensor that was shared is the same object, one that was not has changed
    if a.weights.keys() != b.weights.keys() or any(b.weights[name] is not a.weights[name] for name in a.weights):
        return False
    return _essence(a.proto) == _essence(b.proto)


def _essence(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return what a model computes: its nodes by their outputs, without their names, documentation or inner types."""
    essence = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    essence.graph.CopyFrom(proto.graph)
    essence.graph.initializer.sort(key=lambda tensor: tensor.name)
    essence.graph.node.sort(key=lambda node: tuple(node.output))
    for field in ("name", "doc_string", "value_info", "metadata_props"):
        essence.graph.ClearField(field)
    for node in essence.graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    return essence
