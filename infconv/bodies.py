"""The bodies of If, Loop and Scan, written out in the main graph as they ran on one sample.

A runtime gives out the values of the main graph alone. So each If is replaced by the branch that it took, each Loop and
Scan by its iterations, one after the other; whatever is inside can then be looked at, compared and cut out like the
rest. A body that cannot be written out stays as it is, and its node says why.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infconv.compare import TOLERANCES, compare_outputs
from infconv.errors import InfconvError

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_NODES = 4000
"""Nodes that bodies may become in all."""
_OPERATORS = ("If", "Loop", "Scan")
_LABEL, _PLACE, _CONTROL = "infconv.label", "infconv.place", "infconv.control"
_CLOSED = "infconv.closed"


@dataclasses.dataclass(frozen=True)
class Observed:
    """A graph, and its values on one sample by name."""

    model: ir.Model
    values: dict[str, Any]


class _Closed(Exception):
    """Why a body cannot be written out."""


def observe(model: ir.Model, inputs: Mapping[str, Any]) -> Observed:
    """Return `model` with its bodies written out (`model` itself where it has none), and all values on `inputs`.

    What is written out computes the same outputs, which is checked; otherwise the graph stays as it is. Raises
    InfconvError when the model does not run on `inputs`.
    """
    from infconv.align import record

    plain = record(model, inputs)
    if not model.functions and not any(_bodies(node) for node in model.graph):
        return Observed(model, plain)
    try:
        flat = _Writer(model, inputs).written()
        values = record(flat, inputs)
        names = [value.name or "" for value in model.graph.outputs]
        errors = compare_outputs({n: plain[n] for n in names}, {n: values[n] for n in names}, TOLERANCES["fp32"])
        if all(error.ok for error in errors):
            return Observed(flat, values)
        why = "written out it computes something else"
    except InfconvError as error:
        why = f"written out it does not run: {error.message}"
    closed = model.clone()
    for node in closed.graph:
        if _bodies(node) or node.op_identifier() in closed.functions:
            node.metadata_props[_CLOSED] = why
    return Observed(closed, plain)


def label(node: ir.Node, value: str) -> str:
    """Return how a node is called: its operator and name (else its `value`), where it is, what is not seen of it."""
    properties = node.metadata_props
    words = [properties.get(_LABEL) or _called(node, value)]
    if place := properties.get(_PLACE):
        words.append(place)
    if why := properties.get(_CLOSED):
        words.append(f"(its inside was not looked into: {why})")
    elif node.op_type not in _OPERATORS and _bodies(node):
        words.append(f"(its inside was not looked into: {node.op_type} is not written out)")
    return " ".join(words)


def controls(node: ir.Node) -> list[str]:
    """Return the values that decided that a node which was written out ran."""
    return json.loads(node.metadata_props.get(_CONTROL, "[]"))


def _with_control(node: ir.Node, control: ir.Value | None) -> str:
    return json.dumps([*controls(node), *([control.name] if control else [])])


def _called(node: ir.Node, value: str = "") -> str:
    return f"{node.op_type} '{node.name or value or node.outputs[0].name}'"


def _bodies(node: ir.Node) -> bool:
    from infconv.model import subgraphs

    return bool(subgraphs(node))


class _Writer:
    """Writes out the bodies of a copy of a model, the outer ones first."""

    def __init__(self, model: ir.Model, inputs: Mapping[str, Any]) -> None:
        from infconv.passes._graphs import standard_opset

        self._model, self._inputs = model.clone(), inputs
        self._opset = standard_opset(model.opset_imports) or 0
        self._left = MOST_NODES
        self._recorded: Mapping[str, Any] = {}
        self._counts: dict[ir.Node, int] = {}
        self._last: ir.Value | None = None
        """The condition that ended the Loop that is being written out."""
        self._taken: set[str] = set()
        """Names of values, without those in the bodies that are being written out."""

    def written(self) -> ir.Model:
        """Return the copy. Raises InfconvError when it does not run half-way."""
        from infconv.passes import Context
        from infconv.passes._graphs import loose_names
        from infconv.passes.inline_functions import InlineFunctions

        InlineFunctions().run(self._model, Context())
        loose = loose_names(self._model.graphs())
        while nodes := [n for n in self._model.graph if n.op_type in _OPERATORS and _CLOSED not in n.metadata_props]:
            self._run(nodes)
            for node in nodes:
                try:
                    if loose:
                        raise _Closed("a body gives out a value of the graph around it")
                    self._write_out(node)
                except _Closed as reason:
                    node.metadata_props[_CLOSED] = str(reason)
        return self._model

    def _run(self, nodes: Sequence[ir.Node]) -> None:
        """Record what the nodes were given, and how often each Loop went round."""
        from infconv.align import record

        counted = self._model.clone()
        twins = dict(zip(self._model.graph, counted.graph, strict=True))
        counters = {node: _count_rounds(twins[node]) for node in nodes if node.op_type == "Loop"}
        self._recorded = record(counted, self._inputs)
        self._counts = {node: len(self._recorded[name]) for node, name in counters.items()}

    def _content(self, value: ir.Value) -> np.ndarray:
        if (value.name or "") in self._recorded:
            return np.asarray(self._recorded[value.name or ""])
        if value.const_value is None:
            raise _Closed(f"what '{value.name}' holds is not known")
        return value.const_value.numpy()

    def _write_out(self, node: ir.Node) -> None:
        """Replace `node` by what it ran. Raises _Closed."""
        from infconv.passes._graphs import detach, remove

        self._taken, self._last = _names(self._model, node), None
        write = {"If": self._write_branch, "Loop": self._write_loop, "Scan": self._write_scan}[node.op_type]
        results = write(node)
        for old, new in zip(node.outputs, results, strict=False):  # the last outputs may be left out
            self._name_result(node, old, new)
        detach(node)
        remove([node])

    def _write_branch(self, node: ir.Node) -> list[ir.Value]:
        assert node.inputs[0] is not None
        name = "then_branch" if bool(self._content(node.inputs[0]).reshape(-1)[0]) else "else_branch"
        branch = node.attributes[name].as_graph()
        self._spend(branch, 1)
        where = f"in the {name.removesuffix('_branch')} branch of {_called(node)}"
        return self._insert(node, branch, where, node.inputs[0], [])

    def _write_loop(self, node: ir.Node) -> list[ir.Value]:
        body, count = node.attributes["body"].as_graph(), self._counts[node]
        carried = _given(node.inputs[2:])
        collected: list[list[ir.Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
        if collected and count == 0:
            raise _Closed("it ran no iteration")
        self._spend(body, count)
        condition = node.inputs[1] or self._constant(np.array(True))
        for turn in range(count):
            where = f"in iteration {turn + 1} of {count} of {_called(node)}"
            given = [self._constant(np.array(turn, np.int64)), condition, *carried]
            results = self._insert(node, body, where, condition, given, f"@{turn + 1}")
            condition, carried = results[0], results[1 : 1 + len(carried)]
            for values, value in zip(collected, results[1 + len(carried) :], strict=True):
                values.append(value)
        self._last = condition
        return [*carried, *(self._stack(node, values, 0) for values in collected)]

    def _write_scan(self, node: ir.Node) -> list[ir.Value]:
        body, given = node.attributes["body"].as_graph(), _given(node.inputs)
        if self._opset < 9:
            raise _Closed("Scan of opset 8 has batches")
        scanned = node.attributes["num_scan_inputs"].as_int()
        state, sequences = given[: len(given) - scanned], given[len(given) - scanned :]
        axes, back = _integers(node, "scan_input_axes", scanned), _integers(node, "scan_input_directions", scanned)
        count = self._content(sequences[0]).shape[axes[0]]
        collected: list[list[ir.Value]] = [[] for _ in body.outputs[len(state) :]]
        if collected and count == 0:
            raise _Closed("it ran no iteration")
        self._spend(body, count)
        for turn in range(count):
            where = f"in iteration {turn + 1} of {count} of {_called(node)}"
            picks = [count - 1 - turn if reverse else turn for reverse in back]
            slices = [self._element(node, v, axis, at) for v, axis, at in zip(sequences, axes, picks, strict=True)]
            results = self._insert(node, body, where, None, [*state, *slices], f"@{turn + 1}")
            state = results[: len(state)]
            for values, value in zip(collected, results[len(state) :], strict=True):
                values.append(value)
        axes = _integers(node, "scan_output_axes", len(collected))
        prepend = _integers(node, "scan_output_directions", len(collected))
        stacks = zip(collected, axes, prepend, strict=True)
        return [*state, *(self._stack(node, v[::-1] if first else v, axis) for v, axis, first in stacks)]

    def _insert(
        self,
        node: ir.Node,
        body: ir.Graph,
        where: str,
        control: ir.Value | None,
        arguments: Sequence[ir.Value],
        suffix: str = "",
    ) -> list[ir.Value]:
        """Insert a copy of `body` in front of `node`, `arguments` for its inputs; return its outputs."""
        copy, outer = body.clone(allow_outer_scope_values=True), self._model.graph
        _rename(copy, suffix, self._taken)
        given = dict(zip(copy.inputs, arguments, strict=True))
        results = [given.get(output, output) for output in copy.outputs]
        copy.outputs.clear()
        for parameter, argument in given.items():
            parameter.replace_all_uses_with(argument)
        for name, value in list(copy.initializers.items()):
            del copy.initializers[name]
            outer.initializers.add(value)
        nodes = list(copy)
        copy.remove(nodes)
        outer.insert_before(node, nodes)
        place = ", ".join([where, *filter(None, [node.metadata_props.get(_PLACE)])])
        for made in nodes:
            made.metadata_props.update({_PLACE: place, _CONTROL: _with_control(node, control)})
        return results

    def _mark(self, made: ir.Node, node: ir.Node, called: str) -> None:
        """Say that `made` does a part of what `node` did, as often as it did."""
        made.metadata_props[_LABEL] = called
        made.metadata_props[_CONTROL] = _with_control(node, self._last)
        if place := node.metadata_props.get(_PLACE):
            made.metadata_props[_PLACE] = place

    def _spend(self, body: ir.Graph, count: int) -> None:
        from infconv.passes._build import all_nodes

        nodes = sum(1 for _ in all_nodes(body))
        if nodes * count > self._left:
            raise _Closed(f"its {count} iterations of {nodes} nodes are too many")
        self._left -= nodes * count

    def _constant(self, content: np.ndarray) -> ir.Value:
        import onnx_ir as ir

        value = ir.Value(name=_fresh(f"constant_{content}", self._taken), const_value=ir.tensor(content))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(content.dtype)), ir.Shape([])
        self._model.graph.initializers.add(value)
        return value

    def _element(self, node: ir.Node, sequence: ir.Value, axis: int, at: int) -> ir.Value:
        index = self._constant(np.array(at, np.int64))
        return self._add(node, "Gather", [sequence, index], {"axis": axis})

    def _stack(self, node: ir.Node, values: Sequence[ir.Value], axis: int) -> ir.Value:
        if self._opset < 11:
            rows = [self._add(node, "Unsqueeze", [value], {"axes": [axis]}) for value in values]
            return self._add(node, "Concat", rows, {"axis": axis})
        sequence = self._add(node, "SequenceConstruct", values, {})
        return self._add(node, "ConcatFromSequence", [sequence], {"axis": axis, "new_axis": 1})

    def _add(self, node: ir.Node, operator: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> ir.Value:
        """Insert a node that does a part of what `node` did, and is called by its name."""
        import onnx_ir as ir

        made = ir.node(operator, inputs, dict(attributes))
        made.outputs[0].name = _fresh(f"{node.outputs[0].name}_part", self._taken)
        self._mark(made, node, _called(node))
        self._model.graph.insert_before(node, made)
        return made.outputs[0]

    def _name_result(self, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
        """Give what the node computed its name back, by an Identity."""
        import onnx_ir as ir

        name, old.name = old.name, None
        copy = ir.node("Identity", [new], outputs=[ir.Value(name=name, type=old.type, shape=old.shape)])
        self._mark(copy, node, _called(node, name or ""))
        self._model.graph.insert_before(node, copy)
        old.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)


def _rename(body: ir.Graph, suffix: str, taken: set[str]) -> None:
    """Give the values of a body names that no other has; one that is alone in the model keeps its own."""
    from infconv.model import with_subgraphs

    for graph in with_subgraphs(body):
        made = [output for node in graph for output in node.outputs if output.name]
        for value in dict.fromkeys([*graph.inputs, *made]):
            value.name = _fresh(f"{value.name}{suffix}", taken)
        for name, value in list(graph.initializers.items()):
            del graph.initializers[name]
            value.name = _fresh(f"{name}{suffix}", taken)
            graph.initializers.add(value)


def _given(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    """Return `values`. Raises _Closed when one is left out."""
    found = [value for value in values if value is not None]
    if len(found) != len(values):
        raise _Closed("it is not given all of its inputs")
    return found


def _integers(node: ir.Node, name: str, count: int) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * count


def _names(model: ir.Model, without: ir.Node | None) -> set[str]:
    """Return the names of all values, those in the bodies of `without` left out: they go with it."""
    from infconv.model import subgraphs, with_subgraphs

    gone = {graph for inner in (subgraphs(without) if without else ()) for graph in with_subgraphs(inner)}
    names: set[str] = set()
    for graph in model.graphs():
        if graph not in gone:
            names.update(value.name or "" for value in graph.inputs)
            names.update(graph.initializers)
            names.update(output.name or "" for node in graph for output in node.outputs)
    return names


def _fresh(name: str, taken: set[str]) -> str:
    """Return `name`, or one like it that is not yet in `taken`, and add it."""
    found, number = name, 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found


def _count_rounds(loop: ir.Node) -> str:
    """Let a Loop give out the number of each of its iterations; return the name of this output."""
    import onnx_ir as ir

    body = loop.attributes["body"].as_graph()
    number = ir.node("Identity", [body.inputs[0]])
    number.outputs[0].name = f"{body.inputs[0].name}_of_{loop.outputs[0].name}"
    number.outputs[0].type, number.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    body.append(number)
    body.outputs.append(number.outputs[0])
    loop.resize_outputs(len(body.outputs) - 1)
    for index, output in enumerate(loop.outputs):
        output.name = output.name or f"{loop.outputs[0].name}_unused_{index}"
    loop.outputs[-1].name = f"rounds_of_{loop.outputs[0].name}"
    return loop.outputs[-1].name
