"""Who decides the type of every FP32 value: the node that writes it, the nodes that read it, and the model's border."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import onnx_ir as ir

from infconv.model import subgraphs
from infconv.quantize._formats import Format
from infconv.quantize._schemas import CONTROL_FLOW, FLOAT, Schemas, is_container

Side: TypeAlias = ir.Node | ir.DataType
"""What decides a type: a node, by the type that it is given, or a fixed type."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One place where a value is read: input `index` of a node, or output `index` of a graph."""

    owner: ir.Node | ir.Graph
    index: int
    side: Side


@dataclasses.dataclass
class Wire:
    """An FP32 value with its writer and readers. `source` is None for a constant, which can have any type."""

    value: ir.Value
    source: Side | None
    uses: list[Use] = dataclasses.field(default_factory=list[Use])


class Wiring:
    """The FP32 values of a model and its subgraphs. Functions are not entered."""

    def __init__(self, model: ir.Model, narrow: Format, border: ir.DataType = FLOAT) -> None:
        """Analyse `model`. `border` is the type that FP32 graph inputs and outputs shall have."""
        self.model = model
        self.narrow = narrow
        self.border = border
        self.schemas = Schemas(model)
        self.types = self.schemas.types(model)
        self.nodes: list[ir.Node] = []
        self.wires: dict[ir.Value, Wire] = {}
        self._define(model.graph, border)
        self._connect(model.graph, border)
        self.by_node: dict[ir.Node, list[Wire]] = {node: [] for node in self.nodes}
        self._index()

    def _add(self, value: ir.Value, source: Side | None) -> None:
        if value.name and self.types.get(value) == FLOAT:
            self.wires[value] = Wire(value, source)

    def _define(self, graph: ir.Graph, owner: Side) -> None:
        for value in graph.initializers.values():
            self._add(value, None)
        for value in graph.inputs:
            self._add(value, owner)
        for node in graph:
            self.nodes.append(node)
            for body in subgraphs(node):
                self._define(body, node)
            for index, value in enumerate(node.outputs):
                follows = self.schemas.output_follows(node, index, self.narrow)
                self._add(value, None if is_constant(node) else node if follows else FLOAT)

    def _connect(self, graph: ir.Graph, owner: Side) -> None:
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value in self.wires:
                    follows = self.schemas.input_follows(node, index, self.narrow)
                    self.wires[value].uses.append(Use(node, index, node if follows else FLOAT))
            for body in subgraphs(node):
                self._connect(body, node)
        for index, value in enumerate(graph.outputs):
            if value in self.wires:
                self.wires[value].uses.append(Use(graph, index, owner))

    def _index(self) -> None:
        for wire in self.wires.values():
            sides = [use.side for use in wire.uses] + ([] if wire.source is None else [wire.source])
            for node in dict.fromkeys(side for side in sides if isinstance(side, ir.Node)):
                self.by_node[node].append(wire)

    def constants(self) -> Iterator[tuple[Wire, ir.TensorProtocol]]:
        """Yield the FP32 constants with their values."""
        for wire in self.wires.values():
            if wire.source is None:
                yield wire, constant_tensor(wire.value)

    def is_lowerable(self, node: ir.Node) -> bool:
        """Whether some FP32 value changes its type when the node is lowered."""
        return bool(self.by_node[node])

    def has_unknown_types(self, node: ir.Node) -> bool:
        """Whether a tensor that must agree with the node's other tensors has no known type."""
        values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
        if node.op_type in CONTROL_FLOW:
            values += [value for body in subgraphs(node) for value in (*body.inputs, *body.outputs)]
        return any(self.types.get(v) is None and not is_container(v) for v in values)

    def has_containers(self, node: ir.Node) -> bool:
        """Whether the node reads or writes a sequence or an optional, whose element type is left alone."""
        return any(v is not None and is_container(v) for v in (*node.inputs, *node.outputs))


def is_constant(node: ir.Node) -> bool:
    """Whether `node` is a Constant of the standard domain that holds a dense tensor."""
    return node.op_type == "Constant" and node.domain == "" and "sparse_value" not in node.attributes


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of an initializer or of a Constant's output."""
    node = value.producer()
    if node is None:
        assert value.const_value is not None
        return value.const_value
    name, attribute = next(iter(node.attributes.items()))
    if name == "value":
        return attribute.as_tensor()
    return ir.tensor(attribute.value, dtype=FLOAT)
