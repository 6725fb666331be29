"""A digest of what a graph computes, which names, order, types and where a constant is kept do not change."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from infconv.model import tensor_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

_CHECKED = 1 << 16
"""Tensors of more bytes than this are told apart by a checksum."""


class Digester:
    """Digests models that share weights: each tensor is read once."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[ir.TensorProtocol, bytes]] = {}
        """Identity -> the tensor (kept, so that its identity is not given to another) and its digest."""

    def digest(self, model: ir.Model) -> bytes:
        """Return the same bytes for two models only if they compute the same from the same inputs.

        Both have the same inputs and outputs, by name, and the same operators with the same attributes between them; a
        Constant node and an initializer of its value are the same, and so is an Identity and nothing.
        """
        functions = [_hash(repr(key), self._function(function)) for key, function in model.functions.items()]
        known: dict[ir.Value, bytes] = {}
        for value in model.graph.inputs:
            default = b"" if value.const_value is None else self.tensor(value.const_value)
            known[value] = _hash("input", value.name or "", default)
        names = [value.name or "" for value in model.graph.outputs]
        return _hash("model", *names, self._graph(model.graph, known, model.opset_imports), *sorted(functions))

    def _function(self, function: ir.Function) -> bytes:
        known = {value: _hash("parameter", str(i)) for i, value in enumerate(function.inputs)}
        return self._graph(function.graph, known, function.opset_imports)

    def _graph(
        self, graph: ir.Graph, known: dict[ir.Value, bytes], versions: Mapping[str, int], depth: int = 0
    ) -> bytes:
        """Return the digest of the outputs of `graph`; `known` has its inputs and the values of outer graphs."""
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input():
                known[value] = self.tensor(value.const_value)
        for node in graph:
            self._node(node, known, versions, depth)
        # A graph may give out an outer value by its mere name.
        return _hash("outputs", *(known.get(value) or _hash("outer", value.name or "") for value in graph.outputs))

    def _node(self, node: ir.Node, known: dict[ir.Value, bytes], versions: Mapping[str, int], depth: int) -> None:
        if node.op_type == "Constant" and not node.domain and "value" in node.attributes:
            known[node.outputs[0]] = self.tensor(node.attributes["value"].as_tensor())
            return
        inputs = [
            b"" if value is None else known.get(value) or _hash("free", value.name or "") for value in node.inputs
        ]
        if node.op_type == "Identity" and not node.domain:
            known[node.outputs[0]] = inputs[0]
            return
        attributes = self.attributes(node, known, versions, depth + 1)
        version = str(versions.get(node.domain, ""))
        digest = _hash("node", node.domain, version, node.op_type, node.overload, attributes, *inputs)
        for index, value in enumerate(node.outputs):
            known[value] = _hash("output", str(index), digest)

    def attributes(
        self,
        node: ir.Node,
        known: Mapping[ir.Value, bytes] | None = None,
        versions: Mapping[str, int] | None = None,
        depth: int = 0,
    ) -> bytes:
        """Return the digest of a node's attributes; values of outer graphs that subgraphs use count by their names."""
        parts = [
            _hash(name, self._attribute(attribute, known or {}, versions or {}, depth))
            for name, attribute in sorted(node.attributes.items())
        ]
        return _hash("attributes", *parts)

    def _attribute(
        self, attribute: ir.Attr, known: Mapping[ir.Value, bytes], versions: Mapping[str, int], depth: int
    ) -> bytes:
        import onnx_ir as ir

        if attribute.is_ref():
            return _hash("reference", attribute.ref_attr_name or "")
        if attribute.type == ir.AttributeType.TENSOR:
            return self.tensor(attribute.as_tensor())
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return _hash("value", f"{attribute.type} {attribute.value!r}")
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
        digests: list[bytes] = []
        for graph in graphs:
            formal = {value: _hash("formal", str(i), str(depth)) for i, value in enumerate(graph.inputs)}
            digests.append(self._graph(graph, {**known, **formal}, versions, depth))
        return _hash("graphs", *digests)

    def tensor(self, tensor: ir.TensorProtocol) -> bytes:
        """Return the digest of a tensor's type, shape and values."""
        import onnx_ir as ir

        seen = self._tensors.get(id(tensor))
        if seen is None:
            if tensor.dtype == ir.DataType.STRING:
                content = repr(tensor.numpy().tolist()).encode()
            else:
                data = tensor_bytes(tensor)
                # A cryptographic hash would take longer than the run that this saves.
                content = str(zlib.crc32(data)).encode() if data.nbytes > _CHECKED else bytes(data)
            seen = tensor, _hash("tensor", tensor.dtype.name, str(list(tensor.shape.numpy())), content)
            self._tensors[id(tensor)] = seen
        return seen[1]


def _hash(*parts: str | bytes) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()
