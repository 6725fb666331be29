"""Transposes moved to where they cancel."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import can_be_renamed, remove, scopes, standard_opset, with_subgraphs
from infconv.passes._layouts import Layouts, Use, transpose_of
from infconv.passes._permute import Perm, between, is_identity


class PushTransposes(Pass):
    """Move Transposes across operators that can work in either layout, to where they cancel or move less.

    Element-wise and broadcasting operators, Concat, Split, reductions, ArgMax, Softmax, Pad, Slice, Gather, Squeeze,
    Unsqueeze, Expand, Tile, Resize, quantization: their axes are renamed and their constants transposed. Which of them
    to turn around is a minimum cut, so that no smaller number of Transposes is possible with these two layouts; among
    as many, those are taken that move fewer elements. A graph that gains nothing is not touched. Every round lowers
    the cost, which is a natural number, so that rounds end.

    `y = Transpose(Relu(Transpose(x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])` becomes `y = Relu(x)`.
    """

    needs_shapes: ClassVar[bool] = True

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the number of operators that work in another layout than before."""
        names = Names(model)
        changes = 0
        for scope in scopes(model):
            opset = standard_opset(scope.opset_imports)
            if opset is None:
                continue
            for graph in with_subgraphs(scope):
                # functions have no initializers, and before IR version 4 an initializer had to be an input as well
                initializers = scope is model.graph and (graph is not scope or (model.ir_version or 4) >= 4)
                work = _Graph(graph, opset, scope.opset_imports, names, initializers)
                while done := work.improve():
                    changes += done
        return changes


class _Graph:
    """Changes one graph."""

    def __init__(
        self, graph: ir.Graph, opset: int, imports: MutableMapping[str, int], names: Names, initializers: bool
    ) -> None:
        self._graph = graph
        self._opset = opset
        self._imports = imports
        self._names = names
        self._initializers = initializers
        self._interface = [(value.name, value.type, value.shape) for value in graph.outputs]

    def improve(self) -> int:
        """Turn around the operators for which it pays; return how many."""
        layouts = Layouts(self._graph, self._opset)
        flipped = layouts.choose() if layouts.operators else set[ir.Node]()
        if not flipped:
            return 0
        chosen = [node for node in layouts.operators if node in flipped]
        roots = dict.fromkeys(value for node in chosen for value in layouts.moved(node))
        wiring = [(value, *self._wishes(value, layouts, flipped)) for value in roots]
        for node in chosen:
            self._flip(node, layouts)
        for value, provided, wishes in wiring:
            self._connect(value, provided, wishes)
        self._clean()
        return len(chosen)

    def _wishes(
        self, value: ir.Value, layouts: Layouts, flipped: set[ir.Node]
    ) -> tuple[Perm | None, list[tuple[Use, Perm | None]]]:
        """Return how `value` is computed, and how each use wants it; both relative to how it is now."""
        wishes = [(use, layouts.required(use, flipped)) for use in layouts.uses(value)]
        return layouts.provided(value, flipped), wishes

    def _flip(self, node: ir.Node, layouts: Layouts) -> None:
        plan = layouts.operators[node].plan
        place = (node.name or "").rpartition("/")
        op = Builder(self._graph, self._imports, self._names, place[0] + place[1], self._initializers)
        plan.change(op, node)
        op.add_to_graph(node)
        for value, perm in zip(node.outputs, plan.outputs, strict=True):
            if perm is not None and value.shape is not None:
                value.shape = ir.Shape([value.shape[axis] for axis in perm])

    def _connect(self, value: ir.Value, provided: Perm | None, wishes: list[tuple[Use, Perm | None]]) -> None:
        """Give each use what it wants of `value`, by one Transpose for each layout in which it is wanted."""
        made: dict[Perm | None, ir.Value] = {}
        if provided is None:
            for user, _ in value.uses():
                perm = transpose_of(user)
                if perm is not None and user.graph is self._graph:
                    made.setdefault(perm, user.outputs[0])
        elif not value.is_graph_output():
            value.name = self._names.fresh(f"{value.name}_transposed")
        for use, wanted in wishes:
            missing = _missing(provided, wanted)
            if missing is None:
                source = value
            elif missing in made:
                source = made[missing]
            else:
                source = made[missing] = self._transpose(value, missing)
            self._rewire(use, source)

    def _transpose(self, value: ir.Value, perm: Perm) -> ir.Value:
        """Make a Transpose of `value`, directly after it is computed."""
        node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", list(perm))])
        node.name = self._names.fresh("Transpose")
        output = node.outputs[0]
        output.name = self._names.fresh(f"{value.name or node.name}_transposed")
        output.type = copy.deepcopy(value.type)  # a Value's dtype is set in place
        output.shape = None if value.shape is None else ir.Shape([value.shape[axis] for axis in perm])
        producer = value.producer()
        if producer is not None and producer.graph is self._graph:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return output

    def _rewire(self, use: Use, source: ir.Value) -> None:
        if use.node is not None:
            if use.node.inputs[use.index] is not source:
                use.node.replace_input_with(use.index, source)
            return
        old = self._graph.outputs[use.index]
        if old is source:
            return
        if not can_be_renamed(source, self._graph):
            identity = ir.Node("", "Identity", [source], name=self._names.fresh("Identity"))
            self._graph.append(identity)
            source = identity.outputs[0]
        self._graph.outputs[use.index] = source
        old.name = self._names.fresh(f"{old.name}_transposed")
        source.name, source.type, source.shape = self._interface[use.index]

    def _clean(self) -> None:
        """Remove Transposes and constants that nothing uses any more."""
        dead: list[ir.Node] = []
        for node in reversed(self._graph):
            if transpose_of(node) is not None and not _values.is_used(node.outputs[0]):
                node.resize_inputs(0)
                dead.append(node)
        remove(dead)
        unused = [n for n, v in self._graph.initializers.items() if not _values.is_used(v) and not v.is_graph_input()]
        for name in unused:
            del self._graph.initializers[name]


def _missing(provided: Perm | None, wanted: Perm | None) -> Perm | None:
    """Return the Transpose that is needed in between; None for none."""
    if provided is None or wanted is None:
        some = provided or wanted
        if some is None:
            return None
        start, end = provided or tuple(range(len(some))), wanted or tuple(range(len(some)))
    else:
        start, end = provided, wanted
    missing = between(start, end)
    return None if is_identity(missing) else missing
