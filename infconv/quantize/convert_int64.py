"""INT64 arithmetic in INT32, where the graph proves that it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from infconv.model import subgraphs
from infconv.passes import Context, Pass
from infconv.quantize._identity import constant_of
from infconv.quantize._intervals import ANYTHING, Interval, intervals
from infconv.quantize._names import unique
from infconv.quantize._schemas import Schemas, names

_LONG, _INT = ir.DataType.INT64, ir.DataType.INT32
_ATTRIBUTE = names("Cast ConstantOfShape")
"""Operators whose output's type an attribute names."""

Port: TypeAlias = tuple[ir.Node, str]
"""A node, and the type variable of its schema that an input or output has: what has one has one type."""


class ConvertInt64(Pass):
    """Compute in INT32 what is INT64 and provably fits.

    Bounds are proven from constants, dimensions, types and indices into tables of known length; what is not proven
    stays INT64. Casts stand where the two meet, and nothing changes where that would cost more casts than it narrows
    values. Inputs and outputs keep their types. For targets without INT64: what runs on a CPU or GPU gains nothing.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Narrow values of the main graph in place; return the number of values narrowed and casts inserted."""
        return _Conversion(model).run()


class _Conversion:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._schemas = Schemas(model)
        self._bounds = intervals(model.graph)
        self._nodes = {node: position for position, node in enumerate(model.graph)}
        self._names = {v.name for v in (*model.graph.inputs, *model.graph.initializers.values())}
        self._names |= {v.name for node in model.graph.all_nodes() for v in node.outputs}

    def run(self) -> int:
        narrow = self._worthwhile({port for port in self._ports() if self._is_proven(port)})
        changes = 0
        for value in self._values():
            changes += self._convert(value, narrow)
        for node, _ in sorted(narrow, key=lambda port: self._nodes[port[0]]):
            self._set_attribute(node, narrow)
        return changes

    # --- what shares a type ------------------------------------------------------------------------------------------

    def _values(self) -> list[ir.Value]:
        found = [*self._graph.inputs, *self._graph.initializers.values(), *(v for n in self._nodes for v in n.outputs)]
        return [value for value in dict.fromkeys(found) if value.dtype == _LONG]

    def _ports(self) -> Iterator[Port]:
        for node in self._nodes:
            for value, port in (*self._inputs(node), *self._outputs(node)):
                if value.dtype == _LONG and port is not None:
                    yield port

    def _inputs(self, node: ir.Node) -> Iterator[tuple[ir.Value, Port | None]]:
        for index, value in enumerate(node.inputs):
            if value is not None:
                yield value, self._input_port(node, index)

    def _outputs(self, node: ir.Node) -> Iterator[tuple[ir.Value, Port | None]]:
        for index, value in enumerate(node.outputs):
            yield value, self._output_port(node, index)

    def _input_port(self, node: ir.Node, index: int) -> Port | None:
        """Return what decides the type of an input; None when it cannot be INT32."""
        found = self._schemas.of(node) if node in self._nodes and node.domain == "" else None
        if found is None or subgraphs(node):
            return None
        variable = found.input(index)
        return (node, variable) if "tensor(int32)" in found.allowed.get(variable, ()) else None

    def _output_port(self, node: ir.Node, index: int) -> Port | None:
        found = self._schemas.of(node) if node.domain == "" else None
        if found is None or subgraphs(node) or node.op_type == "Constant":
            return None
        variable = found.output(index)
        free = "tensor(int32)" in found.allowed.get(variable, ())
        shared = any(found.input(i) == variable for i, value in enumerate(node.inputs) if value is not None)
        return (node, variable) if free and (shared or node.op_type in _ATTRIBUTE) else None

    def _is_proven(self, port: Port) -> bool:
        node, _ = port
        ends = [*self._inputs(node), *self._outputs(node)]
        return all(self._interval(v).fits() for v, own in ends if own == port and v.dtype == _LONG)

    def _interval(self, value: ir.Value) -> Interval:
        tensor = constant_of(value)
        if tensor is None:
            return self._bounds.get(value, ANYTHING)
        array = tensor.numpy()
        return Interval(int(array.min()), int(array.max())) if array.size else Interval(0, 0)

    # --- what pays ---------------------------------------------------------------------------------------------------

    def _worthwhile(self, narrow: set[Port]) -> set[Port]:
        """Return the ports of those connected regions in which more values are narrowed than casts are needed."""
        kept: set[Port] = set()
        for region in self._regions(narrow):
            inside = casts = 0
            for value in {v for node, _ in region for v, _ in (*self._inputs(node), *self._outputs(node))}:
                if value.dtype == _LONG and constant_of(value) is None:
                    source, readers = self._source(value), self._readers(value)
                    touched = (source in region) + sum(port in region for _, port in readers)
                    inside += bool(touched) and self._is_narrow(source, narrow)
                    casts += bool(touched) and self._needs_cast(value, source, readers, narrow)
            if inside > casts:
                kept |= region
        return kept

    def _regions(self, narrow: set[Port]) -> Iterator[set[Port]]:
        left = dict.fromkeys(sorted(narrow, key=lambda port: (self._nodes[port[0]], port[1])))
        while left:
            todo = [next(iter(left))]
            region = set(todo)
            del left[todo[0]]
            while todo:
                for port in self._linked(todo.pop()):
                    if port in left:
                        del left[port]
                        region.add(port)
                        todo.append(port)
            yield region

    def _linked(self, port: Port) -> Iterator[Port]:
        for value, own in (*self._inputs(port[0]), *self._outputs(port[0])):
            if own == port and value.dtype == _LONG and constant_of(value) is None:
                source = self._source(value)
                yield from [] if source is None else [source]
                yield from (reader for _, reader in self._readers(value) if reader is not None)

    def _source(self, value: ir.Value) -> Port | None:
        producer = value.producer()
        return None if producer is None else self._output_port(producer, value.index() or 0)

    def _readers(self, value: ir.Value) -> list[tuple[tuple[ir.Node, int], Port | None]]:
        return [((node, index), self._input_port(node, index)) for node, index in value.uses()]

    @staticmethod
    def _is_narrow(port: Port | None, narrow: set[Port]) -> bool:
        return port is not None and port in narrow

    def _needs_cast(
        self,
        value: ir.Value,
        source: Port | None,
        readers: list[tuple[tuple[ir.Node, int], Port | None]],
        narrow: set[Port],
    ) -> bool:
        own = self._is_narrow(source, narrow)
        shown = own and value.is_graph_output()
        return shown or any(self._is_narrow(port, narrow) != own for _, port in readers)

    # --- carrying it out ---------------------------------------------------------------------------------------------

    def _convert(self, value: ir.Value, narrow: set[Port]) -> int:
        readers = self._readers(value)
        wanting = [use for use, port in readers if self._is_narrow(port, narrow)]
        others = [use for use, port in readers if not self._is_narrow(port, narrow)]
        tensor = constant_of(value)
        if tensor is not None:
            return self._convert_constant(value, tensor, wanting)
        if not self._is_narrow(self._source(value), narrow):
            return self._reroute(wanting, lambda: self._cast(value, _INT)) if wanting else 0
        value.type = ir.TensorType(_INT)
        outputs = [index for index, output in enumerate(self._graph.outputs) if output is value]
        if others or outputs:
            wide = self._cast(value, _LONG)
            self._reroute(others, lambda: wide)
            for index in outputs:
                self._graph.outputs[index] = wide
                value.name, wide.name = wide.name, value.name
            return 2
        return 1

    def _convert_constant(self, value: ir.Value, tensor: ir.TensorProtocol, uses: list[tuple[ir.Node, int]]) -> int:
        if not uses:
            return 0
        name = unique(f"{value.name}_int32", self._names)
        content = ir.Tensor(tensor.numpy().astype(np.int32), name=name)
        copy = ir.Value(name=name, type=ir.TensorType(_INT), shape=ir.Shape(content.shape.numpy()), const_value=content)
        self._graph.register_initializer(copy)
        return self._reroute(uses, lambda: copy)

    @staticmethod
    def _reroute(uses: list[tuple[ir.Node, int]], make: Callable[[], ir.Value]) -> int:
        replacement = make()
        for node, index in uses:
            node.replace_input_with(index, replacement)
        return 1

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = unique(f"{value.name}_{dtype.name.lower()}", self._names)
        result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[result], name=f"Cast_{name}")
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return result

    def _set_attribute(self, node: ir.Node, narrow: set[Port]) -> None:
        if node.op_type not in _ATTRIBUTE or self._output_port(node, 0) not in narrow:
            return
        if node.op_type == "Cast":
            node.attributes.add(ir.AttrInt64("to", int(_INT)))
        elif (given := node.attributes.get("value")) is not None:
            content = given.as_tensor().numpy().astype(np.int32)
            node.attributes.add(ir.AttrTensor("value", ir.Tensor(content, name=given.as_tensor().name)))
