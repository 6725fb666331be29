"""Dead code elimination."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping
from functools import cache
from typing import ClassVar

import onnx_ir as ir

from infconv.passes._base import Context, Pass
from infconv.passes._functions import reachable
from infconv.passes._graphs import (
    DEFAULT_DOMAINS,
    detach,
    loose_names,
    nested_nodes,
    remove,
    scopes,
    standard_opset,
    with_subgraphs,
)
from infconv.passes._values import use_count


class RemoveUnused(Pass):
    """Remove nodes, optional outputs, initializers, functions and opset imports that nothing uses.

    Inputs and outputs of the graph are its interface and stay, used or not. So does the default of an input, and a
    node that has no outputs: it can only be there for its effect.

    `y = Relu(x); unused = Exp(x)` becomes `y = Relu(x)`.
    """

    rewires: ClassVar[bool] = True

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes, outputs, initializers, functions and imports were removed."""
        graphs = _all_graphs(model)
        kept = loose_names(graphs)
        changes = _remove_nodes(graphs, kept) + _remove_functions(model)
        for scope in scopes(model):
            inner = with_subgraphs(scope)
            changes += _remove_outputs(inner, scope.opset_imports, model, kept)
            changes += sum(_remove_initializers(graph, kept) for graph in inner)
            callable_domains = {function.domain for function in model.functions.values()}
            changes += _remove_imports(inner, scope.opset_imports, callable_domains if scope is model.graph else set())
        return changes


def _all_graphs(model: ir.Model) -> list[ir.Graph]:
    return [graph for scope in scopes(model) for graph in with_subgraphs(scope)]


def _remove_nodes(graphs: Iterable[ir.Graph], kept: frozenset[str]) -> int:
    queue = deque(node for graph in graphs for node in reversed(graph))
    dead: dict[ir.Node, None] = {}
    inside_dead: set[ir.Node] = set()
    while queue:
        node = queue.popleft()
        if node not in dead and _is_dead(node, kept) and node not in inside_dead:
            dead[node] = None
            inside_dead.update(nested_nodes(node))
            queue.extend(detach(node))
    remove(dead)
    return len(dead)


def _is_dead(node: ir.Node, kept: frozenset[str]) -> bool:
    return bool(node.outputs) and all(_is_unused(output, kept) for output in node.outputs)


def _is_unused(value: ir.Value, kept: frozenset[str]) -> bool:
    return not use_count(value) and not value.is_graph_output() and value.name not in kept


def _remove_functions(model: ir.Model) -> int:
    if not model.functions:
        return 0
    unused = model.functions.keys() - reachable(model)
    for name in unused:
        del model.functions[name]
    return len(unused)


def _remove_outputs(
    graphs: Iterable[ir.Graph], imports: Mapping[str, int], model: ir.Model, kept: frozenset[str]
) -> int:
    version = standard_opset(imports)
    if version is None:
        return 0
    changes = 0
    for graph in graphs:
        for node in graph:
            if len(node.outputs) > 1 and not node.domain and node.op_identifier() not in model.functions:
                changes += _remove_optional_outputs(node, version, kept)
    return changes


def _remove_optional_outputs(node: ir.Node, version: int, kept: frozenset[str]) -> int:
    if node.op_type == "BatchNormalization" and _is_training(node, version):
        return 0
    optional = _optional_outputs(node.op_type, version)
    unused = [o for i, o in enumerate(node.outputs) if i in optional and o.name and _is_unused(o, kept)]
    for output in unused:
        output.name = ""  # how ONNX writes an output that is not wanted
    if unused:
        last = max(i for i, output in enumerate(node.outputs) if output.name)
        node.resize_outputs(last + 1)
    return len(unused)


def _is_training(node: ir.Node, version: int) -> bool:
    """Whether a BatchNormalization that has several outputs trains. Before opset 14, having them means just that."""
    return version < 14 or node.attributes.get_int("training_mode", 0) != 0


@cache
def _optional_outputs(op_type: str, version: int) -> frozenset[int]:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, version)
    except onnx.defs.SchemaError:
        return frozenset()
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return frozenset(i for i, output in enumerate(schema.outputs) if output.option == optional)


def _remove_initializers(graph: ir.Graph, kept: frozenset[str]) -> int:
    unused = [
        name for name, value in graph.initializers.items() if _is_unused(value, kept) and not value.is_graph_input()
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)


def _remove_imports(graphs: Iterable[ir.Graph], imports: MutableMapping[str, int], needed: set[str]) -> int:
    unused = imports.keys() - needed.union(DEFAULT_DOMAINS)
    if unused:
        unused.difference_update(node.domain for graph in graphs for node in graph)
    for domain in unused:
        del imports[domain]
    return len(unused)
