"""Common subexpression elimination, for nodes and for initializers."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.model import pieces, release_pages, tensor_bytes
from infconv.passes._base import Context, Pass
from infconv.passes._graphs import (
    DEFAULT_DOMAINS,
    can_be_renamed,
    detach,
    loose_names,
    remove,
    scopes,
    subgraphs,
    take_over,
    with_subgraphs,
)

_COMMUTATIVE = frozenset({"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor"})
_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial"})
_PURE_DOMAINS = frozenset({*DEFAULT_DOMAINS, "ai.onnx.ml", "com.microsoft"})
"""Operator sets of which it is known which operators are random. Others may do anything."""
_MICROSOFT_RANDOM = ("Random", "Dropout", "Sampling", "Search")
_SMALL = 1024
"""Tensors of at most this many bytes are compared as they are, larger ones by a sample and then by a digest."""
_SAMPLES = 64
_SAMPLE = "infconv.sample"

_FunctionIds = frozenset[ir.OperatorIdentifier]
_NodeKey = tuple[ir.OperatorIdentifier, tuple[bool, ...], tuple[int, ...], tuple[Hashable, ...]]


class MergeDuplicates(Pass):
    """Merge nodes that compute the same, and initializers that hold the same.

    Same means: the same operator, attributes and inputs, within one graph; operators that are random, or of which
    nothing is known, are left alone. Outputs of the graph keep their names: of two equal ones, the second becomes an
    Identity of the first. Initializers are compared bit by bit.

    `a = Exp(x); b = Exp(x); y = Add(a, b)` becomes `a = Exp(x); y = Add(a, a)`.
    """

    rewires: ClassVar[bool] = True
    max_weight_bytes: int | None = Field(default=None, ge=0)
    """Leave larger initializers alone: one that two operators share can no longer be folded into either."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes and initializers were merged into another."""
        changes = sum(_merge_initializers(graph, self.max_weight_bytes) for graph in with_subgraphs(model.graph))
        graphs = [graph for scope in scopes(model) for graph in with_subgraphs(scope)]
        merger = _Merger(_pure_functions(model), loose_names(graphs))
        for graph in scopes(model):
            merger.merge(graph)
        for node in merger.merged:
            detach(node)
        remove(merger.merged)
        return changes + len(merger.merged)


# --- nodes -----------------------------------------------------------------------------------------------------


class _Merger:
    """Walks a graph in order, so that the inputs of a node are merged before the node is looked at."""

    def __init__(self, pure_functions: _FunctionIds, loose: frozenset[str]) -> None:
        self.pure_functions = pure_functions
        self.loose = loose
        self.merged: list[ir.Node] = []
        self.purity: dict[ir.OperatorIdentifier, bool] = {}

    def merge(self, graph: ir.Graph) -> None:
        first: dict[_NodeKey, ir.Node] = {}
        for node in graph:
            if node.attributes.data:
                for inner in subgraphs(node):
                    self.merge(inner)
            key = self.key(node)
            if key is None:
                continue
            original = first.setdefault(key, node)
            if original is not node and self.may_merge(node, original, graph):
                for old, new in zip(node.outputs, original.outputs, strict=True):
                    take_over(old, new)
                self.merged.append(node)

    def key(self, node: ir.Node) -> _NodeKey | None:
        """Return what two nodes that compute the same have in common; None for a node that stays."""
        if not node.outputs or not self.is_pure(node):
            return None
        attributes: list[Hashable] = []
        for name, attribute in sorted(node.attributes.data.items()):
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                return None
            attributes.append((name, attribute.type, _attribute_key(attribute)))
        inputs = [0 if value is None else id(value) for value in node.inputs]
        while inputs and inputs[-1] == 0:
            inputs.pop()
        if node.op_type in _COMMUTATIVE and not node.domain and not attributes:
            inputs.sort()
        present = tuple([bool(output.name) for output in node.outputs])
        return node.op_identifier(), present, tuple(inputs), tuple(attributes)

    def is_pure(self, node: ir.Node) -> bool:
        identifier = node.op_identifier()
        if identifier not in self.purity:
            self.purity[identifier] = _is_pure(node, self.pure_functions)
        return self.purity[identifier]

    def may_merge(self, node: ir.Node, original: ir.Node, graph: ir.Graph) -> bool:
        """Whether merging makes the graph smaller, or at least cheaper: one Identity for one node is the limit."""
        if any(output.name in self.loose for output in node.outputs):
            return False
        identities = sum(
            old.is_graph_output() and not can_be_renamed(new, graph)
            for old, new in zip(node.outputs, original.outputs, strict=True)
        )
        return identities == 0 or (identities == 1 and node.op_type not in ("Identity", "Constant"))


def _is_pure(node: ir.Node, pure_functions: _FunctionIds) -> bool:
    """Whether the node's results depend on its inputs and attributes alone."""
    if node.op_identifier() in pure_functions:
        return True
    if node.domain not in _PURE_DOMAINS:
        return False
    if node.domain == "com.microsoft":
        return not any(word in node.op_type for word in _MICROSOFT_RANDOM)
    return node.op_type not in _RANDOM and not node.op_type.startswith("Random")


def _pure_functions(model: ir.Model) -> _FunctionIds:
    """Return the functions of the model that are made of pure nodes only, functions within functions included."""
    functions = model.functions
    pure = frozenset(functions)
    while True:
        still = frozenset(
            name
            for name in pure
            if all(
                (node.op_identifier() in pure) if node.op_identifier() in functions else _is_pure(node, frozenset())
                for node in functions[name].all_nodes()
            )
        )
        if still == pure:
            return pure
        pure = still


def _attribute_key(attribute: ir.Attr) -> Hashable:
    """Return a value that is equal for equal attributes only: 0.0 and -0.0 differ, NaN equals itself."""
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name
    value: Any = attribute.value
    match attribute.type:
        case ir.AttributeType.FLOAT:
            return struct.pack("d", value)
        case ir.AttributeType.FLOATS:
            return struct.pack(f"{len(value)}d", *value)
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return tuple(value)
        case ir.AttributeType.TENSOR:
            return _tensor_key(value)
        case ir.AttributeType.TENSORS:
            return tuple(_tensor_key(tensor) for tensor in value)
        case ir.AttributeType.TYPE_PROTO | ir.AttributeType.TYPE_PROTOS:
            return repr(value)
        case _:
            return value


def _tensor_key(tensor: ir.TensorProtocol) -> Hashable:
    return tensor.dtype, tuple(tensor.shape.numpy()), _digest(tensor)


# --- initializers ----------------------------------------------------------------------------------------------


def _merge_initializers(graph: ir.Graph, max_bytes: int | None) -> int:
    """Merge the initializers of `graph`, comparing no more of each than is needed to tell it from the others."""
    candidates = [v for v in graph.initializers.values() if v.const_value is not None and not v.is_graph_input()]
    same_form = [g for g in _refine([candidates], [_form]) if max_bytes is None or _tensor(g[0]).nbytes <= max_bytes]
    changes = 0
    for equal in _refine(same_form, [_sample, _digest_of]):
        removable = [value for value in equal[1:] if not value.is_graph_output()]
        for value in removable:
            value.replace_all_uses_with(equal[0])
            assert value.name is not None
            del graph.initializers[value.name]
        changes += len(removable)
    return changes


def _refine(groups: list[list[ir.Value]], keys: list[Callable[[ir.Value], Hashable]]) -> Iterator[list[ir.Value]]:
    """Yield the parts of `groups` of at least two values whose `keys`, from cheap to expensive, are all equal."""
    for key in keys:
        finer: list[list[ir.Value]] = []
        for group in groups:
            parts: dict[Hashable, list[ir.Value]] = {}
            for value in group:
                parts.setdefault(key(value), []).append(value)
            finer.extend(part for part in parts.values() if len(part) > 1)
        groups = finer
    yield from groups


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _form(value: ir.Value) -> Hashable:
    """Return the tensor's type and shape; those of one form have as many bytes, but for strings."""
    tensor = _tensor(value)
    return tensor.dtype, tensor.shape.dims, tensor.nbytes if tensor.dtype == ir.DataType.STRING else None


def _sample(value: ir.Value) -> Hashable:
    """Return some bytes of the tensor, spread over the whole of it; all of them when there are few.

    The answer is kept: this pass runs several times, and a tensor does not change.
    """
    meta = _tensor(value).meta
    if _SAMPLE not in meta:
        meta[_SAMPLE] = _find_sample(_tensor(value))
    return meta[_SAMPLE]


def _find_sample(tensor: ir.TensorProtocol) -> Hashable:
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _SMALL:
        return _digest(tensor)
    data = tensor_bytes(tensor)
    sample = np.frombuffer(data, np.uint8)[:: len(data) // _SAMPLES].tobytes()
    release_pages(data)
    return sample


def _digest_of(value: ir.Value) -> Hashable:
    return _digest(_tensor(value))


def _digest(tensor: ir.TensorProtocol) -> Hashable:
    """Return the tensor's bytes, or a digest of them when they are many."""
    if isinstance(tensor, ir.StringTensor):
        return tuple(tensor.string_data())
    data = tensor_bytes(tensor)
    if len(data) <= _SMALL:
        return bytes(data)
    digest = hashlib.blake2b(digest_size=32)
    for piece in pieces(data):
        digest.update(piece)
    return digest.digest()
