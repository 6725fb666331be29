"""Run another tool on a model and take over what it made: weights that stayed the same are shared, not copied."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from infconv import isolate
from infconv.errors import UnsupportedError, missing_extra
from infconv.model import load, save, skeleton, tensor_bytes


def require_package(name: str) -> None:
    """Import the tool's package here, so that the processes that are forked have it. Raises DependencyError."""
    try:
        importlib.import_module(name)
    except ImportError:
        raise missing_extra(name, "peers", f"Step {name}") from None


def through_files(model: ir.Model, call: Callable[[Path, Path], None], tool: str) -> int:
    """Run `call(source, target)`, which reads and writes ONNX files, once; return the number of changes.

    It runs in a process of its own. Types and shapes of the model's inputs and outputs stay as they are. Raises what
    `call` raises, Crashed, and UnsupportedError when the names of inputs or outputs are not the same afterwards.
    """
    # The weights of the result are views of its file, which its mapping keeps alive after the folder is gone.
    with tempfile.TemporaryDirectory(prefix="infconv-", ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "simplified.onnx")
        save(model, source)
        isolate.call(lambda: call(source, target), what=tool)
        result = load(target)
    _keep_interface(model, result, tool)
    return take_over(model, result)


def _keep_interface(model: ir.Model, result: ir.Model, tool: str) -> None:
    """Give inputs and outputs of `result` the types and shapes that the model declares."""
    for kind in ("inputs", "outputs"):
        old, new = getattr(model.graph, kind), getattr(result.graph, kind)
        if [value.name for value in old] != [value.name for value in new]:
            raise UnsupportedError(f"{tool} changed the model's {kind}.", f"Leave it out with --skip {tool}.")
        for declared, value in zip(old, new, strict=True):
            value.type, value.shape = declared.type, declared.shape


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
