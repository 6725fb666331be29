"""Edits of a graph that several passes share: who owns what, and how one value takes the place of another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from infconv.model import subgraphs, with_subgraphs

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Two spellings of the standard operator set. onnx_ir maps the second to the first on nodes, not on opset imports."""


def standard_opset(imports: Mapping[str, int]) -> int | None:
    """Return the version of the standard operator set that `imports` names, or None."""
    return next((imports[domain] for domain in DEFAULT_DOMAINS if domain in imports), None)


def nested_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes in the subgraphs of `node`, at every depth."""
    for inner in subgraphs(node):
        for graph in with_subgraphs(inner):
            yield from graph


def scopes(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and the graph of each function, without subgraphs."""
    yield model.graph
    for function in model.functions.values():
        yield function.graph


def loose_names(graphs: Iterable[ir.Graph]) -> frozenset[str]:
    """Return the names that a subgraph gives out without computing them.

    A subgraph output that names a value of an outer graph is not valid for ONNX Runtime, yet the checker accepts it.
    onnx_ir makes a new value for it, so that the outer value does not know of this use.
    """
    return frozenset(
        output.name
        for graph in graphs
        for output in graph.outputs
        if output.name and output.producer() is None and not output.is_graph_input() and not output.is_initializer()
    )


def detach(node: ir.Node) -> list[ir.Node]:
    """Make `node` and the nodes in its subgraphs users of nothing; return the nodes that produced what they used."""
    producers: list[ir.Node] = []
    for user in (node, *nested_nodes(node)):
        for value in user.inputs:
            producer = None if value is None else value.producer()
            if producer is not None:
                producers.append(producer)
        user.resize_inputs(0)
    return producers


def remove(nodes: Iterable[ir.Node]) -> None:
    """Take detached `nodes` out of their graphs."""
    by_graph: dict[ir.Graph, list[ir.Node]] = {}
    for node in nodes:
        if node.graph is not None:
            by_graph.setdefault(node.graph, []).append(node)
    for graph, members in by_graph.items():
        graph.remove(members)


def can_be_renamed(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether `value` may become an output of `graph` under another name: computed there, and no output yet."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old`, the output of a node that is about to go, does.

    An output of the graph keeps its name, type and shape: `new` is renamed, or an Identity gives it the second name.
    """
    node = old.producer()
    assert node is not None
    graph = node.graph
    if old.is_graph_output() and graph is not None:
        final = new if can_be_renamed(new, graph) else _second_name(graph, node, new)
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = final
        name, old.name = old.name, None
        final.name = name
        final.type = old.type if old.type is not None else final.type
        final.shape = old.shape if old.shape is not None else final.shape
    old.replace_all_uses_with(new)


def _second_name(graph: ir.Graph, place: ir.Node, value: ir.Value) -> ir.Value:
    """Return an Identity of `value`, inserted before `place`."""
    identity = ir.Node("", "Identity", [value])
    graph.insert_before(place, identity)
    return identity.outputs[0]
