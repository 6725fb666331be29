"""Make the nodes that replace a match: named uniquely, typed as their operators want, in the right graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cached_property
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from infconv.model import subgraphs
from infconv.passes import _values
from infconv.passes._match import Match
from infconv.passes._pattern import Refuse, Rule


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of `graph` in order, each followed by those of its subgraphs."""
    for node in graph:
        yield node
        if node.attributes.data:
            for inner in subgraphs(node):
                yield from all_nodes(inner)


class Names:
    """All names of a model, so that new ones are unique in every scope. They are collected when first needed."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._next: dict[str, int] = {}

    @cached_property
    def _taken(self) -> set[str | None]:
        functions = self._model.functions.values()
        graphs = [*self._model.graphs(), *(g for f in functions for g in (f.graph, *f.subgraphs()))]
        taken: set[str | None] = {value.name for graph in graphs for value in graph.inputs}
        for graph in graphs:
            taken.update(graph.initializers)
            taken.update(node.name for node in graph)
            taken.update(output.name for node in graph for output in node.outputs)
        return taken

    def fresh(self, base: str) -> str:
        """Return `base`, or `base_1`, `base_2` … when it is taken."""
        name = base
        while name in self._taken:
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        self._taken.add(name)
        return name


class Builder:
    """The `op` of `Rule.build`: an operator call makes a node and returns its output (a tuple for several).

    Inputs are values, None for an absent one, and numbers or arrays, which become constants: a number takes the type
    of the first input that is a value. Attributes are Python values; None leaves one out. `_domain` selects another
    operator set, `_outputs` says how many there are, `_attrs` adds attributes that a pattern bound with `_attrs`,
    `_like` gives the outputs the type and shape of another value where these are known.

    Nothing touches the graph until the rewrite is accepted, except that the new nodes count as users of their inputs.
    """

    def __init__(
        self,
        graph: ir.Graph,
        imports: MutableMapping[str, int],
        names: Names,
        place: str,
        initializers: bool,
    ) -> None:
        """`place` is the prefix of all names; without `initializers`, constants are Constant nodes."""
        self.opset = imports.get("", imports.get("ai.onnx", 0))
        """The version of the standard operator set."""
        self.nodes: list[ir.Node] = []
        """What was made, in order."""
        self.constants: list[ir.Value] = []
        """Initializers that were made and are not in the graph yet."""
        self.graph = graph
        self._imports = imports
        self._names = names
        self._place = place
        self._initializers = initializers

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def call(*inputs: Any, **keywords: Any) -> Any:
            return self.call(op_type, *inputs, **keywords)

        return call

    def call(
        self,
        op_type: str,
        *inputs: Any,
        _domain: str = "",
        _outputs: int = 1,
        _attrs: Mapping[str, ir.Attr] | None = None,
        _like: ir.Value | None = None,
        **attributes: Any,
    ) -> Any:
        """Make a node of a type that only the caller knows: `op.call(match["node"].op_type, x)`."""
        like = next((i for i in inputs if isinstance(i, ir.Value)), None)
        types = _values.attribute_types(_domain, op_type, self._imports.get(_domain, 1) if _domain else self.opset)
        made = [_attribute(name, value, types.get(name)) for name, value in attributes.items() if value is not None]
        node = ir.Node(
            _domain,
            op_type,
            [self._input(i, like) for i in inputs],
            [*(a for a in (_attrs or {}).values() if a.name not in attributes), *made],
            num_outputs=_outputs,
            name=self._names.fresh(self._place + op_type),
        )
        for i, output in enumerate(node.outputs):
            output.name = self._names.fresh(f"{node.name}_output_{i}")
            if _like is not None:
                output.type = _copied(_like.type)
                output.shape = None if _like.shape is None else _like.shape.copy()
        self.nodes.append(node)
        return node.outputs[0] if _outputs == 1 else tuple(node.outputs)

    def const(self, value: Any, like: ir.Value | None = None, dtype: ir.DataType | None = None) -> ir.Value:
        """Make a constant from a number, a sequence, an array or a tensor.

        Its type is `dtype`, or else that of `like`; without either it is the array's own, int64 and float32 for Python
        numbers. Raises Refuse when the type of `like` is not known.
        """
        if like is not None and dtype is None:
            dtype = _values.dtype_of(like)
            if dtype is None:
                raise Refuse(f"the type of '{like.name}' is not known")
        tensor = _tensor(value, dtype)
        if not self._initializers:
            return cast(ir.Value, self.call("Constant", value=tensor))
        name = self._names.fresh(self._place + "const")
        shape = cast(ir.Shape, tensor.shape).copy()
        made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.constants.append(made)
        return made

    def _input(self, given: Any, like: ir.Value | None) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        return self.const(given, like=like if isinstance(given, int | float) else None)

    def add_to_graph(self, before: ir.Node) -> None:
        """Put what was made into the graph, the nodes before `before`."""
        for node in self.nodes:
            if node.domain not in self._imports and node.domain:
                self._imports[node.domain] = 1
        for value in self.constants:
            self.graph.register_initializer(value)
        self.graph.insert_before(before, self.nodes)

    def drop_unused_constants(self) -> None:
        """Take those constants out of the graph again that `build` made in vain."""
        for value in self.constants:
            if not _values.is_used(value):
                self.graph.initializers.pop(cast(str, value.name), None)

    def discard(self) -> None:
        """Undo: the new nodes are no users any more."""
        for node in self.nodes:
            node.resize_inputs(0)


def _copied(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """Return a type of its own: a Value's dtype is set in place."""
    if isinstance(kind, ir.TensorType) and not kind.denotation:
        return ir.TensorType(kind.dtype)
    return copy.deepcopy(kind)  # takes much longer


def _tensor(value: Any, dtype: ir.DataType | None) -> ir.TensorProtocol:
    plain = isinstance(value, np.ndarray | np.generic | int | float | list | tuple)
    if not plain and isinstance(value, ir.TensorProtocol):  # checking that protocol takes 0.1 ms
        if dtype in (None, value.dtype):
            return value
        value = value.numpy()
    array = np.asarray(value)
    if dtype is None and isinstance(value, float | list | tuple) and array.dtype == np.float64:
        dtype = ir.DataType.FLOAT
    # ir.tensor() checks runtime protocols, which takes 0.1 ms
    return ir.Tensor(array if dtype is None else array.astype(dtype.numpy(), copy=False), dtype)


def _attribute(name: str, value: Any, kind: ir.AttributeType | None) -> ir.Attr:
    if isinstance(value, np.ndarray | np.generic):
        array = cast("np.ndarray[Any, Any]", value)
        value = ir.tensor(array) if kind == ir.AttributeType.TENSOR else array.tolist()
    return ir.convenience.convert_attribute(name, value, None if isinstance(value, ir.Attr) else kind)


# --- what a rule builds ----------------------------------------------------------------------------------------------


def replacement(rule: Rule, match: Match, op: Builder) -> list[ir.Value | None]:
    """Return what `rule.build` made of `match`, one value for each output. Raises Refuse."""
    available = {**match.bindings, "match": match}
    built = cast(Callable[..., Any], rule.build)(op, *(available[name] for name in rule.build_parameters))
    if built is None:
        raise Refuse("the rule declines")
    results = list(cast("tuple[ir.Value | None, ...]", built if isinstance(built, tuple) else (built,)))
    if len(results) != len(match.outputs):
        raise TypeError(f"rule {rule.name}: build returns {len(results)} values for {len(match.outputs)} outputs")
    for i, (old, new) in enumerate(zip(match.outputs, results, strict=True)):
        if new is not None:
            _check_same_type(old, new)
            if old.is_graph_output() and (new in results[:i] or not _can_be_output(new, op)):
                results[i] = _identity(new, match.root, op)
        elif _values.is_used(old):
            raise Refuse(f"the rule has no replacement for '{old.name}', which is used")
    return results


def _check_same_type(old: ir.Value, new: ir.Value) -> None:
    """Raise Refuse when `new` is known to differ from `old` in type or shape, as far as both are known."""
    if old is new:
        raise Refuse(f"'{old.name}' is its own replacement")
    old_type, new_type = _values.dtype_of(old), _values.dtype_of(new)
    if old_type is not None and new_type is not None and old_type != new_type:
        raise Refuse(f"the result is of type {new_type} where '{old.name}' is of type {old_type}")
    a, b = _values.dims(old), _values.dims(new)
    if a is None or b is None:
        return
    if len(a) != len(b) or any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in zip(a, b, strict=True)):
        raise Refuse(f"the result has shape {_text(b)} where '{old.name}' has {_text(a)}")


def _text(shape: tuple[int | ir.SymbolicDim, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _can_be_output(value: ir.Value, op: Builder) -> bool:
    """Whether `value` may take the name of an output of the graph: it is computed there and has no name to keep."""
    producer = value.producer()
    if producer is None or value.is_graph_output():
        return False
    return producer in op.nodes or producer.graph is op.graph


def _identity(value: ir.Value, root: ir.Node, op: Builder) -> ir.Value:
    """Return a copy of `value` for an output of the graph. Raises Refuse when `root` is nothing else already."""
    if root.op_type == "Identity":
        raise Refuse(f"'{root.outputs[0].name}' is an output of the graph and '{value.name}' keeps its own name")
    if op.opset < 16 and isinstance(value.type, ir.SequenceType | ir.OptionalType):
        raise Refuse(f"opset {op.opset} has no Identity of {value.type}")
    return cast(ir.Value, op.Identity(value))
