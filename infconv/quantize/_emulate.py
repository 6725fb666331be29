"""A float32 graph that computes what a narrow one does: every narrow value is rounded where it is written.

ONNX Runtime's CPU provider has kernels for casts to bfloat16 and for next to nothing else of it, and it computes
neighbouring float16 operators in float32 with no rounding in between (1.32: `x + 1000 - 1000` is exact in "float16").
With a pair of casts after each operator it computes such a model as hardware with float32 accumulators does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infconv.errors import UnsupportedError
from infconv.model import subgraphs
from infconv.quantize._constants import reading
from infconv.quantize._names import unique
from infconv.quantize._rules import MOVEMENT
from infconv.quantize._schemas import FLOAT, Schemas
from infconv.quantize._wires import is_constant

_CHOOSES = MOVEMENT - {"Cast", "CastLike", "Upsample", "OneHot", "ConstantOfShape", "LeakyRelu", "PRelu"}
"""Operators whose outputs hold only what their inputs hold (or integers): rounding again would change nothing."""
_LAZY_BYTES = 1 << 20


def emulated(model: ir.Model, narrow: ir.DataType) -> ir.Model:
    """Return a copy of `model` in which every `narrow` value is float32, rounded to `narrow`.

    Inputs and outputs keep their types. Raises UnsupportedError when a function of the model holds narrow types.
    """
    clone = model.clone()
    for function in clone.functions.values():
        if any(value.dtype == narrow for node in function.graph.all_nodes() for value in node.outputs):
            raise UnsupportedError(f"Function {function.name} computes in {narrow.name}.", "Inline it first.")
    _Emulation(clone, narrow).run()
    return clone


def narrow_types(model: ir.Model) -> list[ir.DataType]:
    """Return which of float16 and bfloat16 the model's graph computes in."""
    found = {kind for node in model.graph.all_nodes() for value in node.outputs if (kind := value.dtype)}
    return [kind for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) if kind in found]


class _Emulation:
    def __init__(self, model: ir.Model, narrow: ir.DataType) -> None:
        self._model = model
        self._narrow = narrow
        self._types = Schemas(model).types(model)
        self._names = {value.name for value in self._types}

    def run(self) -> None:
        self._widen(self._model.graph)
        self._restore_interface(self._model.graph)

    def _widen(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if self._types.get(value) == self._narrow and value.const_value is not None:
                value.const_value = _widened(value.const_value, value.name or "")
                value.type = ir.TensorType(FLOAT)
        for value in graph.inputs:
            if self._types.get(value) == self._narrow:
                value.type = ir.TensorType(FLOAT)
        for node in list(graph):
            for body in subgraphs(node):
                self._widen(body)
            self._widen_node(node)

    def _widen_node(self, node: ir.Node) -> None:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.INT and attribute.value == int(self._narrow) and _names_type(name):
                node.attributes.add(ir.AttrInt64(name, int(FLOAT)))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == self._narrow:
                node.attributes.add(ir.AttrTensor(name, _widened(attribute.as_tensor(), name)))
        for value in node.outputs:
            if self._types.get(value) == self._narrow:
                value.type = ir.TensorType(FLOAT)
                if node.op_type not in _CHOOSES and not is_constant(node):
                    self._round(node, value)

    def _round(self, node: ir.Node, value: ir.Value) -> None:
        """Round `value` for all who read it."""
        uses = list(value.uses())
        outputs = [(g, i) for g in self._graphs_of(node) for i, v in enumerate(g.outputs) if v is value]
        rounded = self._cast(self._cast(value, self._narrow, node), FLOAT, None)
        for user, index in uses:
            user.replace_input_with(index, rounded)
        for graph, index in outputs:
            graph.outputs[index] = rounded
            if graph is self._model.graph:
                value.name, rounded.name = rounded.name, value.name

    @staticmethod
    def _graphs_of(node: ir.Node) -> list[ir.Graph]:
        return [node.graph] if isinstance(node.graph, ir.Graph) else []

    def _cast(self, value: ir.Value, dtype: ir.DataType, after: ir.Node | None) -> ir.Value:
        """Insert a cast behind `after`, by default behind the node that writes `value`."""
        after = after or value.producer()
        result = ir.Value(name=unique(f"{value.name}_{dtype.name.lower()}", self._names), type=ir.TensorType(dtype))
        result.shape = value.shape
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[result], name=result.name)
        if after is not None:
            assert after.graph is not None
            after.graph.insert_after(after, node)
        else:
            graph = self._model.graph
            graph.insert_before(graph[0], node) if len(graph) else graph.append(node)
        return result

    def _restore_interface(self, graph: ir.Graph) -> None:
        for value in graph.inputs:
            if self._types.get(value) == self._narrow:
                uses = list(value.uses())
                value.type = ir.TensorType(self._narrow)
                wide = self._cast(value, FLOAT, None)
                for user, index in uses:
                    user.replace_input_with(index, wide)
        for index, value in enumerate(list(graph.outputs)):
            if value.dtype == FLOAT and self._was_narrow(value) and not value.is_graph_input():
                graph.outputs[index] = narrow = self._cast(value, self._narrow, None)
                value.name, narrow.name = unique(f"{value.name}_float", self._names), value.name

    def _was_narrow(self, value: ir.Value) -> bool:
        if value in self._types:
            return self._types[value] == self._narrow
        producer = value.producer()  # the second of two casts that round
        source = producer.inputs[0] if producer is not None else None
        return source is not None and source.dtype == self._narrow


def _names_type(attribute: str) -> bool:
    return attribute in {"to", "dtype", "output_dtype", "output_datatype", "stash_type"}


def _widened(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Return `tensor` in float32; a large one is read and cast at each access."""

    def cast() -> ir.Tensor[np.ndarray]:
        with reading(tensor) as array:
            return ir.Tensor(array.astype(np.float32), name=name)

    if tensor.nbytes > _LAZY_BYTES:
        return ir.LazyTensor(cast, FLOAT, ir.Shape(tensor.shape.numpy()), name=name)
    return cast()
