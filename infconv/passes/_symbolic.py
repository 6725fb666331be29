"""What follows from a graph about the shapes of its values and the elements of its shape tensors.

Nothing is executed and the model is not changed. Facts that follow from the operators win over declared shapes, which
are stale in many files (a batch made dynamic by hand, with every `value_info` still saying 1); where operators tell
nothing, the declared shape is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from infconv.passes import _contents, _dims, _shapes_move, _shapes_nn, _shapes_plain
from infconv.passes._base import Context, Remembered
from infconv.passes._dims import Dim, Dims, Expr
from infconv.passes._graphs import standard_opset, subgraphs
from infconv.passes._op import INTEGERS, Content, DTypeRule, Facts, Op, Row, Unknown

RULES: dict[str, Row] = {**_shapes_plain.RULES, **_shapes_move.RULES, **_shapes_nn.RULES}
_FOLLOWED = INTEGERS | {ir.DataType.BOOL}
_MALFORMED = (LookupError, TypeError, ValueError, ZeroDivisionError, OverflowError)
"""What a rule raises on a node that no runtime would accept; to say so is the checker's business."""
_MAX_LOOP_VISITS = 4

Hint = tuple[int | str | None, ...]
"""A shape that onnx's own inference found: numbers, names, and None where it found nothing."""


def has_rule(node: ir.Node) -> bool:
    """Return whether the shapes of the node's outputs follow from a rule here, rather than from what is declared."""
    return bool(node.domain) or node.op_type in RULES or node.op_type in ("If", "Loop", "Scan")


def symbolic_facts(model: ir.Model, context: Context) -> Symbolic:
    """Return the facts about the main graph, perhaps remembered from the last pass that asked."""
    kept = context.remembered or Remembered()
    if kept.shapes is None:
        kept.shapes = Symbolic(model.graph, standard_opset(model.opset_imports) or 0).run()
    elif kept.rewired:
        kept.shapes.refresh()
    kept.rewired = False
    return kept.shapes


class Symbolic:
    """Facts about every value of `graph` and its subgraphs, computed by `run` (or node by node, by `visit`)."""

    def __init__(self, graph: ir.Graph, opset: int, hints: Mapping[ir.Value, Hint] | None = None) -> None:
        self.facts = Facts()
        self.contradictions: list[ir.Value] = []
        self._hints = hints or {}
        self._opset = opset
        self._graph = graph
        self._aliases: dict[Dim, Expr] = {}
        self._names: set[str] = set()
        self._input_names: set[str] = set()
        self._parsed: dict[str, Expr | None] = {}
        self._visited: dict[ir.Node, Sequence[ir.Value | None]] = {}
        """The nodes of `graph` that hold no graphs, with the inputs that they had when they were visited."""

    def run(self) -> Symbolic:
        """Visit the graph and return self."""
        self._enter(self._graph)
        self._input_names.update(self._names)
        for value in self._graph.inputs:
            self._declare(value, known=True)
        for node in in_order(self._graph):
            self._visited[node] = node.inputs
            self.visit(node)
        return self

    def refresh(self) -> None:
        """Do as `run` would once more, now that nodes came, went or have other inputs, and nothing else changed.

        Visited are new nodes, those with other inputs, those that hold graphs, and what depends on what was news.
        """
        self._forget_removed()
        self._enter(self._graph)
        before, self._visited = self._visited, {}
        news: set[ir.Value] = set()
        for node in in_order(self._graph):
            inputs = self._visited[node] = node.inputs
            if before.get(node) == inputs and news.isdisjoint(inputs) and not has_graphs(node):
                continue
            known = [self._known(output) for output in node.outputs]
            self.visit(node)
            news.update(v for v, old in zip(node.outputs, known, strict=True) if not _same(old, self._known(v)))

    def _known(self, value: ir.Value) -> _Known:
        return self.facts.dims.get(value), self.facts.contents.get(value), self.facts.dtypes.get(value)

    def _forget_removed(self) -> None:
        """Let go of constants that are in no graph any more: they are what takes memory."""
        for value in [v for v in self.facts.dims if v.producer() is None and v.graph is None]:
            del self.facts.dims[value]
            self.facts.contents.pop(value, None)

    def dims(self, value: ir.Value) -> Dims | None:
        """Return the dimensions of `value`, None when not even its rank is known."""
        return self.facts.dims.get(value)

    def content(self, value: ir.Value) -> Content | None:
        """Return the elements of `value`, None when it is not a small tensor of integers or booleans."""
        return self.facts.content(value)

    def numbers(self, value: ir.Value) -> Content | None:
        """Return the elements of `value` if they are the same at every size, as an array of its type."""
        content, dtype = self.facts.contents.get(value), self.facts.dtype(value)
        if content is None or dtype is None or dtype not in _FOLLOWED:
            return None
        if not all(isinstance(element, int) for element in content.ravel().tolist()):
            return None
        return content.astype(dtype.numpy())

    def sizes(self, node: ir.Node) -> list[tuple[ir.DataType, list[int]]] | None:
        """Return the types and shapes of the outputs of a visited node if all of them are numbers."""
        known: list[tuple[ir.DataType, list[int]]] = []
        for value in node.outputs:
            dtype, dims = self.facts.dtype(value), self.facts.dims.get(value)
            if dtype is None or dims is None or not all(isinstance(dim, int) for dim in dims):
                return None
            known.append((dtype, Op.ints_of(dims)))
        return known

    def assume(self, value: ir.Value, dims: Dims) -> None:
        """State the shape of a value that no visited node computes."""
        self.facts.dims[value] = dims

    def visit(self, node: ir.Node) -> None:
        """Work out the outputs of one node; its inputs must have been visited."""
        if not node.outputs:
            return
        op = Op(node, self.facts, self._opset)
        row = RULES.get(node.op_type) if not node.domain else None
        if row is not None:
            self._apply(op, row)
        elif not node.domain and node.op_type in ("If", "Loop", "Scan"):
            self._visit_control(op)
        else:
            for graph in subgraphs(node) if node.attributes.data else ():
                self._visit_graph(graph, {})
            self._settle_all(node, [])

    def _apply(self, op: Op, row: Row) -> None:
        rule, types = row
        outputs = op.node.outputs
        for index, output in enumerate(outputs):
            kind = types[min(index, len(types) - 1)]
            try:
                dtype = _dtype(op, kind)
            except _MALFORMED:
                dtype = None
            if dtype is not None:
                self.facts.dtypes[output] = dtype
        try:
            shapes = rule(op)
        except _MALFORMED:
            shapes = []
        self._settle_all(op.node, shapes)
        if op.node.op_type in _contents.RULES and self.facts.dtype(outputs[0]) in _FOLLOWED:
            self._follow(op)

    def _follow(self, op: Op) -> None:
        """Work out the elements of the outputs of a node that computes with shapes."""
        first = op.node.op_type in ("Shape", "Size")
        if not first and not any(op.has_content(index) for index in range(len(op.inputs))):
            return
        try:
            contents = _contents.RULES[op.node.op_type](op)
        except _MALFORMED:
            contents = []
        for output, content in zip(op.node.outputs, contents, strict=False):
            if self._in_range(output, content):
                self.facts.contents[output] = content

    def _in_range(self, value: ir.Value, content: Content) -> bool:
        dtype = self.facts.dtype(value)
        if dtype is None or dtype == ir.DataType.BOOL:
            return dtype is not None
        limits = np.iinfo(dtype.numpy())
        return all(
            limits.min <= element <= limits.max for element in content.ravel().tolist() if isinstance(element, int)
        )

    def _settle_all(self, node: ir.Node, shapes: Sequence[Dims | None]) -> None:
        for index, output in enumerate(node.outputs):
            self.facts.contents.pop(output, None)
            self._settle(output, shapes[index] if index < len(shapes) else None)

    def _settle(self, value: ir.Value, derived: Dims | None) -> None:
        """Record the shape of `value`: what the operator says, else a hint, else what is declared."""
        declared = _declared(value)
        hint = self._hints.get(value)
        if derived is None:
            if hint is None and declared is None:
                self.facts.dims.pop(value, None)
                return
            derived = tuple(_dims.unknown() for _ in (hint if hint is not None else declared or ()))
        elif declared is not None and len(declared) != len(derived):
            self.contradictions.append(value)
        if hint is None or len(hint) != len(derived):
            hint = (None,) * len(derived)
        if declared is None or len(declared) != len(derived):
            declared = (None,) * len(derived)
        if all(not isinstance(dim, Expr) or dim.known for dim in derived):
            settled = derived
        else:
            settled = tuple(
                self._settled(value, axis, dim, hint[axis], declared[axis]) if isinstance(dim, Expr) else dim
                for axis, dim in enumerate(derived)
            )
        self.facts.dims[value] = settled
        if settled != declared and any(map(_differ, settled, declared)):
            self.contradictions.append(value)

    def _settled(
        self, value: ir.Value, axis: int, derived: Expr, hint: int | str | None, declared: int | str | None
    ) -> Dim:
        if _dims.is_known(derived):
            return derived
        for dim in (hint, declared):
            if isinstance(dim, int) and dim >= 0:
                return dim
        if _dims.name_of(derived) is not None:
            return derived
        alias = self._aliases.get(derived)
        if alias is None:
            alias = self._parse(hint) or self._parse(declared)
            alias = self._aliases[derived] = alias or self._new_symbol(f"{value.name}_dim_{axis}", known=False)
        return alias

    def _parse(self, dim: int | str | None) -> Expr | None:
        if not isinstance(dim, str):
            return None
        if dim not in self._parsed:
            self._parsed[dim] = _dims.parse(dim, self._input_names)
        return self._parsed[dim]

    def _new_symbol(self, name: str, *, known: bool) -> Expr:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return _dims.symbol(name, known=known)

    def _declare(self, value: ir.Value, *, known: bool) -> None:
        """Record the declared shape of an input; its nameless dimensions get names of their own."""
        declared = _declared(value)
        if declared is None:
            self.facts.dims.pop(value, None)
            return
        self.facts.dims[value] = tuple(
            dim
            if isinstance(dim, int) and dim >= 0
            else self._parse(dim) or self._new_symbol(f"{value.name}_dim_{axis}", known=known)
            for axis, dim in enumerate(declared)
        )

    def _enter(self, graph: ir.Graph) -> None:
        """Take in the names of dimensions and the constants that a graph declares."""
        for value in graph.inputs:
            for dim in value.shape.dims if value.shape is not None else ():
                if not isinstance(dim, int) and dim.value:
                    self._names.add(dim.value)
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not value.is_graph_input():
                self.facts.dims[value] = tuple(int(dim) for dim in tensor.shape.numpy())

    def _visit_nodes(self, graph: ir.Graph) -> None:
        for node in in_order(graph):
            self.visit(node)

    def _visit_graph(self, graph: ir.Graph, inputs: Mapping[ir.Value, Dims | None]) -> list[Dims | None]:
        """Visit a body whose `inputs` have these shapes (others: as declared); return the shapes of its outputs."""
        self._enter(graph)
        for value in graph.inputs:
            self.facts.contents.pop(value, None)
            if value in inputs:
                self._settle(value, inputs[value])
            else:
                self._declare(value, known=False)
        self._visit_nodes(graph)
        return [self.facts.dims.get(value) for value in graph.outputs]

    def _visit_control(self, op: Op) -> None:
        visit = {"If": self._visit_if, "Loop": self._visit_loop, "Scan": self._visit_scan}[op.node.op_type]
        try:
            shapes, body = visit(op)
        except _MALFORMED:
            self._settle_all(op.node, [])
            return
        for output, source in zip(op.node.outputs, body, strict=False):
            dtype = self.facts.dtype(source)
            if dtype is not None and (source.type is None or isinstance(source.type, ir.TensorType)):
                self.facts.dtypes[output] = dtype
        self._settle_all(op.node, shapes)

    def _visit_if(self, op: Op) -> tuple[list[Dims | None], Sequence[ir.Value]]:
        branches = [op.required(name).as_graph() for name in ("then_branch", "else_branch")]
        shapes = [self._visit_graph(branch, {}) for branch in branches]
        if op.has_content(0) and isinstance(taken := op.content(0).ravel()[0], bool):
            index = 0 if taken else 1
            return shapes[index], branches[index].outputs
        return [_common(a, b) for a, b in zip(*shapes, strict=True)], branches[0].outputs

    def _visit_loop(self, op: Op) -> tuple[list[Dims | None], Sequence[ir.Value]]:
        """Visit a body until the shapes that it is assumed to keep are kept: then they hold by induction."""
        body = op.required("body").as_graph()
        carried = len(op.inputs) - 2
        values = body.inputs[2:]  # the iteration number and the condition are scalars or have one element, as declared
        assumed: list[Dims | None] = [self.facts.dims.get(op.value(2 + index)) for index in range(carried)]
        for index, value in enumerate(values):
            self._inherit_type(op.value(2 + index), value)
        for _ in range(_MAX_LOOP_VISITS):
            inputs: dict[ir.Value, Dims | None] = dict(zip(values, assumed, strict=True))
            given = self._visit_graph(body, inputs)
            entered = [self.facts.dims.get(value) for value in values]
            kept = [_invariant(*dims) for dims in zip(assumed, entered, given[1 : 1 + carried], strict=True)]
            if kept == assumed:
                scanned = [
                    None if dims is None else (_dims.unknown(), *_escaped(dims)) for dims in given[1 + carried :]
                ]
                # A size that varies has had one name inside the body; outside it is another.
                return [*map(_renewed, assumed), *scanned], body.outputs[1:]
            assumed = kept
        self._visit_graph(body, {})
        return [None] * len(op.node.outputs), body.outputs[1:]

    def _visit_scan(self, op: Op) -> tuple[list[Dims | None], Sequence[ir.Value]]:
        if op.opset < 9:
            raise Unknown("Scan-8 has a batch axis")
        body = op.required("body").as_graph()
        scans = op.required("num_scan_inputs").as_int()
        states = len(op.inputs) - scans
        axes = op.attr_ints("scan_input_axes") or [0] * scans
        inputs: dict[ir.Value, Dims | None] = {}
        for index, value in enumerate(body.inputs):
            dims = self.facts.dims.get(op.value(index))
            if dims is not None and index >= states:
                axis = axes[index - states] % len(dims)
                dims = dims[:axis] + dims[axis + 1 :]
            inputs[value] = dims
            self._inherit_type(op.value(index), value)
        given = self._visit_graph(body, inputs)
        length = op.dims(states)[axes[0]]
        axes = op.attr_ints("scan_output_axes") or [0] * (len(given) - states)
        scanned = [_inserted(dims, axis, length) for dims, axis in zip(given[states:], axes, strict=True)]
        return [*(inputs[value] for value in body.inputs[:states]), *scanned], body.outputs

    def _inherit_type(self, source: ir.Value, target: ir.Value) -> None:
        dtype = self.facts.dtype(source)
        if dtype is not None and target.type is None:
            self.facts.dtypes[target] = dtype


def has_graphs(node: ir.Node) -> bool:
    """Return whether `node` has a body, of which its outputs depend too."""
    return bool(node.attributes.data) and bool(subgraphs(node))


_Known: TypeAlias = "tuple[Dims | None, Content | None, ir.DataType | None]"


def _same(a: _Known, b: _Known) -> bool:
    if a[0] != b[0] or a[2] != b[2]:
        return False
    return a[1] is b[1] or (a[1] is not None and b[1] is not None and np.array_equal(a[1], b[1]))


def _declared(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple([dim if isinstance(dim, int) else dim.value for dim in value.shape.dims])


def _differ(derived: Dim, declared: int | str | None) -> bool:
    return isinstance(derived, int) and isinstance(declared, int) and derived != declared and declared >= 0


def _dtype(op: Op, kind: DTypeRule) -> ir.DataType | None:
    if isinstance(kind, ir.DataType):
        return kind
    return op.dtype(kind) if isinstance(kind, int) else kind(op)


def _common(a: Dims | None, b: Dims | None) -> Dims | None:
    """Return what holds for both branches of an If."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else _dims.unknown() for x, y in zip(a, b, strict=True))


def _invariant(assumed: Dims | None, entered: Dims | None, given: Dims | None) -> Dims | None:
    """Return what a loop's body keeps of the shape that it was `assumed` to keep; what it does not gets nameless."""
    if assumed is None or entered is None or given is None or not len(assumed) == len(entered) == len(given):
        return None
    return tuple(
        dim if _is_nameless(dim) or before == after else _dims.unknown()
        for dim, before, after in zip(assumed, entered, given, strict=True)
    )


def in_order(graph: ir.Graph) -> Iterable[ir.Node]:
    """Return the nodes so that each comes after those that it depends on."""
    return graph if _is_sorted(graph) else _sorted(graph)


def _is_sorted(graph: ir.Graph) -> bool:
    """Return whether every node comes after those that it depends on, as ONNX demands and not every file does."""
    seen: set[ir.Node] = set()
    for node in graph:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in seen and producer.graph is graph:
                return False
        seen.add(node)
    return True


def _sorted(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes in an order in which they can be visited; a cycle is broken anywhere."""
    order: dict[ir.Node, None] = {}
    for root in graph:
        stack, entered = [root], set[ir.Node]()
        while stack:
            node = stack[-1]
            needed = [p for v in node.inputs if v is not None and (p := v.producer()) is not None and p.graph is graph]
            waiting = [producer for producer in needed if producer not in order and producer not in entered]
            entered.add(node)
            if waiting:
                stack += waiting
            else:
                order[stack.pop()] = None
    return list(order)


def _is_nameless(dim: Dim) -> bool:
    return isinstance(dim, Expr) and _dims.name_of(dim) is None


def _renewed(dims: Dims | None) -> Dims | None:
    return None if dims is None else tuple(_dims.unknown() if _is_nameless(dim) else dim for dim in dims)


def _escaped(dims: Dims) -> Dims:
    """Return what can be said outside a loop's body of a shape inside it, whose symbols may vary by iteration."""
    return tuple(dim if isinstance(dim, int) else _dims.unknown() for dim in dims)


def _inserted(dims: Dims | None, axis: int, length: Dim) -> Dims | None:
    if dims is None:
        return None
    escaped = _escaped(dims)
    axis = axis if axis >= 0 else axis + len(dims) + 1
    return (*escaped[:axis], length, *escaped[axis:])
