"""Find out whether a rule applies at a node, and if not, why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._match import Match, Refusal, Scope, head, heads, label, opset_refusal
from infconv.passes._pattern import (
    COMMUTATIVE,
    MISSING,
    Absent,
    AnyOf,
    AttributePattern,
    Call,
    CompiledPattern,
    Const,
    Literal,
    Maybe,
    OpKey,
    Out,
    Pattern,
    Refuse,
    Rest,
    Rule,
    Shared,
    Var,
    first_input,
)

_BROADCASTING = COMMUTATIVE | {
    "Sub", "Div", "Pow", "Mod", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Where", "PRelu", "BitShift",
}  # fmt: skip

Goals: TypeAlias = "tuple[Pattern, ir.Value | None, Goals] | None"
"""What is left to match, as a linked list: alternatives share their tails."""
Heads: TypeAlias = "frozenset[OpKey | None] | None"
"""The operators that a value may come from; None: any."""
_NONE: tuple[Goals, ...] = ()


def find(rule: Rule, root: ir.Node, scope: Scope) -> Match | Refusal | None:
    """Match `rule` at `root`. When it does not match, return why if `scope.explain`, else None."""
    if not scope.explain and not _numbers_fit(rule.pattern, root):
        return None
    attempt = _Attempt(rule, root, scope)
    if attempt.solve((rule.pattern.roots[0], root.outputs[0], None)) or not scope.explain:
        return attempt.found
    return Refusal(rule.name, label(root), attempt.reason, attempt.deepest)


def _numbers_fit(pattern: CompiledPattern, root: ir.Node) -> bool:
    """Whether the inputs of `root` have the numbers that the pattern has there: most attempts end here."""
    for index, literal in pattern.numbers:
        inputs = root.inputs if index is None else root.inputs[index : index + 1]
        found = [tensor for value in inputs if (tensor := _values.tensor(value)) is not None]
        if not any(_values.equals(tensor, literal.value, literal.rtol, literal.uniform) for tensor in found):
            return False
    return True


def _show(thing: object) -> str:
    """Return how to speak of `thing` in a reason."""
    match thing:
        case None:
            return "nothing"
        case ir.Value():
            number = _values.scalar(thing)
            return f"'{thing.name}'" if number is None else f"'{thing.name}' ({number:g})"
        case ir.Node():
            return f"{thing.op_type} '{label(thing)}'"
        case Call():
            return thing.operators
        case _:
            return str(thing)


class _Attempt:
    """One search: depth first through the pattern, back to the last alternative on failure.

    `bound` is the state: patterns, calls and variables to what they stand for. It only grows, and it keeps the order,
    so that going back is removing its last items.
    """

    __slots__ = ("bound", "deepest", "found", "graph", "reason", "root", "rule", "scope")

    def __init__(self, rule: Rule, root: ir.Node, scope: Scope) -> None:
        self.rule = rule
        self.root = root
        self.graph = root.graph
        self.scope = scope
        self.bound: dict[Pattern | Call, Any] = {}
        self.found: Match | None = None
        self.reason = ""
        self.deepest = -1

    def fail(self, reason: str, *about: object) -> tuple[Goals, ...]:
        """Note the reason if nothing got further yet; return the empty list of alternatives.

        `about` fills the {} of `reason`, only if somebody wants to know.
        """
        if self.scope.explain and len(self.bound) > self.deepest:
            self.deepest = len(self.bound)
            self.reason = reason.format(*map(_show, about))
        return _NONE

    def solve(self, goals: Goals) -> bool:
        """Match all of `goals` and then the rest of the rule's conditions."""
        bound = self.bound
        while goals is not None:
            pattern, value, rest = goals
            known = bound.get(pattern, MISSING)
            if known is not MISSING:
                if known is not value:
                    self.fail("{} is not {}, which the rule has there", value, known)
                    return False
                goals = rest
                continue
            alternatives = _STEPS[type(pattern)](self, pattern, value, rest)
            if len(alternatives) != 1:
                return self.solve_any(alternatives)
            goals = alternatives[0]
        return self.accept()

    def solve_any(self, alternatives: Sequence[Goals]) -> bool:
        """Try `alternatives` in order, each from the same state."""
        mark = len(self.bound)
        for goals in alternatives:
            if self.solve(goals):
                return True
            while len(self.bound) > mark:
                self.bound.popitem()
        return False

    # --- one step for each kind of pattern: bind, and return the alternatives of how to go on ----------------------

    def var(self, pattern: Var, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        if value is None:
            return self.fail("the input '{}' is missing", pattern)
        self.bound[pattern] = value
        return (rest,)

    def const(self, pattern: Const, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        if _values.tensor(value) is None:
            return self.fail("{} is not a constant", value)
        self.bound[pattern] = value
        return ((pattern.var, value, rest),)

    def literal(self, pattern: Literal, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        found = _values.tensor(value)
        if found is None:
            return self.fail("{} is not a constant; the rule needs {}", value, pattern)
        if not _values.equals(found, pattern.value, pattern.rtol, pattern.uniform):
            return self.fail("{} is not {}", value, pattern)
        self.bound[pattern] = value
        return (rest,)

    def absent(self, pattern: Absent, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        return (rest,) if value is None else self.fail("the rule has no input for {}", value)

    def maybe(self, pattern: Maybe, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        self.bound[pattern] = value
        within = first_input(pattern.inner)
        if within is not None:
            return ((pattern.inner, value, rest), (within, value, rest))
        if value is not None:
            return ((pattern.inner, value, rest),)
        var = pattern.inner.var if isinstance(pattern.inner, Const) else pattern.inner
        known = self.bound.setdefault(var, None)
        return (rest,) if known is None else self.fail("there is no input where the rule has {}", known)

    def any_of(self, pattern: AnyOf, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        self.bound[pattern] = value
        options = zip(pattern.options, pattern.heads, strict=True)
        key = head(value)
        return [(option, value, rest) for option, heads in options if self.admits(heads, key)]

    def admits(self, heads: Heads, key: OpKey | None) -> bool:
        """Whether a value from the operator `key` is worth a try; to explain, all are."""
        return heads is None or key in heads or self.scope.explain

    def shared(self, pattern: Shared, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        self.bound[pattern] = value
        return ((pattern.inner, value, rest),)

    def out(self, pattern: Out, value: ir.Value | None, rest: Goals) -> Sequence[Goals]:
        call = pattern.call
        node = None if value is None else value.producer()
        if value is None or node is None:
            return self.fail("{} is not computed; the rule needs {}", value, call)
        if call.ops and (node.domain, node.op_type) not in call.ops:
            return self.fail("{} comes from {}; the rule needs {}", value, node, call)
        if node.graph is not self.graph:
            return self.fail("{} is computed outside of the subgraph of {}", value, self.root)
        if value.index() != pattern.index:
            return self.fail("{} is not output {} of {}", value, pattern.index, node)
        self.bound[pattern] = value
        if call in self.bound:
            return (rest,) if self.bound[call] is node else self.fail("{} is another node than {}", node, self.root)
        return self.call(call, node, rest)

    # --- nodes -----------------------------------------------------------------------------------------------------

    def call(self, call: Call, node: ir.Node, rest: Goals) -> Sequence[Goals]:
        if len(node.outputs) < call.outputs:
            return self.fail("{} has only {} outputs", node, len(node.outputs))
        if call.some and call.some.isdisjoint(heads(node)):
            return self.fail("no input of {} comes from " + "|".join(sorted(key[1] for key in call.some if key)), node)
        if not self.attributes(call, node):
            return _NONE
        self.bound[call] = node
        if call.node is not None:
            self.bound[call.node] = node
        return self.inputs(call, node, rest)

    def inputs(self, call: Call, node: ir.Node, rest: Goals) -> Sequence[Goals]:
        patterns, values = call.inputs, node.inputs
        if patterns and isinstance(patterns[-1], Rest):
            patterns = patterns[:-1]
            if not self.rest(patterns, call.inputs[-1], values):
                return _NONE
        elif any(value is not None for value in values[len(patterns) :]):
            return self.fail("{} has {} inputs, the rule {}", node, len(values), len(patterns))
        if call.commutative and len(values) == 2 and len(patterns) == 2:
            return self.either_way(call, values, rest)
        for i in reversed(range(len(patterns))):
            rest = (patterns[i], values[i] if i < len(values) else None, rest)
        return (rest,)

    def either_way(self, call: Call, values: Sequence[ir.Value | None], rest: Goals) -> Sequence[Goals]:
        """Return the ways to match two operands in either order."""
        (p, q), (p_heads, q_heads), (a, b) = call.inputs, call.heads, values
        a_key, b_key = head(a), head(b)
        ways: list[Goals] = []
        if self.admits(p_heads, a_key) and self.admits(q_heads, b_key):
            ways.append((p, a, (q, b, rest)))
        if a is not b and self.admits(p_heads, b_key) and self.admits(q_heads, a_key):
            ways.append((p, b, (q, a, rest)))
        return ways

    def rest(self, before: Sequence[Pattern], pattern: Pattern, values: Sequence[ir.Value | None]) -> bool:
        var = cast(Rest, pattern).var
        remaining = tuple(values[len(before) :])
        if self.bound.setdefault(var, remaining) == remaining:
            return True
        self.fail("the inputs '{}' differ", var)
        return False

    def attributes(self, call: Call, node: ir.Node) -> bool:
        present = node.attributes.data
        if not present and not call.attributes and call.others is None:
            return True
        version = self.scope.imports.get(node.domain, self.scope.opset)
        defaults = _values.schema_defaults(node.domain, node.op_type, version)
        for name, wanted in call.attributes.items():
            if not self.attribute(name, wanted, present.get(name), defaults.get(name), node):
                return False
        others = {name: a for name, a in present.items() if name not in call.attributes}
        if isinstance(call.others, Var):
            self.bound[call.others] = others
        elif call.others is None:
            for name, found in others.items():
                if found.is_ref() or name not in defaults or not _same(found.value, defaults[name]):
                    self.fail("{} has {}={}, which the rule does not mention", node, name, found)
                    return False
        return True

    def attribute(
        self, name: str, wanted: AttributePattern, found: ir.Attr | None, default: Any, node: ir.Node
    ) -> bool:
        if found is not None and found.is_ref():
            self.fail("{} of {} is an attribute of the function", name, node)
            return False
        value = default if found is None else found.value
        if wanted.value is not MISSING and not _same(value, wanted.value):
            self.fail("{} has {}={}; the rule needs {}", node, name, value, wanted.value)
            return False
        if wanted.test is not None and not wanted.test(value):
            self.fail("{} has {}={}, which the rule does not take", node, name, value)
            return False
        if wanted.var is not None and self.bound.setdefault(wanted.var, value) != value:
            self.fail("{} has {}={}; the rule needs {}", node, name, value, self.bound[wanted.var])
            return False
        return True

    # --- conditions on the match as a whole ------------------------------------------------------------------------

    def accept(self) -> bool:
        """Check what a complete match must satisfy; set `found`."""
        nodes = tuple(dict.fromkeys(self.bound[key] for key in self.bound if isinstance(key, Call)))
        outputs = self.outputs()
        if outputs is None or not (
            self.opset_fits()
            and self.unused_outside(nodes, outputs)
            and self.literals_keep_shapes(nodes)
            and self.no_functions(nodes)
        ):
            return False
        pattern = self.rule.pattern
        bindings = {name: self.bound.get(var) for name, var in pattern.variables.items()}
        match = Match(self.root, nodes, outputs, bindings, self.scope.opset)
        reason = _refusal(self.rule, match)
        if reason is not None:
            self.fail("{}", reason)
            return False
        self.found = match
        return True

    def outputs(self) -> tuple[ir.Value, ...] | None:
        """Return the values to be replaced."""
        values = [self.root.outputs[0]]
        for pattern in self.rule.pattern.roots[1:]:
            out = cast(Out, pattern)
            node = self.bound.get(out.call)
            if node is None:
                self.fail("the alternative that matched does not compute {}", out)
                return None
            values.append(node.outputs[out.index])
        return tuple(values)

    def opset_fits(self) -> bool:
        reason = opset_refusal(self.rule, self.scope.opset)
        if reason:
            self.fail("{}", reason)
        return not reason

    def unused_outside(self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> bool:
        """Whether inner values have no users besides the match: the rewrite would compute them twice."""
        exempt = [*outputs, *(self.bound.get(pattern) for pattern in self.rule.pattern.shared)]
        for node in nodes:
            for value in node.outputs:
                if any(value is other for other in exempt):
                    continue
                if value.is_graph_output():
                    self.fail("inner value {} is an output of the graph", value)
                    return False
                users = _values.use_count(value)
                if users and users > sum(i is value for user in nodes for i in user.inputs):
                    self.fail("inner value {} has {} user{}", value, users, "s" * (users > 1))
                    return False
        return True

    def literals_keep_shapes(self, nodes: Sequence[ir.Node]) -> bool:
        """Whether no literal is a tensor whose shape would show in the result, as in x[2] * [[0.5]]."""
        for pattern in self.rule.pattern.literals:
            value = self.bound.get(pattern)
            if value is None or pattern.value.ndim or _values.rank(value) == 0:
                continue
            for node in nodes:
                others = [i for i in node.inputs if i is not value]
                if len(others) == len(node.inputs) or node.op_type not in _BROADCASTING:
                    continue
                if not any(_values.fits_inside(value, other) for other in others):
                    self.fail("{} may broadcast the result to another shape", value)
                    return False
        return True

    def no_functions(self, nodes: Sequence[ir.Node]) -> bool:
        """Whether no matched operator is redefined by the model."""
        if not self.scope.functions:
            return True
        for node in nodes:
            if node.op_identifier() in self.scope.functions:
                self.fail("{} is a function of the model", node)
                return False
        return True


_STEPS: dict[type[Pattern], Callable[[_Attempt, Any, ir.Value | None, Goals], Sequence[Goals]]] = {
    Var: _Attempt.var,
    Const: _Attempt.const,
    Literal: _Attempt.literal,
    Absent: _Attempt.absent,
    Maybe: _Attempt.maybe,
    AnyOf: _Attempt.any_of,
    Shared: _Attempt.shared,
    Out: _Attempt.out,
}


def _refusal(rule: Rule, match: Match) -> str | None:
    """Return why the rule's condition does not hold."""
    try:
        return rule.when(match) if rule.when is not None else None
    except Refuse as refusal:
        return str(refusal)


def _same(found: Any, wanted: Any) -> bool:
    """Whether an attribute's value is the wanted one; floats are stored in 32 bits."""
    if isinstance(found, float) and isinstance(wanted, int | float):
        return abs(found - wanted) <= 1e-6 * abs(wanted)
    if isinstance(found, Sequence) and isinstance(wanted, Sequence) and not isinstance(found, str):
        found, wanted = cast(Sequence[Any], found), cast(Sequence[Any], wanted)
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return found == wanted
