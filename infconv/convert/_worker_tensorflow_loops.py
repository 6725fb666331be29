"""Loops that carry what never changes: the values are read from outside instead.

tf2onnx hands every variable that a loop reads from one iteration to the next. As outer values they are constants to
all optimisations, and OpenVINO reads the loop: it refuses a body whose output is its input.
"""

from __future__ import annotations

from typing import Any

import onnx


def free_invariants(graph: Any) -> int:
    """Change the loops of `graph`, the inner ones too; return how many carried values were freed."""
    freed = 0
    for node in list(graph.node):
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        freed += sum(free_invariants(body) for body in bodies)
        if node.op_type == "Loop" and node.domain == "":
            freed += _free(graph, node, bodies[0])
    return freed


def _free(graph: Any, loop: Any, body: Any) -> int:
    freed = 0
    # A Loop is fed its trip count and condition first, and its body the number of the iteration and the condition.
    for i in reversed(range(len(body.input) - 2)):
        inside, outside = body.input[i + 2].name, loop.input[i + 2]
        leaving = [value.name for value in body.output]
        if leaving[i + 1] != inside or leaving.count(inside) > 1 or len(loop.output) == 1:
            continue
        result = loop.output[i]
        del body.input[i + 2], body.output[i + 1], loop.input[i + 2], loop.output[i]
        _rename(body, inside, outside)
        if result:
            _rename(graph, result, outside)
        if any(value.name == result for value in graph.output):
            graph.node.append(onnx.helper.make_node("Identity", [outside], [result]))
        freed += 1
    return freed


def _rename(graph: Any, old: str, new: str) -> None:
    """Let the nodes of `graph`, and those of graphs inside it, read `new` instead of `old`."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)
                for value in attribute.g.output:
                    if value.name == old:
                        attribute.g.node.append(onnx.helper.make_node("Identity", [new], [f"{old}_outer"]))
                        value.name = f"{old}_outer"
