"""What is different between the graphs of two models: nodes are matched by what they compute, not by their names."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infconv.census import numpy_name, operator_name, take_census
from infconv.model import tensor_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    Pairs = dict[ir.Node, ir.Node]


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that both models have, in another form."""

    name: str
    how: Sequence[str]
    """What is different, a phrase each."""


@dataclasses.dataclass(frozen=True)
class Changes:
    """What one model has and the other has not, and what both have in another form."""

    removed: Sequence[str] = ()
    added: Sequence[str] = ()
    changed: Sequence[Change] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How model `b` differs from model `a`; names of inner values and of nodes do not count."""

    inputs: Changes
    outputs: Changes
    opsets: Changes
    operators: Changes
    initializers: Changes
    functions: Changes
    nodes: Changes
    """Nodes of the main graph; a change in a subgraph is one of the node that has it."""
    same_nodes: int
    """Nodes that are in both as they are."""

    @property
    def equal(self) -> bool:
        """Whether the models are the same graph."""
        return not any(getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "same_nodes")


def find_difference(a: ir.Model, b: ir.Model) -> Difference:
    """Return how `b` differs from `a`."""
    contents = _Contents()
    nodes, same = _node_changes(a, b, contents)
    return Difference(
        inputs=_value_changes(_fed(a.graph), _fed(b.graph)),
        outputs=_value_changes(a.graph.outputs, b.graph.outputs),
        opsets=_mapping_changes(_opsets(a), _opsets(b)),
        operators=_mapping_changes(take_census(a).operators, take_census(b).operators),
        initializers=_initializer_changes(a.graph, b.graph, contents),
        functions=_mapping_changes(_functions(a, contents), _functions(b, contents), shown=False),
        nodes=nodes,
        same_nodes=same,
    )


# --- what is not a node --------------------------------------------------------------------------------------------


def _fed(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.inputs if value.name not in graph.initializers]


def _opsets(model: ir.Model) -> dict[str, int]:
    return {domain or "ai.onnx": version for domain, version in model.opset_imports.items()}


def _functions(model: ir.Model, contents: _Contents) -> dict[str, str]:
    return {f"{f.domain}.{f.name}": contents.of_graph(f.graph, {}) for f in model.functions.values()}


def _mapping_changes(a: Mapping[str, Any], b: Mapping[str, Any], *, shown: bool = True) -> Changes:
    def told(items: Mapping[str, Any], names: Iterator[str]) -> list[str]:
        return [f"{name} {items[name]}" if shown else name for name in names]

    return Changes(
        removed=told(a, (name for name in a if name not in b)),
        added=told(b, (name for name in b if name not in a)),
        changed=[
            Change(name, [f"{a[name]} → {b[name]}" if shown else "another body"])
            for name in a
            if name in b and a[name] != b[name]
        ],
    )


def _value_changes(a: Sequence[ir.Value], b: Sequence[ir.Value]) -> Changes:
    return _mapping_changes({v.name or "": _typed(v) for v in a}, {v.name or "": _typed(v) for v in b})


def _typed(value: ir.Value) -> str:
    """Return `float32[batch,8]`."""
    dims = "?" if value.shape is None else ",".join(_dim(d) for d in value.shape)
    return f"{'?' if value.dtype is None else numpy_name(value.dtype)}[{dims}]"


def _dim(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else dim.value or "?"


def _initializer_changes(a: ir.Graph, b: ir.Graph, contents: _Contents) -> Changes:
    """Compare by name; one that is there with the same content under another name counts as the same."""
    of_a, of_b = (_tensors(graph, contents) for graph in (a, b))
    in_a, in_b = set(of_a.values()), set(of_b.values())
    types_a, types_b = ({name: _typed(v) for name, v in graph.initializers.items()} for graph in (a, b))
    changed = [
        Change(n, [f"{types_a[n]} → {types_b[n]}" if types_a[n] != types_b[n] else f"other values, {types_a[n]}"])
        for n in of_a
        if n in of_b and of_a[n] != of_b[n]
    ]
    return Changes(
        removed=[f"{n} {types_a[n]}" for n, content in of_a.items() if n not in of_b and content not in in_b],
        added=[f"{n} {types_b[n]}" for n, content in of_b.items() if n not in of_a and content not in in_a],
        changed=changed,
    )


def _tensors(graph: ir.Graph, contents: _Contents) -> dict[str, str]:
    return {name: contents.of_tensor(value.const_value) for name, value in graph.initializers.items()}


# --- what values and nodes compute ---------------------------------------------------------------------------------


class _Contents:
    """Digests of tensors, nodes and graphs; equal ones compute the same from inputs of the same names."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[object, str]] = {}

    def of_tensor(self, tensor: ir.TensorProtocol | None) -> str:
        """Return a digest of type, shape and values; it is computed once for each tensor."""
        import onnx_ir as ir

        if tensor is None:
            return "unknown"
        if id(tensor) not in self._tensors:
            text = tensor.dtype == ir.DataType.STRING
            data = repr(tensor.numpy().tolist()).encode() if text else tensor_bytes(tensor)
            found = hashlib.sha256(f"{tensor.dtype.name}{tensor.shape.numpy()}".encode())
            found.update(data)
            # The tensor is kept as well: another one must not get its id.
            self._tensors[id(tensor)] = (tensor, found.hexdigest())
        return self._tensors[id(tensor)][1]

    def of_values(self, graph: ir.Graph, outer: Mapping[ir.Value, str]) -> dict[ir.Value, str]:
        """Return the digest of each value of `graph`, and those of the `outer` graphs."""
        known = dict(outer)
        known |= {value: f"input {i if outer else value.name}" for i, value in enumerate(graph.inputs)}
        known |= {value: self.of_tensor(value.const_value) for value in graph.initializers.values()}
        for node in graph:
            digest = self.of_node(node, known)
            known |= {value: f"{digest}.{i}" for i, value in enumerate(node.outputs)}
        return known

    def of_node(self, node: ir.Node, known: Mapping[ir.Value, str]) -> str:
        """Return a digest of the node and of everything that it is computed from."""
        operands = ["-" if value is None else known.get(value, "unknown") for value in node.inputs]
        while operands and operands[-1] == "-":
            operands.pop()
        attributes = sorted(self.of_attributes(node, known).items())
        return hashlib.sha256(repr((operator_name(node), operands, attributes)).encode()).hexdigest()

    def of_attributes(self, node: ir.Node, known: Mapping[ir.Value, str]) -> dict[str, str]:
        """Return name -> content of the attributes; short ones as they read."""
        return {a.name: self._of_attribute(a, known) for a in node.attributes.values()}

    def _of_attribute(self, attribute: ir.Attr, known: Mapping[ir.Value, str]) -> str:
        import onnx_ir as ir

        if attribute.is_ref():
            return f"@{attribute.ref_attr_name}"
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            return f"{len(graph)} nodes, {self.of_graph(graph, known)[:8]}"
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            small = tensor.size <= 8 and tensor.dtype != ir.DataType.STRING
            return str(tensor.numpy().tolist()) if small else self.of_tensor(tensor)[:8]
        return str(attribute.value)

    def of_graph(self, graph: ir.Graph, outer: Mapping[ir.Value, str]) -> str:
        """Return a digest of a subgraph or a function's body."""
        known = self.of_values(graph, outer or {v: f"input {i}" for i, v in enumerate(graph.inputs)})
        return hashlib.sha256(repr([known.get(value, "unknown") for value in graph.outputs]).encode()).hexdigest()


# --- nodes ---------------------------------------------------------------------------------------------------------


def _node_changes(a: ir.Model, b: ir.Model, contents: _Contents) -> tuple[Changes, int]:
    matcher = _Matcher(a.graph, b.graph, contents)
    pairs = matcher.match()
    changed = [Change(_label(old), how) for old, new in pairs.items() if (how := matcher.how(old, new))]
    found = set(pairs.values())
    removed = [_label(node) for node in a.graph if node not in pairs]
    added = [_label(node) for node in b.graph if node not in found]
    return Changes(removed, added, changed), len(pairs) - len(changed)


def _label(node: ir.Node) -> str:
    """Return `Conv conv1 → y`: the operator, the node's name and its first output."""
    return f"{operator_name(node)} {node.name or ''}".rstrip() + f" → {node.outputs[0].name if node.outputs else ''}"


class _Matcher:
    """Pairs nodes of two graphs: those that compute the same, then those that stand in the same place."""

    def __init__(self, a: ir.Graph, b: ir.Graph, contents: _Contents) -> None:
        self._a, self._b, self._contents = a, b, contents
        self._known = {**contents.of_values(a, {}), **contents.of_values(b, {})}
        self._pairs: Pairs = {}
        self._taken: set[ir.Node] = set()
        self._values: dict[ir.Value, ir.Value] = {}
        """Value of a -> the value of b that stands in its place."""
        own = {value.name: value for value in (*b.inputs, *b.initializers.values())}
        for value in (*a.inputs, *a.initializers.values()):
            if value.name in own:
                self._values[value] = own[value.name]

    def match(self) -> Pairs:
        """Return node of a -> node of b."""
        self._match_equal()
        before = -1
        while len(self._pairs) > before:
            before = len(self._pairs)
            self._match_downwards()
            self._match_upwards()
        self._match_named()
        return {node: self._pairs[node] for node in self._a if node in self._pairs}

    def how(self, old: ir.Node, new: ir.Node) -> list[str]:
        """Return what is different between the nodes of a pair; nothing when only what comes before them is."""
        before, after = (self._contents.of_attributes(node, self._known) for node in (old, new))
        phrases = [
            f"{name}: {before.get(name, 'absent')} → {after.get(name, 'absent')}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
        for index in range(max(len(old.inputs), len(new.inputs))):
            was, is_ = (node.inputs[index] if index < len(node.inputs) else None for node in (old, new))
            if not self._correspond(was, is_):
                phrases.append(f"input {index}: {self._origin(was)} → {self._origin(is_)}")
        return phrases

    def _origin(self, value: ir.Value | None) -> str:
        if value is None:
            return "absent"
        producer = value.producer()
        return f"{value.name} {_typed(value)}" if producer is None else f"{operator_name(producer)} {value.name}"

    def _correspond(self, was: ir.Value | None, is_: ir.Value | None) -> bool:
        if was is None or is_ is None:
            return was is is_
        constants = was.const_value is not None and is_.const_value is not None
        if constants or was not in self._values:
            return self._known.get(was) == self._known.get(is_)
        return self._values[was] is is_

    def _pair(self, old: ir.Node, new: ir.Node) -> None:
        self._pairs[old] = new
        self._taken.add(new)
        self._values |= dict(zip(old.outputs, new.outputs, strict=False))

    def _match_equal(self) -> None:
        """Pair nodes that compute the same from the same."""
        waiting: dict[str, collections.deque[ir.Node]] = collections.defaultdict(collections.deque)
        for node in self._b:
            waiting[self._contents.of_node(node, self._known)].append(node)
        for node in self._a:
            equals = waiting[self._contents.of_node(node, self._known)]
            if equals:
                self._pair(node, equals.popleft())

    def _match_downwards(self) -> None:
        """Pair nodes of one operator that read from values in the same place, the likeliest."""
        for node in self._a:
            if node in self._pairs:
                continue
            rivals = {
                user: self._likeness(node, user)
                for value in node.inputs
                if value is not None and value in self._values
                for user, _ in self._values[value].uses()
                if self._may_pair(node, user)
            }
            if rivals:
                self._pair(node, max(rivals, key=lambda user: rivals[user]))

    def _match_upwards(self) -> None:
        """Pair nodes of one operator whose results go to the same place."""
        outputs = {value.name: value for value in self._b.outputs}
        for node in reversed(list(self._a)):
            if node in self._pairs:
                continue
            results = [outputs[v.name] for v in node.outputs if v.is_graph_output() and v.name in outputs]
            for value in node.outputs:
                for user, index in value.uses():
                    peer = self._pairs.get(user)
                    if peer is not None and index < len(peer.inputs):
                        results += [v for v in (peer.inputs[index],) if v is not None]
            producers = [producer for value in results if (producer := value.producer()) is not None]
            found = next((producer for producer in producers if self._may_pair(node, producer)), None)
            if found is not None:
                self._pair(node, found)

    def _match_named(self) -> None:
        """Pair what is left of one operator and one name."""
        named = {(n.name, operator_name(n)): n for n in self._b if n.name and n not in self._taken}
        for node in self._a:
            new = named.get((node.name, operator_name(node))) if node.name else None
            if node not in self._pairs and new is not None and new not in self._taken:
                self._pair(node, new)

    def _may_pair(self, old: ir.Node, new: ir.Node) -> bool:
        return new not in self._taken and new.graph is self._b and operator_name(old) == operator_name(new)

    def _likeness(self, old: ir.Node, new: ir.Node) -> tuple[int, bool, bool]:
        inputs = sum(self._correspond(was, is_) for was, is_ in zip(old.inputs, new.inputs, strict=False))
        before, after = (self._contents.of_attributes(node, self._known) for node in (old, new))
        return inputs, before == after, bool(old.name) and old.name == new.name
