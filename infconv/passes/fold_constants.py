"""Constant subgraphs to constants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.passes import _values
from infconv.passes._base import Context, Pass
from infconv.passes._branches import inline_if
from infconv.passes._build import Names
from infconv.passes._edit import contradicts_output, needs_nodes, remove_unused, replace_by_constant
from infconv.passes._evaluate import EvaluationError, evaluate
from infconv.passes._graphs import standard_opset, subgraphs
from infconv.passes._op import constant_tensor
from infconv.passes._symbolic import Symbolic, in_order

_RANDOM = "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout"
_NOT_TENSORS = (
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap "
    "SplitToSequence ConcatFromSequence Optional OptionalGetElement OptionalHasElement ImageDecoder"
)
_QUANTIZING = "QuantizeLinear DequantizeLinear DynamicQuantizeLinear"
"""Of weights: the pair is what tells the runtime that they are quantized."""
_CONTROL = "If Loop Scan Constant"
_EXCLUDED = frozenset(f"{_RANDOM} {_NOT_TENSORS} {_QUANTIZING} {_CONTROL}".split())
_MAX_FAILURES = 20
"""After so many nodes that could not be computed, the rest is left alone."""
_UNKNOWN_GROWTH = 1 << 20
"""Nodes with larger inputs are left alone when the size of their outputs is not known."""


class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their value.

    `Add(Constant, Constant)` becomes an initializer, as does `Shape` of a fixed shape. An `If` on a constant gives way
    to the branch that it takes, and `CastLike` to `Cast`. Everything that is constant is computed at once, by ONNX
    Runtime with its optimizer off. Left alone: random operators, sequences, quantization of weights, initializers that
    the model's caller may replace, and what cannot be computed.
    """

    rewires: ClassVar[bool] = True
    max_bytes: int = Field(16 << 20, ge=0)
    """Leave a node alone when its result would be larger than this, not counting the constants that it frees."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the number of nodes that were replaced."""
        names = Names(model)
        changes = 0
        while True:
            done = sum(_simplify(scope, names) for scope in _scopes(model))
            scopes = list(_scopes(model))
            for opset in sorted({scope.opset for scope in scopes}):
                of_opset = [scope for scope in scopes if scope.opset == opset]
                done += _Folding(of_opset, opset, self.max_bytes, context).run()
            changes += done
            if not done or not any(_is_decided(node) for scope in scopes for node in scope.graph):
                return changes


class _Scope(NamedTuple):
    graph: ir.Graph
    as_nodes: bool
    """Constants must be nodes: in the body of a function itself, and everywhere in a model of IR version 3."""
    opset: int


def _scopes(model: ir.Model) -> Iterator[_Scope]:
    """Yield every graph; those inside it after the caller is done with it."""
    as_nodes = needs_nodes(model)
    functions = model.functions.values()
    stack = [_Scope(function.graph, True, standard_opset(function.opset_imports) or 0) for function in functions]
    stack.append(_Scope(model.graph, as_nodes, standard_opset(model.opset_imports) or 0))
    while stack:
        scope = stack.pop()
        if scope.as_nodes and scope.opset < 9:
            continue  # Constant had no integers
        yield scope
        for node in scope.graph:
            if node.attributes.data:
                stack.extend(_Scope(graph, as_nodes, scope.opset) for graph in subgraphs(node))


def _is_decided(node: ir.Node) -> bool:
    return node.op_type == "If" and not node.domain and _values.scalar(node.inputs[0]) is not None


def _simplify(scope: _Scope, names: Names) -> int:
    """Replace the nodes of one graph that need no computation; return how many."""
    cast: list[ir.Node] = []
    useless: list[ir.Node] = []
    for node in scope.graph:
        if node.domain or not node.outputs:
            continue
        if _is_replaced(node, scope, names):
            useless.append(node)
        elif node.op_type == "CastLike" and (like := _to_cast(node)):
            cast.append(node)
            useless += [producer for producer in (like.producer(),) if producer is not None]
    return len(cast) + remove_unused(useless)


def _is_replaced(node: ir.Node, scope: _Scope, names: Names) -> bool:
    """Put something else in the place of a node if that needs no computation; return whether it was done."""
    if node.op_type == "Constant":
        return not scope.as_nodes and _to_initializer(node)
    if node.op_type in ("Shape", "Size"):
        return _fold_shape(node, scope.as_nodes)
    return node.op_type == "If" and inline_if(node, names, initializers=not scope.as_nodes)


def _to_initializer(node: ir.Node) -> bool:
    tensor = constant_tensor(node.outputs[0]) or _text(node)
    if tensor is not None:
        replace_by_constant(node.outputs[0], tensor, as_node=False)
    return tensor is not None


def _text(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the constant of a node that has it as string or strings."""
    for name in ("value_string", "value_strings"):
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            texts = [attribute.as_string()] if name == "value_string" else list(attribute.as_strings())
            shape = ir.Shape([] if name == "value_string" else [len(texts)])
            return ir.StringTensor([text.encode() for text in texts], shape=shape)
    return None


def _fold_shape(node: ir.Node, as_node: bool) -> bool:
    """Replace Shape or Size of a value whose (asked for) dimensions are numbers; return whether they were."""
    source = node.inputs[0]
    if source is None or source.shape is None or any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    dims = list(source.shape.dims)
    if node.op_type == "Shape":
        dims = dims[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims)))]
    numbers = [dim for dim in dims if isinstance(dim, int) and dim >= 0]
    if len(numbers) != len(dims):
        return False
    content = numbers if node.op_type == "Shape" else math.prod(numbers)
    replace_by_constant(node.outputs[0], ir.Tensor(np.array(content, dtype=np.int64)), as_node=as_node)
    return True


def _to_cast(node: ir.Node) -> ir.Value | None:
    """Turn CastLike into Cast when the type to cast to is known; return the value that it was like.

    `saturate` and `round_mode` mean the same in both.
    """
    like = node.inputs[1] if len(node.inputs) > 1 else None
    dtype = _values.dtype_of(like)
    if not dtype or any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    node.op_type = "Cast"
    node.resize_inputs(1)
    node.attributes.add(ir.AttrInt64("to", int(dtype)))
    return like


class _Folding:
    """One round over all graphs of one opset."""

    def __init__(self, scopes: list[_Scope], opset: int, max_bytes: int, context: Context) -> None:
        self._scopes = scopes
        self._opset = opset
        self._max_bytes = max_bytes
        self._context = context
        self._facts = Symbolic(scopes[0].graph, opset)
        self._as_nodes: dict[ir.Node, bool] = {}
        self._constant: set[ir.Value] = set()
        self._shares: dict[ir.Value, int] = {}

    def run(self) -> int:
        nodes = self._within_limits(self._candidates())
        results: dict[ir.Value, ir.TensorProtocol] = {}
        failures = 0
        while nodes:
            wanted = _frontier(nodes)
            if not wanted:
                return 0
            try:
                results = evaluate(nodes, wanted, self._opset, self._sizes(wanted))
            except EvaluationError as error:
                failures += 1
                nodes = self._drop_failed(nodes, error) if failures <= _MAX_FAILURES else []
                continue
            too_large = [value for value in wanted if results[value].nbytes > self._allowed(value)]
            if not too_large:
                break
            nodes = self._without(nodes, {producer for value in too_large if (producer := value.producer())})
        for value, tensor in results.items():
            producer = value.producer()
            if tensor.dtype == ir.DataType.INT64 and contradicts_output(value, tensor.numpy().reshape(-1)):
                continue
            replace_by_constant(value, tensor, as_node=producer is not None and self._as_nodes[producer])
        return remove_unused(nodes) if results else 0

    def _candidates(self) -> list[ir.Node]:
        """Return the nodes that depend on constants alone, in order."""
        found: list[ir.Node] = []
        for scope in self._scopes:
            for node in in_order(scope.graph):
                if node.inputs and not node.domain and self._is_constant(node):
                    self._as_nodes[node] = scope.as_nodes
                    self._constant.update(node.outputs)
                    found.append(node)
        return found

    def _is_constant(self, node: ir.Node) -> bool:
        for value in node.inputs:
            if value is not None and value not in self._constant and constant_tensor(value) is None:
                return False
        if node.op_type in _EXCLUDED or all(value is None for value in node.inputs):
            return False
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return False
        # runtimes differ in how they write numbers as text
        return node.op_type != "Cast" or node.attributes.get_int("to", 0) != ir.DataType.STRING

    def _within_limits(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """Drop the nodes whose result would be too large, and those that depend on them."""
        kept: list[ir.Node] = []
        gone: set[ir.Value] = set()
        for node in nodes:
            for value in node.inputs:
                tensor = constant_tensor(value)
                if value is not None and tensor is not None:
                    self._facts.assume(value, tuple(int(dim) for dim in tensor.shape.numpy()))
            self._facts.visit(node)
            if gone.isdisjoint(value for value in node.inputs if value) and self._is_small(node):
                kept.append(node)
            else:
                gone.update(node.outputs)
        return kept

    def _is_small(self, node: ir.Node) -> bool:
        sizes = self._facts.sizes(node)
        sources = [self._bytes(value) for value in node.inputs if value is not None]
        if sizes is None:
            return sum(sources) <= _UNKNOWN_GROWTH
        grown = sum(_size(*size) for size in sizes)
        return grown <= self._max_bytes + sum(self._freed(value) for value in node.inputs if value is not None)

    def _allowed(self, value: ir.Value) -> int:
        node = value.producer()
        return self._max_bytes + sum(self._freed(source) for source in (node.inputs if node else ()) if source)

    def _freed(self, value: ir.Value) -> int:
        """Return this user's share of the bytes that go when all users of `value` are folded; 0 if some are not."""
        if value.is_graph_output():
            return 0
        if value not in self._shares:  # a constant may have very many users
            users = {usage.node for usage in value.uses()}
            self._shares[value] = self._bytes(value) // len(users) if users <= self._as_nodes.keys() else 0
        return self._shares[value]

    def _bytes(self, value: ir.Value) -> int:
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.nbytes
        producer, index = value.producer(), value.index()
        sizes = self._facts.sizes(producer) if producer is not None else None
        return 0 if sizes is None or index is None else _size(*sizes[index])

    def _sizes(self, values: list[ir.Value]) -> dict[ir.Value, tuple[ir.DataType, list[int]]]:
        known: dict[ir.Value, tuple[ir.DataType, list[int]]] = {}
        for value in values:
            producer, index = value.producer(), value.index()
            sizes = self._facts.sizes(producer) if producer is not None else None
            if sizes is not None and index is not None:
                known[value] = sizes[index]
        return known

    def _drop_failed(self, nodes: list[ir.Node], error: EvaluationError) -> list[ir.Node]:
        """Find the node that cannot be computed, say so, and go on without it and what depends on it."""
        blamed = error.node or self._first_failing(nodes)
        name = blamed.name or blamed.outputs[0].name
        self._context.notes.append(f"{blamed.op_type} '{name}' is constant but was left alone: {error.message}")
        return self._without(nodes, {blamed})

    def _first_failing(self, nodes: list[ir.Node]) -> ir.Node:
        """Bisect: return the node at which computing the list from the front begins to fail."""
        good, bad = 0, len(nodes)  # the first `good` can be computed, the first `bad` cannot
        while bad - good > 1:
            middle = (good + bad) // 2
            wanted = _frontier(nodes[:middle])
            try:
                evaluate(nodes[:middle], wanted, self._opset, self._sizes(wanted))
                good = middle
            except EvaluationError:
                bad = middle
        return nodes[bad - 1]

    def _without(self, nodes: list[ir.Node], dropped: set[ir.Node]) -> list[ir.Node]:
        gone: set[ir.Value] = set()
        kept: list[ir.Node] = []
        for node in nodes:
            if node in dropped or not gone.isdisjoint(value for value in node.inputs if value):
                gone.update(node.outputs)
            else:
                kept.append(node)
        return kept


def _size(dtype: ir.DataType, shape: list[int]) -> int:
    return math.ceil(math.prod(shape) * (dtype.bitwidth if dtype != ir.DataType.STRING else 64) / 8)


def _frontier(nodes: list[ir.Node]) -> list[ir.Value]:
    """Return the outputs of `nodes` that something else uses."""
    inside = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(usage.node not in inside for usage in value.uses())
    ]
