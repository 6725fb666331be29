"""Constant nodes become initializers, the one form of a constant that every other pass and runtime looks for."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import Context, Pass
from infconv.passes._graphs import with_subgraphs


class LiftConstants(Pass):
    """Turn Constant nodes into initializers of the graph that they are in.

    Left alone are Constants in functions, which cannot have initializers, Constants that are themselves an output of
    their graph, and models of IR version 3, where an initializer must be listed among the inputs.

    `c = Constant <value = float[2] {1, 2}> (); y = Add(x, c)` becomes `y = Add(x, c)` with the initializer `c`.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many Constant nodes were replaced."""
        if (model.ir_version or 4) < 4:
            return 0
        return sum(_lift(graph) for graph in with_subgraphs(model.graph))


def _lift(graph: ir.Graph) -> int:
    lifted: list[tuple[ir.Node, ir.Value]] = []
    for node in graph:
        if node.op_type == "Constant" and not node.domain and node.outputs:
            output, tensor = node.outputs[0], _tensor(node)
            if tensor is not None and output.name and not output.is_graph_output():
                lifted.append((node, _initializer(output, tensor)))
    for node, value in lifted:
        node.outputs[0].replace_all_uses_with(value)
    graph.remove([node for node, _ in lifted])
    for _, value in lifted:
        graph.register_initializer(value)
    return len(lifted)


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the constant in whatever attribute it was written."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value_string":
            return ir.StringTensor([_bytes(attribute.value)], shape=ir.Shape(()))
        if name == "value_strings":
            return ir.StringTensor([_bytes(text) for text in attribute.value], shape=ir.Shape((len(attribute.value),)))
    return _values.tensor(node.outputs[0])


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _initializer(output: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=output.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        doc_string=output.doc_string,
        const_value=tensor,
        metadata_props=dict(output.metadata_props) or None,
    )
    tensor.name = value.name
    return value
