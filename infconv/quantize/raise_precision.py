"""Models in half precision as float32, which is what can be quantised."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from infconv.model import all_graphs
from infconv.passes import Context, Pass
from infconv.passes._build import Names

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "output_dtype")


class RaisePrecision(Pass):
    """Compute in float32 what the model computes in float16 or bfloat16; its inputs and outputs keep their types.

    Each number of the narrow types is one of float32, so that only roundings go away. Comes before a quantising step.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Raise in place and return the number of values that changed their type; 0 for a model with functions."""
        values = [value for value in _values(model) if value.dtype in _NARROW]
        if not values or model.functions:
            return 0
        names = Names(model)
        inputs = {value: value.dtype for value in model.graph.inputs if value.dtype in _NARROW}
        outputs = [value.dtype for value in model.graph.outputs]
        for graph in all_graphs(model):
            for node in graph:
                _raise_attributes(node)
        for value in values:
            if value not in inputs:
                _raise_value(value)
        for value in inputs:
            _cast_input(model, value, names)
        for index, dtype in enumerate(outputs):
            if dtype in _NARROW and model.graph.outputs[index] not in inputs:
                _cast_output(model, index, dtype, names)
        context.notes.append(f"{len(values)} values in half precision were raised to float32 to be quantised.")
        return len(values)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in all_graphs(model):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _raise_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
            node.attributes.add(ir.AttrTensor(name, _raised(attribute.as_tensor())))
        elif name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _NARROW:
            node.attributes.add(ir.AttrInt64(name, int(ir.DataType.FLOAT)))


def _raised(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _raise_value(value: ir.Value) -> None:
    value.type = ir.TensorType(ir.DataType.FLOAT)
    if value.const_value is not None and value.const_value.dtype in _NARROW:
        value.const_value = _raised(value.const_value)


def _cast_input(model: ir.Model, value: ir.Value, names: Names) -> None:
    """Let all readers of an input read it in float32."""
    cast = _cast(value, ir.DataType.FLOAT, names.fresh(f"{value.name}_float32"), names)
    assert cast.producer() is not None
    for node, index in list(value.uses()):
        if node is not cast.producer():
            node.replace_input_with(index, cast)
    if len(model.graph):
        model.graph.insert_before(model.graph[0], [cast.producer()])  # pyright: ignore[reportArgumentType]


def _cast_output(model: ir.Model, index: int, dtype: ir.DataType | None, names: Names) -> None:
    """Give an output its own type again, under its own name."""
    assert dtype is not None
    value = model.graph.outputs[index]
    name = value.name
    value.name = names.fresh(f"{name}_float32")
    cast = _cast(value, dtype, name or "", names)
    model.graph.append(cast.producer())  # pyright: ignore[reportArgumentType]
    model.graph.outputs[index] = cast


def _cast(value: ir.Value, dtype: ir.DataType, name: str, names: Names) -> ir.Value:
    shape = None if value.shape is None else value.shape.copy()
    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
    ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=names.fresh(f"{name}_Cast"))
    return output
