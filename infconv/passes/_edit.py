"""Changes to a graph that the folding passes share: constants in, dead nodes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._graphs import nested_nodes, remove


def needs_nodes(model: ir.Model) -> bool:
    """Return whether constants of the model's graphs must be Constant nodes.

    Before IR version 4 every initializer had to be an input as well, and the inputs are the model's interface.
    """
    return (model.ir_version or 4) < 4


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, before: ir.Node | None = None) -> ir.Value:
    """Add a constant under a free `name` and return it: an initializer, or a Constant node in front of `before`."""
    dims = [int(dim) for dim in tensor.shape.numpy()]
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(dims), const_value=tensor)
    if before is None:
        graph.initializers[name] = value
    else:
        graph.insert_before(before, ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value]))
    return value


def replace_by_constant(value: ir.Value, tensor: ir.TensorProtocol, *, as_node: bool) -> None:
    """Put a constant in the place of what a node computes, under the same name; the node is left without a use.

    `as_node`: as a Constant node, because the graph cannot have initializers.
    """
    node = value.producer()
    if node is None or node.graph is None:
        raise ValueError(f"{value.name} is not computed by a node of a graph.")
    name = value.name or ""
    value.name = f"{name}/folded"  # the node goes next, but until then two values must not share a name
    new = add_constant(node.graph, name, tensor, node if as_node else None)
    if value.is_graph_output():  # what is declared of it is the interface
        new.type, new.shape = value.type or new.type, value.shape or new.shape
    value.replace_all_uses_with(new, replace_graph_outputs=True)


def contradicts_output(value: ir.Value, content: Sequence[int] | np.ndarray) -> bool:
    """Whether the numbers `content` as the target of a Reshape would show that a graph's output is declared wrongly.

    Nobody sees that while the target is computed; afterwards the model would not be valid any more.
    """
    return any(
        user.op_type == "Reshape" and index == 1 and _is_declared_otherwise(user.outputs[0], content)
        for user, index in value.uses()
    )


def _is_declared_otherwise(output: ir.Value, target: Sequence[int] | np.ndarray) -> bool:
    if not output.is_graph_output() or output.shape is None:
        return False
    declared = output.shape.dims
    pairs = zip(declared, target, strict=False)
    return len(declared) != len(target) or any(isinstance(a, int) and b > 0 and a != b for a, b in pairs)


def remove_unused(nodes: Iterable[ir.Node]) -> int:
    """Remove those of `nodes` that nothing uses, then what only they used; return how many nodes went."""
    queue = dict.fromkeys(nodes)
    dead: dict[ir.Node, None] = {}
    while queue:
        node, _ = queue.popitem()
        if node in dead or node.graph is None or not node.outputs or not all(map(_is_unused, node.outputs)):
            continue
        dead[node] = None
        for value in _detach(node):
            producer = value.producer()
            if producer is not None:
                queue[producer] = None
            elif value.is_initializer() and not value.is_graph_input() and _is_unused(value) and value.graph:
                del value.graph.initializers[value.name or ""]
    remove(dead)
    return len(dead)


def _is_unused(value: ir.Value) -> bool:
    return not value.is_graph_output() and _values.use_count(value) == 0


def _detach(node: ir.Node) -> Iterator[ir.Value]:
    """Take away the inputs of a node and of all nodes in its subgraphs; yield what they were."""
    for user in (node, *nested_nodes(node)):
        taken = [value for value in user.inputs if value is not None]
        for index in range(len(user.inputs)):
            user.replace_input_with(index, None)
        yield from taken
