"""Loops as runtimes want them: what never changes is read from outside, and what only counts has a number.

tf2onnx hands every variable that a loop reads from one iteration to the next. As outer values they are constants to
all optimisations, and OpenVINO reads the loop: it refuses a body whose output is its input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

NO_LIMIT = 2**31 - 1
"""A trip count from here on is none: TensorFlow's own for a loop that its condition ends."""
_EXACT = 2**24
"""Up to here float32, in which tf2onnx compares, holds every integer."""


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


def count_trips(graph: Any, outer: Mapping[str, Any] | None = None) -> int:
    """Give the loops that only count their number of iterations, the inner ones too; return how many.

    TensorFlow Lite writes `for` as `while i < n`. A loop with a number, and without a condition of its own, has outputs
    of known size, which TensorRT asks for.
    """
    known = {**(outer or {}), **_integers(graph)}
    counted = 0
    for node in graph.node:
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        counted += sum(count_trips(body, known) for body in bodies)
        trips = _trips(node, bodies[0], known) if node.op_type == "Loop" and node.domain == "" else None
        if trips is not None:
            name = f"{node.output[0]}.trips"
            graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [], [trips]))
            node.input[0] = name
            bodies[0].node.append(onnx.helper.make_node("Identity", [bodies[0].input[1].name], [f"{name}.on"]))
            bodies[0].output[0].name = f"{name}.on"
            counted += 1
    return counted


def _trips(loop: Any, body: Any, known: Mapping[str, Any]) -> int | None:
    """Return the iterations of a loop that ends when counters reach constants, None for any other."""
    if loop.input[0] and known.get(loop.input[0], 0) < NO_LIMIT:
        return None
    makers = {name: node for node in body.node for name in node.output}
    constants = {**known, **_integers(body)}
    found = [_left(test, loop, body, makers, constants) for test in _tests(body.output[0].name, makers)]
    least = min((left for left in found if left is not None), default=0)
    return least if None not in found and 1 <= least < _EXACT else None


def _tests(name: str, makers: Mapping[str, Any]) -> list[Any]:
    """Return the nodes that all have to say yes for the value `name` to be true; None for what is no node."""
    node = makers.get(_plain(name, makers))
    if node is not None and node.op_type == "And":
        return [test for side in node.input for test in _tests(side, makers)]
    return [node]


def _left(test: Any, loop: Any, body: Any, makers: Mapping[str, Any], known: Mapping[str, Any]) -> int | None:
    """Return after how many iterations `test` fails: it compares a value that each raises by 1 with a constant."""
    if test is None or test.op_type != "Less":
        return None
    counter, end = (_plain(name, makers) for name in test.input)
    step = makers.get(counter)
    if step is None or step.op_type != "Add" or known.get(end) is None:
        return None
    carried = [value.name for value in body.input]
    for before, by in (tuple(step.input), tuple(reversed(step.input))):
        if before in carried[2:] and known.get(_plain(by, makers)) == 1:
            place = carried.index(before)
            start = known.get(loop.input[place])
            comes_back = _plain(body.output[place - 1].name, makers) == counter
            return int(known[end] - start) if comes_back and start is not None else None
    return None


def _plain(name: str, makers: Mapping[str, Any]) -> str:
    """Return what `name` is a copy or a cast of."""
    node = makers.get(name)
    while node is not None and node.op_type in ("Identity", "Cast"):
        name = node.input[0]
        node = makers.get(name)
    return name


def _integers(graph: Any) -> dict[str, int]:
    """Return the constants of one whole number by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    one = {name: tensor for name, tensor in tensors.items() if math.prod(tensor.dims) == 1}
    values = {name: onnx.numpy_helper.to_array(tensor).reshape(-1)[0] for name, tensor in one.items()}
    return {name: int(value) for name, value in values.items() if value.dtype.kind in "iuf" and value == int(value)}
