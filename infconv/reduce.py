"""The smallest part of a graph that still shows a fault, cut out at inner values whose contents were recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from infconv.reference import Sample

if TYPE_CHECKING:
    import onnx_ir as ir

Fails: TypeAlias = "Callable[[ir.Model, Sample], bool]"
"""Whether a model shows the fault on a sample (its inputs, and the outputs that are right for them)."""


class Cutter:
    """Cuts parts out of a model whose values on one sample are known."""

    def __init__(self, model: ir.Model, recorded: Mapping[str, Any]) -> None:
        self.model, self.recorded = model, recorded
        self.nodes = list(model.graph)
        self._used = {node: _used_by(node, model.graph) for node in self.nodes}
        self._users: dict[ir.Value, list[ir.Node]] = {}
        for node, values in self._used.items():
            for value in values:
                self._users.setdefault(value, []).append(node)

    def behind(self, names: Sequence[str], border: Collection[str] = ()) -> list[ir.Node]:
        """Return the nodes that compute the values of these `names` from those in `border`, in order."""
        found: set[ir.Node] = set()
        todo = [node for node in self.nodes if any(output.name in names for output in node.outputs)]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                needed = [value for value in self._used[node] if value.name not in border]
                todo += [producer for value in needed if (producer := value.producer()) is not None]
        return [node for node in self.nodes if node in found]

    def cut(self, nodes: Sequence[ir.Node]) -> tuple[ir.Model, Sample] | None:
        """Return `nodes` as a model of their own, and its sample; None where a value at its border is no tensor.

        Its inputs are the values that the nodes take from elsewhere, its outputs those that none of them takes.
        """
        import onnx_ir as ir

        inside = set(nodes)
        made = [value for node in nodes for value in node.outputs if value.name]
        inputs = dict.fromkeys(v for node in nodes for v in self._used[node] if v.producer() not in inside)
        inputs = [v for v in inputs if not v.is_initializer()]
        outputs = [v for v in made if v.is_graph_output() or not any(u in inside for u in self._users.get(v, ()))]
        border = [*inputs, *outputs]
        if not outputs or any(not isinstance(self.recorded.get(v.name or ""), np.ndarray) for v in border):
            return None
        graph = ir.convenience.extract(self.model.graph, inputs, outputs)
        graph.name = self.model.graph.name
        for value in (*graph.inputs, *graph.outputs):
            _declare(value, self.recorded[value.name or ""])
        part = ir.Model(graph, ir_version=self.model.ir_version or 10, functions=list(self.model.functions.values()))
        part.meta.update(self.model.meta)
        feeds = {value.name or "": self.recorded[value.name or ""] for value in graph.inputs}
        wanted = {value.name or "": self.recorded[value.name or ""] for value in graph.outputs}
        return part, Sample("recorded", feeds, wanted)


def _used_by(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """Return the values of `graph` that `node` takes, those that its subgraphs use included."""
    from infconv.passes._graphs import nested_nodes

    taken = [value for inner in (node, *nested_nodes(node)) for value in inner.inputs if value is not None]
    own = [
        v for v in taken if (v.producer() is not None and v.graph is graph) or v.is_graph_input() or v.is_initializer()
    ]
    return list(dict.fromkeys(v for v in own if v.graph is graph))


def _declare(value: ir.Value, content: np.ndarray) -> None:
    """Give a value at the border the type, and the rank, that its content has; known sizes stay as they are."""
    import onnx_ir as ir

    if value.dtype is None:
        value.dtype = ir.DataType.STRING if content.dtype.kind in "OUS" else ir.DataType.from_numpy(content.dtype)
    declared = None if value.shape is None else list(value.shape)
    stale = declared is None or len(declared) != content.ndim
    stale = stale or any(isinstance(d, int) and d != n for d, n in zip(declared or (), content.shape, strict=True))
    if stale:
        value.shape = ir.Shape(list(content.shape))


def reduce(
    cutter: Cutter, fails: Fails, starts: Sequence[Sequence[ir.Node]], *, trials: int = 200, seconds: float = 120.0
) -> tuple[ir.Model, Sample] | None:
    """Return the smallest part that was found to fail; None when not even one of the `starts` does.

    First the end and the beginning are cut off, by halving; then parts of what is left are taken out, smaller and
    smaller (delta debugging: Zeller and Hildebrandt, 2002), until no node can go or `trials` or `seconds` are spent.
    """
    search = _Search(cutter, fails, trials, time.monotonic() + seconds)
    for start in starts:
        if search.shows(start):
            break
    else:
        return None
    nodes = list(start)
    nodes = nodes[: search.least(len(nodes), lambda n: nodes[:n])]
    nodes = nodes[len(nodes) - search.least(len(nodes), lambda n: nodes[len(nodes) - n :]) :]
    return cutter.cut(search.thin_out(nodes))


class _Search:
    def __init__(self, cutter: Cutter, fails: Fails, trials: int, deadline: float) -> None:
        self._cutter, self._fails, self._left, self._deadline = cutter, fails, trials, deadline

    def shows(self, nodes: Sequence[ir.Node]) -> bool:
        """Whether `nodes` alone show the fault; False when the budget is spent."""
        if not nodes or not self._left or time.monotonic() > self._deadline:
            return False
        self._left -= 1
        part = self._cutter.cut(nodes)
        return part is not None and self._fails(*part)

    def least(self, most: int, take: Callable[[int], Sequence[ir.Node]]) -> int:
        """Return an n for which `take(n)` shows the fault, and `take(n - 1)` does not; `take(most)` does."""
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.shows(take(middle)):
                high = middle
            else:
                low = middle
        return high

    def thin_out(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """Return `nodes` without those that can go."""
        chunk = max(1, len(nodes) // 2)
        while chunk:
            gone = False
            for first in range(0, len(nodes), chunk):
                fewer = nodes[:first] + nodes[first + chunk :]
                if self.shows(fewer):
                    nodes, gone = fewer, True
                    break
            chunk = min(chunk, max(1, len(nodes) // 2)) if gone else chunk // 2
        return nodes
