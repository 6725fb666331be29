"""Which inner value of one graph stands for which of another, and where the two first compute something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from infconv.bodies import controls, label
from infconv.compare import OutputError, Tolerance, compare_values
from infconv.computation import Digester
from infconv.errors import InfconvError

if TYPE_CHECKING:
    import onnx_ir as ir

How = Literal["name", "structure", "value"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A value of `b`, the value of `a` that it stands for, and how they differ."""

    a: str
    b: str
    node: str
    """The operator of `b` that computes it, the node's name, and in which branch or iteration it is."""
    how: How
    """What tells that the two belong together."""
    error: OutputError


def record(model: ir.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return every value of the main graph by name, `inputs` included, computed as the graph is written.

    Raises InfconvError when the model does not run on `inputs`.
    """
    from infconv.convert._in_memory import run_graph

    outputs = {value.name for value in model.graph.outputs}
    names = [v.name for node in model.graph for v in node.outputs if v.name and v.name not in outputs]
    (outcome,) = run_graph(model, [inputs], extra=names)
    if isinstance(outcome, InfconvError):
        raise outcome
    return {**inputs, **outcome}


def align(
    a: ir.Model, b: ir.Model, of_a: Mapping[str, Any], of_b: Mapping[str, Any], tolerance: Tolerance
) -> list[Layer]:
    """Return the values of `b` that stand for one of `a`, in the order of `b`; `of_a`, `of_b` are what `record` gave.

    Two values belong together when they have one name and one shape; or come from the same operator on inputs that
    belong together; or, failing that, hold the same numbers.
    """
    matcher = _Matcher(a, of_a, of_b)
    layers: list[Layer] = []
    for node in b.graph:
        partners = matcher.partners(node)
        for value, (partner, how) in partners.items():
            error = compare_values(value, of_a[partner], of_b[value], tolerance)
            layers.append(Layer(partner, value, label(node, value), how, error))
    return layers


def first_divergence(layers: Sequence[Layer], b: ir.Model) -> Layer | None:
    """Return the first layer that differs and that an output that differs depends on; None when all agree."""
    wrong = {layer.b: layer for layer in layers if not layer.error.ok}
    outputs = [value for value in b.graph.outputs if value.name in wrong] or list(b.graph.outputs)
    behind = _ancestors(outputs, {value.name: value for node in b.graph for value in node.outputs})
    return next((layer for name, layer in wrong.items() if name in behind), next(iter(wrong.values()), None))


def blamed(layers: Sequence[Layer], layer: Layer, b: ir.Model) -> str:
    """Return what computes `layer`, and what before it has no counterpart and may be the cause."""
    unknown = unmatched_before(layers, layer, b)
    names = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
    return f"{layer.node}, or what has no counterpart before it: {names}" if unknown else layer.node


def unmatched_before(layers: Sequence[Layer], layer: Layer, b: ir.Model) -> list[str]:
    """Return the values that `layer` is computed from, back to those that have a counterpart, and have none."""
    known = {other.b for other in layers}
    named = {value.name: value for node in b.graph for value in node.outputs}
    found: dict[str, None] = {}
    todo = [named[layer.b]]
    while todo:
        producer = todo.pop().producer()
        for value in producer.inputs if producer is not None else ():
            if value is not None and value.producer() is not None and value.name not in {*known, *found}:
                found[value.name or ""] = None
                todo.append(value)
    return list(found)


def _ancestors(values: Sequence[ir.Value], named: Mapping[str | None, ir.Value]) -> set[str]:
    """Return the names of `values`, of all that they are computed from, and of what decided that they are."""
    from infconv.passes._graphs import nested_nodes

    found: set[str] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        if value.name and value.name not in found:
            found.add(value.name)
            producer = value.producer()
            if producer is not None:  # what its subgraphs take from outside counts as well
                users = (producer, *nested_nodes(producer))
                todo += [v for user in users for v in user.inputs if v is not None]
                todo += [named[name] for name in controls(producer) if name in named]
    return found


class _Matcher:
    """Finds partners in `a` for the values of another graph, node by node."""

    def __init__(self, a: ir.Model, of_a: Mapping[str, Any], of_b: Mapping[str, Any]) -> None:
        self._of_a, self._of_b = of_a, of_b
        self._digester = Digester()
        self._partner = {value.name or "": value.name or "" for value in a.graph.inputs}
        """Value of b -> value of a."""
        self._computed = {v.name: None for node in a.graph for v in node.outputs if v.name in of_a}
        self._outputs = {v.name for v in a.graph.outputs if v.name in self._computed}
        self._by_key: dict[Any, ir.Node] = {}
        for node in a.graph:
            self._by_key.setdefault(self._key(node, {}), node)
        self._prints = _Prints({name: of_a[name] for name in self._computed if name})

    def partners(self, node: ir.Node) -> dict[str, tuple[str, How]]:
        """Return value -> (its partner, how it was found) for the outputs of a node of `b`."""
        found: dict[str, tuple[str, How]] = {}
        twin = self._by_key.get(self._key(node, self._partner))
        for index, output in enumerate(node.outputs):
            name = output.name or ""
            if name not in self._of_b:
                continue
            partner = self._find(name, twin, index)
            if partner is not None:
                found[name] = partner
                self._partner[name] = partner[0]
        return found

    def _find(self, name: str, twin: ir.Node | None, index: int) -> tuple[str, How] | None:
        value = self._of_b[name]
        if name in self._computed and _shape(self._of_a[name]) == _shape(value):
            return name, "name"
        if twin is not None and index < len(twin.outputs) and twin.outputs[index].name in self._computed:
            return twin.outputs[index].name or "", "structure"
        equal = self._prints.find(value)
        if equal is None and name in self._outputs:  # of another shape, but promised under this name
            return name, "name"
        return None if equal is None else (equal, "value")

    def _key(self, node: ir.Node, partner: Mapping[str, str]) -> object:
        """Return what two nodes share that do the same to inputs that belong together; unique where that is unsaid."""
        inputs: list[object] = []
        for value in node.inputs:
            if value is None:
                inputs.append(None)
            elif value.const_value is not None:
                inputs.append(self._digester.tensor(value.const_value))
            else:
                name = value.name or ""
                inputs.append(name if not partner else partner.get(name, f"?{name}"))
        return node.domain, node.op_type, self._digester.attributes(node), tuple(inputs)


def _shape(value: Any) -> object:
    return np.shape(value) if isinstance(value, np.ndarray) else type(value)


class _Prints:
    """Finds a tensor among others by its numbers."""

    _FEWEST = 8
    """Smaller tensors agree by chance."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._groups: dict[object, list[tuple[str, np.ndarray]]] = {}
        for name, value in values.items():
            if self._telling(value):
                self._groups.setdefault(value.shape, []).append((name, _print(value)))
        self._values = values

    def find(self, value: Any) -> str | None:
        """Return the name of the first tensor that holds the same numbers, up to rounding."""
        if not self._telling(value):
            return None
        mine = _print(value)
        for name, print_ in self._groups.get(value.shape, ()):
            other = self._values[name]
            if np.allclose(print_, mine, rtol=1e-3, atol=1e-6) and np.allclose(other, value, rtol=1e-3, atol=1e-5):
                return name
        return None

    def _telling(self, value: Any) -> bool:
        return (
            isinstance(value, np.ndarray)
            and value.dtype.kind == "f"
            and value.size >= self._FEWEST
            and bool(np.isfinite(value).all())
            and float(np.ptp(value)) > 0
        )


def _print(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(-1).astype(np.float64)
    return np.array([flat.mean(), flat.std(), flat[0], flat[flat.size // 2], flat[-1]])
