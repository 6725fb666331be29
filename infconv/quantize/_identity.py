"""Which node is which: identities that survive renaming and a new export of the same model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

_DEPTH = 4
"""How many producers back an identity looks: an edit further away leaves it alone."""
_SAMPLE_BYTES = 4096
_SAMPLES = 32
"""A weight larger than this many samples is known by as many pieces, evenly spaced: no gigabyte is read for a name."""
_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a node is, its name aside. Equal nodes are numbered in the model's order: `3f02…`, `3f02…#2`."""

    id: str
    """Of the operator, its attributes, the values of its constants, and its producers likewise to a depth of 4."""
    form: str
    """The same with the constants' shapes in place of their values: it survives training."""


def identities(model: ir.Model) -> dict[ir.Node, Identity]:
    """Return the identity of every node of the graph and its subgraphs, functions aside.

    The same for the same model whatever its nodes, values and inputs are called, and whether a constant is an
    initializer or a Constant node. No two nodes of a model share one.
    """
    nodes = [node for node in model.graph.all_nodes() if not _is_constant(node)]
    contents = _numbered(_hashes(nodes, _digests(nodes)))
    forms = _numbered(_hashes(nodes, {}))
    return {node: Identity(contents[node], forms[node]) for node in nodes}


def _numbered(hashes: Mapping[ir.Node, str]) -> dict[ir.Node, str]:
    seen: Counter[str] = Counter()
    found: dict[ir.Node, str] = {}
    for node, text in hashes.items():
        seen[text] += 1
        found[node] = text if seen[text] == 1 else f"{text}#{seen[text]}"
    return found


def _hashes(nodes: list[ir.Node], digests: Mapping[ir.Value, str]) -> dict[ir.Node, str]:
    """Return the hash of each node, refined by those of its producers as often as identities are deep."""
    positions = _input_positions(nodes)
    own = {node: _hash(node.domain, node.op_type, node.overload, *_attributes(node)) for node in nodes}
    known = own
    for _ in range(_DEPTH):
        known = {
            node: _hash(own[node], *(_input(value, known, digests, positions) for value in node.inputs))
            for node in nodes
        }
    return known


def _input(
    value: ir.Value | None,
    known: Mapping[ir.Node, str],
    digests: Mapping[ir.Value, str],
    positions: Mapping[ir.Value, int],
) -> str:
    if value is None:
        return "-"
    tensor = constant_of(value)
    if tensor is not None:
        return digests.get(value) or _form(tensor)
    producer = value.producer()
    if producer is not None and producer in known:
        return f"{known[producer]}.{value.index()}"
    return f"input {positions.get(value, '?')}"


def _input_positions(nodes: list[ir.Node]) -> dict[ir.Value, int]:
    graphs = dict.fromkeys(node.graph for node in nodes if isinstance(node.graph, ir.Graph))
    return {value: position for graph in graphs for position, value in enumerate(graph.inputs)}


def _digests(nodes: list[ir.Node]) -> dict[ir.Value, str]:
    """Return the digest of every constant that a node reads."""
    found: dict[ir.Value, str] = {}
    for node in nodes:
        for value in node.inputs:
            tensor = None if value is None or value in found else constant_of(value)
            if value is not None and tensor is not None:
                found[value] = _hash(_form(tensor), _content(tensor))
    return found


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a Constant's output; None for anything else."""
    node = value.producer()
    if node is None:
        return None if value.is_graph_input() else value.const_value
    if not _is_constant(node):
        return None
    name, attribute = next(iter(node.attributes.items()))
    return attribute.as_tensor() if name == "value" else ir.tensor(attribute.value)


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain == "" and "sparse_value" not in node.attributes


def _form(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype.name}{list(tensor.shape.numpy())}"


def _content(tensor: ir.TensorProtocol) -> str:
    array = tensor.numpy()
    if array.dtype.kind in "OSU":
        return repr(array.tolist())
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    pieces = [data]
    if data.size > _SAMPLE_BYTES * _SAMPLES:
        starts = np.linspace(0, data.size - _SAMPLE_BYTES, _SAMPLES).astype(np.int64)
        pieces = [data[start : start + _SAMPLE_BYTES] for start in starts]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.tobytes())
    return digest.hexdigest()


def _attributes(node: ir.Node) -> list[str]:
    return [f"{name}={_attribute(attribute)}" for name, attribute in sorted(node.attributes.items())]


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return _form(tensor) + _content(tensor)
    if attribute.type == ir.AttributeType.GRAPH:
        return " ".join(node.op_type for node in attribute.as_graph())
    if attribute.type == ir.AttributeType.GRAPHS:
        return "; ".join(" ".join(node.op_type for node in graph) for graph in attribute.as_graphs())
    return repr(attribute.value)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_LENGTH]
