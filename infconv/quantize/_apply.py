"""Carry out a precision plan: cast constants offline, change types, insert casts where types meet."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from infconv.model import subgraphs
from infconv.quantize._constants import narrowed, set_constant
from infconv.quantize._names import unique
from infconv.quantize._plan import Plan
from infconv.quantize._schemas import FLOAT, Schemas, type_attribute
from infconv.quantize._wires import Use, Wire, Wiring, constant_tensor


def apply(wiring: Wiring, plan: Plan) -> int:
    """Give every node the type that `plan` decides; return how many nodes were lowered, masks limited, casts set.

    Whatever the plan says, the result is valid: values that an operator's schema holds in FP32 stay so, and a cast
    (one for each value and type) stands wherever writer and reader differ.
    """
    return _Application(wiring, plan).run()


def remove_casts_to_same_type(model: ir.Model) -> int:
    """Remove the casts that change nothing and return their number.

    One that writes a graph's output becomes an Identity.
    """
    types = Schemas(model).types(model)
    removed = 0
    for node in list(model.graph.all_nodes()):
        source = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
        if source is None or types.get(source) != node.attributes["to"].as_int():
            continue
        if node.outputs[0].is_graph_output():
            node.op_type = "Identity"
            node.attributes.clear()
        else:
            node.outputs[0].replace_all_uses_with(source)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        removed += 1
    return removed


class _Application:
    def __init__(self, wiring: Wiring, plan: Plan) -> None:
        self._wiring = wiring
        self._narrow = wiring.narrow
        self._plan = plan
        self._graph = wiring.model.graph
        self._names = set(_names(self._graph))
        self._inserted = 0

    def run(self) -> int:
        lowered = [node for node in self._wiring.nodes if self._is_lowered(node)]
        for value, tensor in self._plan.clamps.items():
            set_constant(value, tensor)
        for node in lowered:
            self._set_attributes(node)
        for wire in list(self._wiring.wires.values()):
            if wire.source is None:
                self._split(wire)
            else:
                self._cast(wire, self._plan.type_of(wire.source))
        removed = remove_casts_to_same_type(self._wiring.model)
        return len(lowered) + len(self._plan.clamps) + self._inserted + removed

    def _is_lowered(self, node: ir.Node) -> bool:
        return self._plan.type_of(node) == self._narrow.dtype and self._wiring.is_lowerable(node)

    def _set_attributes(self, node: ir.Node) -> None:
        """Change the attributes that state the output's type."""
        if not any(wire.source is node for wire in self._wiring.by_node[node]):
            return
        name = type_attribute(node)
        if name is not None:
            node.attributes.add(ir.AttrInt64(name, int(self._narrow.dtype)))
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            tensor = given.as_tensor() if given else ir.tensor([0.0], dtype=FLOAT)
            node.attributes.add(ir.AttrTensor("value", narrowed(tensor, self._narrow, tensor.name or "value")))

    def _split(self, wire: Wire) -> None:
        """Give a constant the type that its readers want; where they differ, it gets a sibling."""
        wanted = {self._plan.type_of(use.side) for use in wire.uses}
        if self._narrow.dtype not in wanted:
            return
        value = wire.value
        in_output = {self._plan.type_of(use.side) for use in wire.uses if use.owner is self._graph}
        tensor = constant_tensor(value)
        if len(wanted) == 1:
            self._narrow_constant(value, tensor)
            return
        moved = FLOAT if self._narrow.dtype in in_output else self._narrow.dtype
        sibling = self._sibling(value, tensor, moved)
        self._reroute([use for use in wire.uses if self._plan.type_of(use.side) == moved], sibling)
        if moved == FLOAT:
            self._narrow_constant(value, tensor)

    def _narrow_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        set_constant(value, narrowed(tensor, self._narrow, value.name or ""))
        value.type = ir.TensorType(self._narrow.dtype)

    def _sibling(self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Value:
        """Return a constant next to `value` with the same content in `dtype`."""
        name = unique(f"{value.name}_{_suffix(dtype)}", self._names)
        if dtype != FLOAT:
            tensor = narrowed(tensor, self._narrow, name)
        node = value.producer()
        shape = ir.Shape(tensor.shape.numpy())
        if node is None:
            sibling = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
            assert value.graph is not None
            value.graph.register_initializer(sibling)
            return sibling
        sibling = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        twin = ir.Node(
            "", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[sibling], name=unique(name, self._names)
        )
        assert node.graph is not None
        node.graph.insert_after(node, twin)
        return sibling

    def _cast(self, wire: Wire, dtype: ir.DataType) -> None:
        """Give the value its type and its readers of the other type a cast."""
        if dtype != FLOAT:
            self._set_type(wire.value, dtype)
        differing = [use for use in wire.uses if self._plan.type_of(use.side) != dtype]
        if differing:
            other = self._plan.type_of(differing[0].side)
            self._reroute(differing, self._existing_cast(wire, other) or self._insert_cast(wire.value, other))

    def _set_type(self, value: ir.Value, dtype: ir.DataType) -> None:
        value.type = ir.TensorType(dtype)
        if value.is_initializer() and value.const_value is not None:  # the default of an input
            value.const_value = narrowed(value.const_value, self._narrow, value.name or "")

    def _existing_cast(self, wire: Wire, dtype: ir.DataType) -> ir.Value | None:
        """Return the output of a cast to `dtype` that the model has already, moved up to the value's writer."""
        for use in wire.uses:
            node = use.owner
            if not isinstance(node, ir.Node) or node.op_type != "Cast" or node.graph is not wire.value.graph:
                continue
            if node.attributes["to"].as_int() == dtype and self._plan.type_of(node) == FLOAT:
                assert node.graph is not None
                node.graph.remove(node)
                self._place(node, wire.value)
                return node.outputs[0]
        return None

    def _insert_cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = unique(f"{value.name}_{_suffix(dtype)}", self._names)
        shape = None if value.shape is None else value.shape.copy()
        result = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        attributes = [ir.AttrInt64("to", int(dtype))]
        node = ir.Node("", "Cast", [value], attributes, outputs=[result], name=unique(f"Cast_{name}", self._names))
        self._place(node, value)
        self._inserted += 1
        return result

    @staticmethod
    def _place(node: ir.Node, value: ir.Value) -> None:
        """Insert `node` as early as `value` allows."""
        producer, graph = value.producer(), value.graph
        assert graph is not None
        if producer is not None:
            graph.insert_after(producer, node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)

    def _reroute(self, uses: list[Use], replacement: ir.Value) -> None:
        for use in uses:
            if isinstance(use.owner, ir.Node):
                use.owner.replace_input_with(use.index, replacement)
                continue
            old = use.owner.outputs[use.index]
            use.owner.outputs[use.index] = replacement
            if use.owner is self._graph:
                self._exchange_names(old, replacement)

    def _exchange_names(self, old: ir.Value, new: ir.Value) -> None:
        """Give the name that users know to the value that is the output now."""
        if new.is_graph_output() and not old.is_graph_input() and new.name != old.name:
            name = old.name
            old.name = unique(f"{name}_{_suffix(old.dtype or FLOAT)}", self._names)
            new.name = name


def _suffix(dtype: ir.DataType) -> str:
    return "float32" if dtype == FLOAT else dtype.name.lower()


def _names(graph: ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
    for node in graph:
        yield node.name or ""
        yield from (value.name or "" for value in node.outputs)
        for body in subgraphs(node):
            yield from _names(body)
