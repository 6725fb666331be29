"""Replace an If whose condition is constant by the branch that it takes."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Names


def inline_if(node: ir.Node, names: Names, *, initializers: bool) -> bool:
    """Move the taken branch of `node` into its graph, and leave `node` without a use; return whether it was done.

    The condition must be constant, and where the graph cannot have `initializers` the branch must not have any. Values
    of the branch get new names: the other branch, and one that was moved before, may have the same.
    """
    condition = _values.scalar(node.inputs[0])
    outer = node.graph
    if condition is None or outer is None:
        return False
    branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
    results = list(branch.outputs)
    if any(value.producer() is None and not value.is_initializer() for value in results):
        return False  # an output that the branch does not compute: not valid ONNX
    if branch.initializers and not initializers:
        return False
    branch.outputs.clear()
    _move_initializers(branch, outer, names)
    nodes = list(branch)
    branch.remove(nodes)
    for moved in nodes:
        for value in moved.outputs:
            if value.name:
                value.name = names.fresh(value.name)
    outer.insert_before(node, nodes)
    for output, result in zip(node.outputs, results, strict=False):  # the last outputs may be left out
        _connect(node, output, result, names)
    return True


def _move_initializers(branch: ir.Graph, outer: ir.Graph, names: Names) -> None:
    for value in list(branch.initializers.values()):
        name = value.name or ""
        del branch.initializers[name]
        value.name = names.fresh(name)
        outer.initializers.add(value)


def _connect(node: ir.Node, output: ir.Value, result: ir.Value, names: Names) -> None:
    """Let `result` take the place of the If's `output`."""
    name, graph = output.name or "", node.graph
    if output.is_graph_output() and graph is not None:
        # The graph's output keeps its name, type and shape: they are the interface.
        identity = ir.node("Identity", [result], outputs=[ir.Value(name=name, type=output.type, shape=output.shape)])
        output.name = names.fresh(name)
        graph.insert_before(node, identity)
        output.replace_all_uses_with(identity.outputs[0], replace_graph_outputs=True)
        return
    output.replace_all_uses_with(result)
