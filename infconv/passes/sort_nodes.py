"""Topological order, which ONNX demands of a file."""

from __future__ import annotations

import onnx_ir as ir

from infconv.errors import SourceError
from infconv.passes._base import Context, Pass
from infconv.passes._graphs import scopes, subgraphs


class SortNodes(Pass):
    """Put nodes after the nodes whose results they use, moving no more than that takes.

    `z = Relu(y); y = Exp(x)` becomes `y = Exp(x); z = Relu(y)`.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many graphs (functions included) were out of order. Raises SourceError for a cycle."""
        unsorted = [graph for graph in scopes(model) if not _is_sorted(graph, set())]
        for graph in unsorted:
            try:
                graph.sort()
            except ValueError as error:
                raise SourceError(
                    f"The graph '{graph.name}' has a cycle: no order of its nodes computes it.",
                    "Export the model again; an earlier tool broke it.",
                ) from error
        return len(unsorted)


def _is_sorted(graph: ir.Graph, done: set[ir.Node]) -> bool:
    """Whether every producer within `graph` or around it is in `done` before its user."""
    for node in graph:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in done and producer.graph is not None:
                return False
        if not all(_is_sorted(inner, done) for inner in subgraphs(node)):
            return False
        done.add(node)
    return True
