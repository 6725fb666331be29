"""Operators that the user maps to ONNX: taken out of the program before paddle2onnx reads it, put back after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from ._worker import WorkerError, first_line
from ._worker_paddle_program import Op, Program, Tensor, attributes, op_name

HandlerOf = Callable[["Operator", list[str], list[str]], list[Any]]


@dataclasses.dataclass(frozen=True)
class Operator:
    """What a handler is told of the operator that it maps."""

    name: str
    """As in Paddle: `svd`."""
    attributes: Mapping[str, Any]
    """Plain values and lists."""
    results: tuple[Tensor, ...]
    """Types and sizes (-1: dynamic) of what it computes."""


@dataclasses.dataclass(frozen=True)
class Custom:
    """An operator that was taken out."""

    operator: Operator
    handler: HandlerOf
    inputs: list[str]
    outputs: list[str]


def take_out(program: Program, handlers: Mapping[str, Any], notes: list[str]) -> list[Custom]:
    """Remove the operators of `handlers` from the main block. Raises WorkerError for one in a branch or a loop."""
    found: list[Custom] = []
    for op in list(program.all_ops()):
        handler = handlers.get(op_name(op))
        if handler is None:
            continue
        if not any(op is each for each in program.ops):
            raise WorkerError(
                "unsupported",
                f"Operator '{op_name(op)}' stands inside a branch or a loop, where handlers do not reach.",
                "Move it out of the branch in the model.",
            )
        found.append(_taken(program, op, handler, len(found)))
    missing = sorted(set(handlers) - {each.operator.name for each in found})
    if missing:
        notes.append(f"The model has no operator {', '.join(missing)}, which the handlers map.")
    return found


def _taken(program: Program, op: Op, handler: HandlerOf, index: int) -> Custom:
    inputs, results = program.cut_out(op, index)
    return Custom(
        Operator(op_name(op), attributes(op), tuple(results)), handler, inputs, [tensor.name for tensor in results]
    )


def put_back(model: onnx.ModelProto, taken: list[Custom]) -> None:
    """Add the nodes that the handlers return, in `model` as paddle2onnx made it without them."""
    graph = model.graph
    for each in taken:
        graph.node.extend(_nodes(each))
    inner = {name for each in taken for name in (*each.inputs, *each.outputs)}
    for values in (graph.input, graph.output):
        kept = [value for value in values if value.name not in inner]
        del values[:]
        values.extend(kept)
    if taken:
        _sort(graph)
    known = {entry.domain for entry in model.opset_import}
    for domain in sorted({node.domain for node in graph.node} - known - {"", "ai.onnx"}):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))


def _nodes(custom: Custom) -> list[onnx.NodeProto]:
    name = custom.operator.name
    try:
        nodes = list(custom.handler(custom.operator, custom.inputs, custom.outputs))
    except Exception as error:  # the user's code raises whatever it meets
        raise WorkerError(
            "usage", f"The handler of operator '{name}' raised {type(error).__name__}: {first_line(error)}"
        ) from error
    given = {output for node in nodes if isinstance(node, onnx.NodeProto) for output in node.output}
    if not set(custom.outputs) & given or not all(isinstance(node, onnx.NodeProto) for node in nodes):
        raise WorkerError(
            "usage",
            f"The handler of operator '{name}' returned no onnx.NodeProto that computes any of {custom.outputs}.",
            "It is called with (operator, inputs, outputs) and returns a list of nodes; see docs/custom-operators.md.",
        )
    return nodes


def _sort(graph: onnx.GraphProto) -> None:
    """Order the nodes so that each comes after those that it reads from; ONNX demands it."""
    makers = {name: node for node in graph.node for name in node.output if name}
    done: set[int] = set()
    ordered: list[onnx.NodeProto] = []
    todo = [(node, False) for node in reversed(graph.node)]
    while todo:
        node, ready = todo.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            ordered.append(node)
            continue
        todo.append((node, True))
        todo += [(makers[name], False) for name in reversed(_read_by(node)) if name in makers]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _read_by(node: onnx.NodeProto) -> list[str]:
    """Return what `node` and its subgraphs read."""
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += [name for inner in attribute.g.node for name in _read_by(inner)]
            names += [value.name for value in attribute.g.output]
    return names
