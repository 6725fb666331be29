"""Shape arithmetic to constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infconv.passes import _contents
from infconv.passes._base import Context, Pass
from infconv.passes._build import Names
from infconv.passes._dims import Dim, Dims, equal, is_natural, is_positive, product
from infconv.passes._edit import add_constant, contradicts_output, needs_nodes, remove_unused, replace_by_constant
from infconv.passes._graphs import standard_opset, with_subgraphs
from infconv.passes._match import Refusal
from infconv.passes._op import Op, Unknown, constant_tensor
from infconv.passes._shapes_move import reshaped, slice_ranges
from infconv.passes._symbolic import Symbolic, symbolic_facts

_TO_END = (1 << 63) - 1


class FoldShapes(Pass):
    """Replace shape arithmetic whose result is the same at every size, or that Reshape can do by itself.

    `Reshape(x, Concat(Gather(Shape(x), 0), [12, 64]))` of `x: float[batch, 768]` becomes `Reshape(x, [0, 12, 64])`.
    An `Expand` to the shape that its input has anyway goes; a `Slice` to the end is told so by a constant. Nothing is
    assumed of a dynamic dimension: it may be 0 or 1. That is why `-1` is used only where all other elements of the
    target are known not to be zero: Reshape cannot tell what -1 stands for in an empty tensor.
    """

    needs_shapes = True
    rewires = True
    nonempty: bool = False
    """Take for granted that no dynamic dimension is ever 0, which allows `-1` beside copied dimensions."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the number of nodes that were removed or whose shape operand became a constant."""
        opset = standard_opset(model.opset_imports) or 0
        if opset < (9 if needs_nodes(model) else 5):
            return 0  # Reshape had no shape operand, or Constant no integers
        facts = symbolic_facts(model, context)
        folding = _Folding(model, opset, facts, self.nonempty, context.why)
        changes = 0
        for graph in with_subgraphs(model.graph):
            changes += folding.fold_numbers(graph)
            for node in graph:
                if not node.domain:
                    changes += folding.fold_operand(node)
        return changes


class _Folding:
    def __init__(self, model: ir.Model, opset: int, facts: Symbolic, nonempty: bool, why: list[Refusal] | None) -> None:
        self._facts = facts
        self._nonempty = nonempty
        self._why = why
        self._opset = opset
        self._as_nodes = needs_nodes(model)
        self._names = Names(model)
        self._targets: dict[tuple[ir.Graph, tuple[int, ...]], ir.Value] = {}

    def fold_numbers(self, graph: ir.Graph) -> int:
        """Replace computed values whose elements are the same at every size; return how many nodes went."""
        found: list[tuple[ir.Value, np.ndarray]] = []
        computing: set[ir.Node] = set()
        for node in graph:
            if node.domain or node.op_type not in _contents.RULES:
                continue
            contents = [(value, self._facts.numbers(value)) for value in node.outputs if value.name]
            known = [(value, content) for value, content in contents if content is not None]
            if len(known) == len(contents):
                computing.add(node)
                found += known
        seeds: list[ir.Node] = []
        for value, content in found:
            node = value.producer()
            if node is None or not _is_wanted(value, computing) or contradicts_output(value, content.reshape(-1)):
                continue
            replace_by_constant(value, ir.Tensor(content), as_node=self._as_nodes)
            seeds.append(node)
        return remove_unused(seeds)

    def fold_operand(self, node: ir.Node) -> int:
        """Simplify the shape operand of one node; return 1 if it was, and how many nodes that made useless."""
        rule = {"Reshape": self._fold_reshape, "Expand": self._fold_expand, "Slice": self._fold_slice}.get(node.op_type)
        if rule is None:
            return 0
        try:
            return rule(Op(node, self._facts.facts, self._opset))
        except Unknown:
            return 0

    def _fold_reshape(self, op: Op) -> int:
        node = op.node
        if constant_tensor(op.value(1)) is not None:
            return 0
        elements = op.elements(1)
        allow_zero = op.attr_int("allowzero", 0) == 1  # torch always sets it
        target = reshape_target(_dims_or_none(op), elements, allow_zero=allow_zero, nonempty=self._nonempty)
        if target is None:
            self._refuse(node, f"[{', '.join(map(str, elements))}] cannot be written with one -1 and copies")
            return 0
        old = node.inputs[1]
        if old is None or contradicts_output(old, target):
            return 0
        node.attributes.pop("allowzero", None)
        return self._set_operand(node, 1, target)

    def _fold_expand(self, op: Op) -> int:
        node = op.node
        source, target = op.dims(0), tuple(op.elements(1))
        offset = len(source) - len(target)
        if offset < 0 or not all(size == 1 or size == source[offset + i] for i, size in enumerate(target)):
            return 0
        return _bypass(node)

    def _fold_slice(self, op: Op) -> int:
        """Tell a Slice that ends at (or beyond) the end of its axes so by a number."""
        node = op.node
        if op.opset < 10 or constant_tensor(op.value(2)) is not None or not op.has_content(2):
            return 0
        dims = op.dims(0)
        ends: list[int] = []
        for axis, (_, end, step) in slice_ranges(op, len(dims)).items():
            if isinstance(end, int):
                ends.append(end)
            elif end is not None and step is not None and step > 0 and is_natural(end - dims[axis]):
                ends.append(_TO_END)
            else:
                return 0
        if len(ends) != op.content(2).size or any(op.dtype(index) != ir.DataType.INT64 for index in (1, 2)):
            return 0
        return self._set_operand(node, 2, ends)

    def _refuse(self, node: ir.Node, reason: str) -> None:
        if self._why is not None:
            self._why.append(Refusal("fold-shapes", node.name or node.outputs[0].name or "", reason, 1))

    def _set_operand(self, node: ir.Node, index: int, elements: list[int]) -> int:
        """Give `node` a constant of `elements` for its operand; equal ones are shared within a graph."""
        old, graph = node.inputs[index], node.graph
        if old is None or graph is None:
            return 0
        key = (graph, tuple(elements))
        if key not in self._targets:
            name, tensor = self._names.fresh(f"{old.name}_folded"), ir.Tensor(np.array(elements, dtype=np.int64))
            # nodes are visited in order: what comes before this one comes before all that share the constant
            self._targets[key] = add_constant(graph, name, tensor, node if self._as_nodes else None)
        node.replace_input_with(index, self._targets[key])
        producer = old.producer()
        return 1 + (remove_unused([producer]) if producer is not None else 0)


def reshape_target(
    source: Dims | None, target: list[Dim], *, allow_zero: bool = False, nonempty: bool = False
) -> list[int] | None:
    """Return a constant target for a Reshape without `allowzero` that means the same as `target`, or None.

    `allow_zero` is what the node says now.

    - A number stays what it is; -1 becomes a number if the other elements determine it.
    - A symbol that is the input's size on the same axis is written 0, "copy". This is exact at size 0 too: the copied
      size is 0 then.
    - One further element may be anything; it is written -1, since the number of elements determines it. Reshape
      refuses to do that when the other sizes multiply to 0, so they must be provably positive: a copied symbol is
      not (a batch may be empty), unless the caller says `nonempty`, or the node had its -1 there anyway. (With
      `allowzero`, runtimes do accept -1 in an empty tensor.)
    """
    if allow_zero and 0 in target:
        return None  # a literal 0, which only `allowzero` can say
    resolved = reshaped(source, target, allow_zero=False)
    result: list[int] = []
    others: list[Dim] = []
    for axis, (element, dim) in enumerate(zip(target, resolved, strict=True)):
        copied = source[axis] if source is not None and axis < len(source) else None
        if isinstance(element, int) and element >= 0:
            result.append(element)
        elif isinstance(dim, int) and dim > 0:
            result.append(dim)
        else:
            result.append(0 if copied is not None and equal(dim, copied) else -1)
        if result[-1] != -1:
            others.append(dim)
    if result.count(-1) > 1:
        return None
    asked = not allow_zero and -1 in result and target[result.index(-1)] == -1
    fits = -1 not in result or asked or is_positive(product(others)) or (nonempty and 0 not in others)
    return result if fits else None


def _dims_or_none(op: Op) -> Dims | None:
    try:
        return op.dims(0)
    except Unknown:
        return None


def _is_wanted(value: ir.Value, computing: set[ir.Node]) -> bool:
    """Return whether something other than the arithmetic that goes uses `value`."""
    return value.is_graph_output() or any(usage.node not in computing for usage in value.uses())


def _bypass(node: ir.Node) -> int:
    """Let the users of a node that changes nothing use its input; return how many nodes went."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None:
        return 0
    if output.is_graph_output():
        operands = [value.producer() for value in node.inputs[1:] if value is not None]
        node.op_type = "Identity"
        node.resize_inputs(1)
        return 1 + remove_unused(producer for producer in operands if producer is not None)
    output.replace_all_uses_with(source)
    return remove_unused([node])
