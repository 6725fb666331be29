"""Horizontal fusion: linear operators on one input become one, whose result is split."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir
from pydantic import Field

from infconv.passes._attributes import plain_attributes
from infconv.passes._base import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import detach, remove, scopes, standard_opset, take_over
from infconv.passes._match import Refusal, label
from infconv.passes._pattern import Refuse
from infconv.passes._values import rank, tensor, use_count
from infconv.passes._weights import Linear, check_unshared, linear, per_channel, rounded


class MergeParallel(Pass):
    """Merge parallel MatMul, Gemm or Conv on one input into one with the weights side by side, and a Split.

    [W1 | W2 | W3] x, split after the columns of each: the projections to queries, keys and values become one. For
    MatMul the Adds of constant biases come along. All must agree in attributes and in everything about the weight but
    its output channels; convolutions have no groups. The number of nodes always falls.

    One product has the same arithmetic as three; what it gains is fewer, larger calls, what it costs is the Split's
    copy. On ONNX Runtime's CPU kernels that is about even, which is why it is not part of a default pipeline.

    `a = MatMul(x, A); b = MatMul(x, B); c = MatMul(x, C)` becomes `a, b, c = Split(MatMul(x, [A | B | C]), axis=-1)`.
    """

    min_branches: int = Field(default=2, ge=2)
    """Merge no fewer operators than this."""
    max_branches: int = Field(default=16, ge=2)
    """Leave more operators than this on one input alone."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many groups of operators were merged."""
        names, changes = Names(model), 0
        for scope in scopes(model):
            opset = standard_opset(scope.opset_imports)
            if opset is None or opset < 7:
                continue
            has_initializers = scope is model.graph and (model.ir_version or 4) >= 4
            for group in _groups(scope, context):
                graph = cast(ir.Graph, group[0].node.graph)
                if self._pays(group):
                    op = Builder(graph, {"": opset}, names, "", has_initializers or graph is not scope)
                    changes += _merge(op, group, context)
        return changes

    def _pays(self, group: Sequence[_Branch]) -> bool:
        """Whether the group is of the wanted size, and has more nodes than what it would become."""
        before = len(group) * (1 + (group[0].add is not None))
        return self.min_branches <= len(group) <= self.max_branches and before > 2 + (group[0].add is not None)


@dataclasses.dataclass(frozen=True)
class _Branch:
    """One of the parallel operators."""

    node: ir.Node
    add: ir.Node | None
    """The Add of a constant bias after MatMul."""
    linear: Linear
    bias: np.ndarray | None
    """float64."""

    @property
    def output(self) -> ir.Value:
        return (self.add or self.node).outputs[0]


def _groups(scope: ir.Graph, context: Context) -> list[list[_Branch]]:
    """Return the branches that agree in input and form, in the order of the graph."""
    groups: dict[Hashable, list[_Branch]] = {}
    for node in scope.all_nodes():
        if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or _parallel(node) < 2:
            continue
        try:
            branch = _branch(node)
            groups.setdefault(_form(branch), []).append(branch)
        except Refuse as refusal:
            if context.why is not None:
                context.why.append(Refusal("parallel", label(node), str(refusal), 1))
    return list(groups.values())


def _parallel(node: ir.Node) -> int:
    x = node.inputs[0]
    return 0 if x is None else use_count(x)


def _branch(node: ir.Node) -> _Branch:
    """Return `node` as a branch. Raises Refuse."""
    old = linear(node)
    if old.alpha != 1 or old.transposes_input or (node.op_type == "Conv" and old.weight.shape[0] != 1):
        raise Refuse("it has groups, alpha or transA")
    if node.op_type == "MatMul" and old.weight.ndim != 2:
        raise Refuse("its weight is no matrix")
    check_unshared(cast(ir.Value, node.inputs[1]))
    add = _bias_add(node) if node.op_type == "MatMul" else None
    if add is None:
        return _Branch(node, None, old, old.bias)
    bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    assert bias is not None
    try:
        return _Branch(node, add, old, per_channel(bias, rank(node.outputs[0]), old.outputs, 0))
    except Refuse:
        return _Branch(node, None, old, None)


def _bias_add(node: ir.Node) -> ir.Node | None:
    """Return the Add that alone uses the result of `node`."""
    result = node.outputs[0]
    if use_count(result) != 1 or result.is_graph_output():
        return None
    (user,) = result.consumers()
    return user if user.op_type == "Add" and not user.domain and user.graph is node.graph else None


def _form(branch: _Branch) -> Hashable:
    """Return what branches that can be merged have in common."""
    old, node = branch.linear, branch.node
    rest = [size for axis, size in enumerate(old.weight.shape) if axis not in old.out_axes]
    attributes = {name: value for name, value in plain_attributes(node).items() if name != "beta"}
    kept = tuple(sorted((name, tuple(v) if isinstance(v, Sequence) else v) for name, v in attributes.items()))
    return id(node.inputs[0]), id(node.graph), node.op_type, branch.add is None, tuple(rest), old.weight.dtype, kept


def _merge(op: Builder, group: Sequence[_Branch], context: Context) -> int:
    """Replace `group`; return 1, or 0 when it is refused."""
    first = group[0]
    try:
        results = _split(op, group, _product(op, group))
    except Refuse as refusal:
        op.discard()
        if context.why is not None:
            context.why.append(Refusal("parallel", label(first.node), str(refusal), 2))
        return 0
    op.add_to_graph(first.node)
    for branch, new in zip(group, results, strict=True):
        new.type, new.shape = branch.output.type, branch.output.shape
        take_over(branch.output, new)
    old = [node for branch in group for node in (branch.add, branch.node) if node is not None]
    constants = dict.fromkeys(value for node in old for value in node.inputs if value is not None)
    for node in old:
        detach(node)
    remove(old)
    for value in constants:
        if value.is_initializer() and not (use_count(value) or value.is_graph_input() or value.is_graph_output()):
            cast(ir.Graph, value.graph).initializers.pop(cast(str, value.name))
    return 1


def _product(op: Builder, group: Sequence[_Branch]) -> ir.Value:
    """Make the one operator with all weights."""
    node, axis = group[0].node, 0 if group[0].node.op_type == "Conv" else group[0].linear.out_axes[0]
    weight = op.const(_concatenated([cast(ir.Value, branch.node.inputs[1]) for branch in group], axis))
    attributes = {name: a for name, a in node.attributes.items() if name != "beta"}
    bias = None
    if any(branch.bias is not None for branch in group):
        parts = [np.broadcast_to(0.0 if b.bias is None else b.bias, b.linear.outputs) for b in group]
        bias = op.const(rounded(np.concatenate(parts), group[0].linear.weight.dtype))
    if node.op_type != "MatMul":
        inputs = [node.inputs[0], weight, *([] if bias is None else [bias])]
        return _described(op.call(node.op_type, *inputs, _attrs=attributes), group)
    product = _described(op.MatMul(node.inputs[0], weight), group)
    return product if bias is None else _described(op.Add(product, bias), group)


def _described(product: ir.Value, group: Sequence[_Branch]) -> ir.Value:
    """Give `product` the type of one branch, and its shape with the channels of all: no step infers shapes later."""
    one = group[0].node.outputs[0]
    product.type = one.type
    if one.shape is not None:
        dims = list(one.shape)
        dims[1 if group[0].node.op_type == "Conv" else -1] = sum(branch.linear.outputs for branch in group)
        product.shape = ir.Shape(dims)
    return product


def _concatenated(weights: Sequence[ir.Value], axis: int) -> ir.TensorProtocol:
    """Return the weights side by side, put together only when they are asked for: they stay mapped until then."""
    tensors = [cast(ir.TensorProtocol, tensor(weight)) for weight in weights]
    shape = list(cast(ir.Shape, tensors[0].shape).numpy())
    shape[axis] = sum(cast(ir.Shape, t.shape).numpy()[axis] for t in tensors)

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([t.numpy() for t in tensors], axis), tensors[0].dtype)

    return ir.LazyTensor(evaluate, tensors[0].dtype, ir.Shape(shape), name=None)


def _split(op: Builder, group: Sequence[_Branch], product: ir.Value) -> Sequence[ir.Value]:
    sizes = [branch.linear.outputs for branch in group]
    axis = 1 if group[0].node.op_type == "Conv" else -1
    if op.opset < 13:
        if axis < 0 and op.opset < 11:
            known = rank(group[0].node.outputs[0])
            if known is None:
                raise Refuse("the rank is not known, and Split counts axes from the front before opset 11")
            axis = known - 1
        return op.Split(product, split=sizes, axis=axis, _outputs=len(sizes))
    return op.Split(product, np.array(sizes, np.int64), axis=axis, _outputs=len(sizes))
