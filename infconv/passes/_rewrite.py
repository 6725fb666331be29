"""Apply rewrite rules to a fixpoint. `_pattern.py` has the language they are written in.

Nodes are visited from the outputs towards the inputs, so that of overlapping patterns the one that ends last wins; at
one node the rules are tried in the order in which they are written. After a rewrite only its neighbourhood is visited
again. When nothing is left to visit, one more sweep over the whole graph confirms the fixpoint (a condition may depend
on more than the neighbourhood), which also yields the final reasons of what did not apply; where the pass itself is
repeated until nothing changes, that is the confirmation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import onnx_ir as ir

from infconv.errors import InfconvError
from infconv.model import subgraphs
from infconv.passes._build import Builder, Names, all_nodes, replacement
from infconv.passes._match import Match, Refusal, Scope, heads, label, opset_refusal, plausible
from infconv.passes._pattern import OpKey, Refuse, Rule
from infconv.passes._search import find
from infconv.passes._values import (
    all_of,
    constant,
    dims,
    dtype_of,
    is_float,
    is_used,
    known_shape,
    rank,
    same_dim,
    same_shape,
    scalar,
    static_dim,
    use_count,
)

if TYPE_CHECKING:
    from infconv.passes._base import Allowance

__all__ = [
    "Builder",
    "Match",
    "Refusal",
    "Refuse",
    "Rule",
    "all_of",
    "constant",
    "dims",
    "dtype_of",
    "is_float",
    "is_used",
    "known_shape",
    "rank",
    "rewrite",
    "same_dim",
    "same_shape",
    "scalar",
    "static_dim",
    "use_count",
]

_MANY = 32
"""After a rewrite, about as many nodes around it are visited again, and no users of a value that has more."""
_MAX_REFUSALS = 10_000


class RewriteContext(Protocol):
    """What the engine wants to know about the run."""

    @property
    def why(self) -> list[Refusal] | None:
        """Where near misses are to be noted, if at all."""
        ...

    @property
    def allowance(self) -> Allowance | None:
        """Which rewrites may be made; None: all."""
        ...

    @property
    def again(self) -> bool:
        """Whether the rules are applied again if they apply now."""
        ...


def rewrite(model: ir.Model, rules: Sequence[Rule], context: RewriteContext) -> int:
    """Apply `rules` everywhere in `model`, in place, until none applies; return the number of rewrites.

    Subgraphs and functions are rewritten too. Outputs of graphs keep their names, and replaced values keep name, type
    and shape. Nodes and initializers that nobody uses any more are removed. Raises InfconvError when the rules do not
    settle.
    """
    names = Names(model)
    why: list[Refusal] = []
    changes = 0
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        scope = Scope(graph.opset_imports, model.functions.keys(), context.why is not None)
        # Functions have no initializers, and before IR version 4 an initializer had to be an input as well.
        initializers = graph is model.graph and (model.ir_version or 4) >= 4
        rewriter = _Rewriter(graph, rules, scope, names, initializers, context.allowance)
        changes += rewriter.run(confirm=not context.again or context.why is not None)
        why += rewriter.refusals.values()
    if context.why is not None:
        context.why.extend(why[:_MAX_REFUSALS])
    return changes


class _Rewriter:
    """Rewrites one scope: a graph with its subgraphs, or a function with its own."""

    def __init__(
        self,
        graph: ir.Graph,
        rules: Sequence[Rule],
        scope: Scope,
        names: Names,
        initializers: bool,
        allowance: Allowance | None,
    ) -> None:
        self.graph = graph
        self.allowance = allowance
        self.scope = scope
        self.names = names
        self.initializers = initializers
        # Rules for other opsets are only kept for the reason that they give.
        self.rules = _RuleIndex([r for r in rules if scope.explain or not opset_refusal(r, scope.opset)])
        self.queue: deque[ir.Node] = deque()
        self.queued: set[ir.Node] = set()
        self.dead: dict[ir.Node, None] = {}
        self.refusals: dict[tuple[Rule, ir.Node], Refusal] = {}
        self.budget = _Budget()
        self.outputs = _GraphOutputs()
        self.order = _Order(graph)

    def run(self, *, confirm: bool) -> int:
        """Sweep until a sweep changes nothing, or once without `confirm`; return the number of rewrites."""
        changes, before = 0, -1
        while self.rules and changes != before:
            before = changes
            self.refusals.clear()
            self.order = _Order(self.graph)
            nodes = list(all_nodes(self.graph))
            self.budget.nodes = self.budget.nodes or len(nodes)
            self.enqueue(reversed(nodes))
            try:
                while self.queue:
                    changes += self.visit(self.dequeue())
            finally:
                self.remove_dead()
            if not confirm:
                break
        return changes

    # --- the queue -------------------------------------------------------------------------------------------------

    def enqueue(self, nodes: Iterable[ir.Node]) -> None:
        """Visit those of `nodes` that may be a root, later."""
        for node in nodes:
            if self.rules.of(node) and node not in self.queued:
                self.queued.add(node)
                self.queue.append(node)

    def dequeue(self) -> ir.Node:
        node = self.queue.popleft()
        self.queued.discard(node)
        return node

    def revisit(self, values: Iterable[ir.Value]) -> None:
        """Visit again what may match now that `values` changed: their users, as far as a pattern reaches.

        Where there are many users it is left to the confirming sweep: visiting them after each rewrite would not be
        linear.
        """
        frontier, found = list(values), dict[ir.Node, None]()
        for _ in range(self.rules.reach):
            users = [user for value in frontier if use_count(value) <= _MANY for user, _ in value.uses()]
            frontier = [output for user in users if user not in found for output in user.outputs]
            found.update(dict.fromkeys(users))
            if not frontier or len(found) > _MANY:
                break
        self.enqueue(found)

    # --- one node --------------------------------------------------------------------------------------------------

    def visit(self, node: ir.Node) -> int:
        """Apply the first rule that matches at `node`; return the number of rewrites, 0 or 1."""
        explain = self.scope.explain
        rules = self.rules.of(node) if explain else self.rules.plausible(node)
        if not rules or node in self.dead or not any(is_used(output) for output in node.outputs):
            return 0
        for rule in rules:
            found = find(rule, node, self.scope)
            if isinstance(found, Match):
                reason = self.apply(rule, found)
                if reason is None:
                    return 1
                found = Refusal(rule.name, label(node), reason, rule.pattern.size)
            if explain and found is not None and len(self.refusals) < _MAX_REFUSALS:
                self.refusals[rule, node] = found
        return 0

    def apply(self, rule: Rule, match: Match) -> str | None:
        """Build the replacement and put it in place; return None, or the reason why not."""
        name = f"{rule.name} at {label(match.root)}"
        if self.allowance is not None and not self.allowance.permits(name):
            return "it is not among the rewrites that may be made"
        op = self.builder(match.root)
        try:
            results = replacement(rule, match, op)
            anchor = self.order.place(match, results, op)
        except Refuse as refusal:
            op.discard()
            return str(refusal)
        if self.allowance is not None:
            self.allowance.made.append(name)
        self.budget.spend(rule, match, op.nodes)
        op.add_to_graph(anchor)
        self.order.add(op.nodes, anchor)
        for old, new in zip(match.outputs, results, strict=True):
            if new is not None:
                self.replace(old, new, made=new.producer() in op.nodes)
        changed = [new for new in results if new is not None] + self.clean_up(match, op)
        self.enqueue(op.nodes)
        self.enqueue(producer for value in changed if (producer := value.producer()) is not None)
        self.revisit(changed)
        return None

    def builder(self, root: ir.Node) -> Builder:
        """Return what makes nodes in the graph of `root`, with names like its own."""
        graph = cast(ir.Graph, root.graph)
        folder, slash, _ = (root.name or "").rpartition("/")
        initializers = self.initializers or graph is not self.graph
        return Builder(graph, self.graph.opset_imports, self.names, folder + slash, initializers)

    def clean_up(self, match: Match, op: Builder) -> list[ir.Value]:
        """Take out what was replaced, and what `build` made in vain; return values that lost a user."""
        changed: list[ir.Value] = []
        for old in match.outputs:
            producer = cast(ir.Node, old.producer())
            changed += self.bury(producer)
            if producer not in self.dead:  # it stays for another output; this one's name is taken
                old.name = self.names.fresh(f"{old.name}_unused")
        for node in reversed(op.nodes):
            changed += self.bury(node)
        op.drop_unused_constants()
        return changed

    def replace(self, old: ir.Value, new: ir.Value, made: bool) -> None:
        """Let the users of `old` use `new`; keep its name where that is seen."""
        is_output = old.is_graph_output()
        if made or is_output:
            new.name = old.name
        # An output is declared as it was: not only its name is seen, its type and the names of its sizes are too.
        if old.type is not None and (made or is_output or new.type is None):
            new.type = old.type
        if old.shape is not None and (made or is_output or new.shape is None):
            new.shape = old.shape
        if is_output:
            self.outputs.replace(old, new)
        for user, index in old.uses():
            user.replace_input_with(index, new)

    # --- dead nodes ------------------------------------------------------------------------------------------------

    def bury(self, node: ir.Node) -> list[ir.Value]:
        """Take out `node` if nothing uses it, and whatever nothing uses then; return values that lost a user."""
        stack, changed = [node], list[ir.Value]()
        while stack:
            node = stack.pop()
            if node in self.dead or any(is_used(output) for output in node.outputs):
                continue
            nodes = [node, *(inner for graph in subgraphs(node) for inner in all_nodes(graph))]
            self.dead.update(dict.fromkeys(nodes))
            for value in _detach(nodes):
                producer = value.producer()
                if is_used(value):
                    changed.append(value)
                elif producer is not None:
                    stack.append(producer)
                elif value.is_initializer() and not value.is_graph_input():
                    cast(ir.Graph, value.graph).initializers.pop(cast(str, value.name))
        return changed

    def remove_dead(self) -> None:
        """Remove dead nodes from their graphs, all at once: `Graph.remove` looks at every output of the graph."""
        by_graph: dict[ir.Graph, list[ir.Node]] = {}
        for node in self.dead:
            if node.graph is not None:
                by_graph.setdefault(node.graph, []).append(node)
        for graph, nodes in by_graph.items():
            graph.remove(nodes)
        self.dead.clear()


def _detach(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Make `nodes` users of nothing any more; return what they used, each value once."""
    used = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    for node in nodes:
        node.resize_inputs(0)
    return list(used)


class _RuleIndex:
    """Rules by the operators that their roots may be, in the order in which they are written."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._plausible: dict[tuple[OpKey | None, ...], Sequence[Rule]] = {}
        self._anywhere = [rule for rule in rules if any(not call.ops for call in rule.pattern.root_calls)]
        keys = dict.fromkeys(key for rule in rules for call in rule.pattern.root_calls for key in call.ops)
        self._by_operator = {
            key: [r for r in rules if any(not c.ops or key in c.ops for c in r.pattern.root_calls)] for key in keys
        }
        self._types = {op_type for _, op_type in keys}
        self.reach = max((rule.pattern.depth for rule in rules), default=0)
        """The length of the longest pattern, in operators."""

    def __bool__(self) -> bool:
        return self.reach > 0

    def of(self, node: ir.Node) -> Sequence[Rule]:
        """Return the rules whose root `node` may be."""
        if node.op_type not in self._types:  # most nodes
            return self._anywhere
        return self._by_operator.get((node.domain, node.op_type), self._anywhere)

    def plausible(self, node: ir.Node) -> Sequence[Rule]:
        """Return those that may match, from the operators of the node's inputs: a table of the few that occur."""
        inputs = heads(node)
        key = ((node.domain, node.op_type), *inputs)
        known = self._plausible.get(key)
        if known is None:
            known = self._plausible[key] = [rule for rule in self.of(node) if plausible(rule, inputs)]
        return known


class _Budget:
    """Notices rules that do not settle."""

    def __init__(self) -> None:
        self.nodes = 0
        """How many there were at first."""
        self.rewrites = 0
        self.generation: dict[ir.Node, int] = {}
        """How many rewrites lead to a node. Moving an operator along n others takes n, so that is not too many."""
        self.recent: deque[str] = deque(maxlen=8)

    def spend(self, rule: Rule, match: Match, made: Sequence[ir.Node]) -> None:
        """Count a rewrite. Raises InfconvError when there were too many."""
        self.rewrites += 1
        self.recent.append(rule.name)
        generation = 1 + max(self.generation.get(node, 0) for node in match.nodes)
        self.generation.update(dict.fromkeys(made, generation))
        if generation > 2 * self.nodes + 100 or self.rewrites > 20 * self.nodes + 1000:
            names = " and ".join(f"'{name}'" for name in sorted(set(self.recent)))
            raise InfconvError(
                f"Rewriting by {names} does not settle: there is still work at '{label(match.root)}' "
                f"after {self.rewrites} rewrites of {self.nodes} nodes.",
                "This is a defect of the pass that has this rule: leave the pass out, and report it.",
            )


class _GraphOutputs:
    """Where values are in the outputs of their graphs; looking that up in the list is too slow for long lists."""

    def __init__(self) -> None:
        self._positions: dict[ir.Graph, dict[ir.Value, list[int]]] = {}

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        graph = cast(ir.Graph, old.graph)
        if graph not in self._positions:
            found = self._positions[graph] = {}
            for i, value in enumerate(graph.outputs):
                found.setdefault(value, []).append(i)
        positions = self._positions[graph]
        positions[new] = positions.pop(old)
        for i in positions[new]:
            graph.outputs[i] = new


class _Order:
    """The order of nodes, known only once it is needed, for replacements that have users before the root."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._owners: dict[ir.Graph, ir.Node] = {}
        self._index: dict[ir.Node, int] = {}

    def place(self, match: Match, results: Sequence[ir.Value | None], op: Builder) -> ir.Node:
        """Return the node before which the replacement goes: the root, or an earlier user of an inner output.

        Raises Refuse when the replacement needs values that are only computed after that user.
        """
        inner = [value for value in match.outputs[1:] if value.producer() is not match.root]
        if not inner:
            return match.root
        self._number()
        users = [self._lift(user, op.graph) for value in inner for user in value.consumers() if user not in match.nodes]
        first = min([match.root, *users], key=self._index.__getitem__)
        needed = [value for node in op.nodes for value in node.inputs] + list(results)
        for value in needed if first is not match.root else ():
            producer = None if value is None else value.producer()
            if producer is None or producer in op.nodes or producer.graph is not op.graph:
                continue
            if self._index[producer] >= self._index[first]:
                raise Refuse(f"{label(producer)} comes after {label(first)}, which uses an inner value")
        return first

    def add(self, nodes: Sequence[ir.Node], before: ir.Node) -> None:
        """Note that `nodes` were inserted before `before`."""
        if self._index:
            # Sharing a number may only make place() refuse.
            self._index.update(dict.fromkeys(nodes, self._index[before]))

    def _number(self) -> None:
        if not self._index:
            nodes = list(all_nodes(self._graph))
            self._index = {node: i for i, node in enumerate(nodes)}
            self._owners = {inner: node for node in nodes for inner in subgraphs(node)}

    def _lift(self, user: ir.Node, graph: ir.Graph) -> ir.Node:
        """Return the node of `graph` that `user` is in the subgraphs of, or `user` itself."""
        while user.graph is not graph:
            user = self._owners[cast(ir.Graph, user.graph)]
        return user
