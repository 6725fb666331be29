"""The language of rewrites: a rule, and the patterns that it is written in.

A pattern is written as operator calls on variables. In

    lambda op, x, w, axis: op.Softmax(op.Add(x, op.const(w)), axis=axis)

`x` stands for any value, `w` for any constant, `axis` for the attribute's value. The language:

    x twice                     both are the same value
    0.5, 2, np.array([0, 1])    a constant of that value; a number also stands for a tensor that is full of it
    op.const(w)                 any constant
    op.optional(x)              an input that may be absent (then x is None)
    op.optional(op.Cast(x))     an operator that may be absent (then its first input stands there)
    op.any_of(a, b)             one of several patterns, tried in order
    op.any("Relu", "Clip")(x)   one of several operators; op.any()(x) is any operator
    op.rest(xs)                 all remaining inputs, as a tuple
    op.shared(op.Exp(x))        an inner operator whose value may have other users: it stays for them
    None                        an absent input or attribute
    axis=-1, perm=[0, 2, 1]     an attribute of that value
    axis=axis                   any value, bound; None when absent and without default
    axis=lambda a: a < 0        any value that satisfies the predicate
    axis=op.attr(axis, test)    both

An absent attribute has the default of the operator's schema. An attribute that is not mentioned must have its default,
unless `_attrs=...` allows any, or `_attrs=attrs` binds those not mentioned. `_domain="com.microsoft"` selects another
operator set, `_node=n` binds the node, `_outputs=2` returns a tuple of two outputs, `_some=("Expand",)` wants at least
one input to come from such an operator, which the matcher sees at a glance. The operands of Add, Mul and the other
commutative operators match in either order. An operator stands for one whose further outputs are unused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:
    from infconv.passes._match import Match

OpKey: TypeAlias = tuple[str, str]
"""Domain and operator type; the standard domain is the empty string."""

# pyright knows the types of a lambda's parameters only from a Callable with as many.
_1 = Callable[[Any], Any] | Callable[[Any, Any], Any] | Callable[[Any, Any, Any], Any]
_2 = Callable[[Any, Any, Any, Any], Any] | Callable[[Any, Any, Any, Any, Any], Any]
_3 = Callable[[Any, Any, Any, Any, Any, Any], Any] | Callable[[Any, Any, Any, Any, Any, Any, Any], Any]
_4 = (
    Callable[[Any, Any, Any, Any, Any, Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any, Any, Any, Any, Any, Any], Any]
)
Function: TypeAlias = _1 | _2 | _3 | _4

_CONSTANT: frozenset[OpKey | None] = frozenset({None, ("", "Constant")})
COMMUTATIVE = frozenset({
    "Add", "Mul", "Max", "Min", "Sum", "Mean", "Equal", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A row of a rewriting pass: what to look for, what to put there, and when not to.

    `match(op, x, ...)` is called once and returns the pattern; the names of its parameters are the variables. A tuple
    is a pattern of several outputs: the first is the root, the others are values inside the pattern that have users
    elsewhere. `build(op, x, ...)` is called for each match with the variables that it names (and the Match itself,
    should a parameter be called `match`), creates nodes by calling operators, and returns the replacement: a new value
    or one of the variables, a tuple for several outputs. It declines by returning None or raising Refuse(reason).
    Parameters with a default are left alone in both. `when(match)` returns None to go on, or the reason not to.

    The standard operator set must be at least `since_opset` and below `before_opset`.
    """

    match: Function
    build: Function
    when: Callable[[Match], str | None] | None = None
    since_opset: int = 1
    before_opset: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        known = {*_parameters(self.match), "match"}
        if unknown := [name for name in self.build_parameters if name not in known]:
            raise ValueError(f"rule {self.name}: build asks for {unknown}, which match does not have")
        if not self.name:
            object.__setattr__(self, "name", str(self.pattern.roots[0]))

    @cached_property
    def pattern(self) -> CompiledPattern:
        """The pattern that `match` describes, compiled when it is first needed."""
        return compile_pattern(self.match)

    @cached_property
    def build_parameters(self) -> tuple[str, ...]:
        """The names that `build` asks for."""
        return _parameters(self.build)


class Refuse(Exception):
    """Raised by `build` to decline a match; the argument is the reason."""


# --- patterns ------------------------------------------------------------------------------------------------------


class Pattern:
    """Something that a value may match. Patterns are compared by identity: the same object is the same value."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Var(Pattern):
    """Any value that is present."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Const(Pattern):
    """Any constant."""

    var: Var

    def __str__(self) -> str:
        return self.var.name


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Literal(Pattern):
    """A constant of this value, within a relative tolerance; never less than the rounding of the constant's type."""

    value: np.ndarray
    rtol: float
    uniform: bool
    """Whether a tensor full of the number (`value` is 0-d) will do, where broadcasting it changes no shape."""

    def __str__(self) -> str:
        return f"{self.value.item():g}" if self.value.ndim == 0 else str(self.value.tolist())


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Out(Pattern):
    """An output of an operator."""

    call: Call
    index: int

    def __str__(self) -> str:
        return str(self.call)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Maybe(Pattern):
    """A value that may be absent, or the value of an operator that may be absent."""

    inner: Pattern

    def __str__(self) -> str:
        return f"{self.inner}?"


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class AnyOf(Pattern):
    """One of several patterns."""

    options: tuple[Pattern, ...]
    heads: tuple[frozenset[OpKey | None] | None, ...]
    """The operators that each option may come from; None among them: no operator. None: anything."""

    def __str__(self) -> str:
        return " | ".join(map(str, self.options))


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Shared(Pattern):
    """An inner value that may have users outside of the match."""

    inner: Pattern

    def __str__(self) -> str:
        return str(self.inner)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Rest(Pattern):
    """All remaining inputs of an operator."""

    var: Var

    def __str__(self) -> str:
        return f"*{self.var.name}"


class Absent(Pattern):
    """An input that is absent."""

    __slots__ = ()

    def __str__(self) -> str:
        return "None"


@dataclasses.dataclass(frozen=True, slots=True)
class AttributePattern:
    """What an attribute must be: `value` (unless that is MISSING), and true for `test`; it is bound to `var`."""

    value: Any
    test: Callable[[Any], bool] | None
    var: Var | None


MISSING: Any = object()


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Call:
    """An operator call."""

    ops: frozenset[OpKey]
    """The operators that it may be; empty: any."""
    inputs: tuple[Pattern, ...]
    attributes: dict[str, AttributePattern]
    others: Var | EllipsisType | None
    """Attributes that are not mentioned: bound to the variable, ignored (...), or asked to be the default (None)."""
    outputs: int
    node: Var | None
    commutative: bool
    heads: tuple[frozenset[OpKey | None] | None, ...]
    """The operators that each input may come from; None among them: no operator. None: anything."""
    some: frozenset[OpKey | None]
    """At least one input comes from one of these operators; empty: from anything."""

    @property
    def operators(self) -> str:
        """The names of the operators, to be shown."""
        return "|".join(sorted(name for _, name in self.ops)) or "any"

    def __str__(self) -> str:
        return f"{self.operators}({', '.join(map(str, self.inputs))})"


# --- writing patterns ----------------------------------------------------------------------------------------------


class PatternBuilder:
    """The `op` of `Rule.match`: see the module's documentation."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.any(name)

    def any(self, *names: str) -> Callable[..., Any]:
        """Return a call of one of the operators `names`, or of any operator when there are none."""

        def call(
            *inputs: Any,
            _domain: str = "",
            _outputs: int = 1,
            _attrs: Var | EllipsisType | None = None,
            _node: Var | None = None,
            _some: Sequence[str] = (),
            **attributes: Any,
        ) -> Any:
            patterns = tuple(_as_pattern(i) for i in inputs)
            made = Call(
                ops=frozenset((_domain, name) for name in names),
                inputs=patterns,
                attributes={name: _as_attribute(value) for name, value in attributes.items()},
                others=_attrs,
                outputs=_outputs,
                node=_node,
                commutative=not _domain and len(inputs) == 2 and bool(names) and COMMUTATIVE.issuperset(names),
                heads=tuple(_heads(pattern) for pattern in patterns),
                some=frozenset(("", name) for name in _some),
            )
            if any(isinstance(i, Rest) for i in made.inputs[:-1]):
                raise ValueError(f"{made}: op.rest must be the last input")
            outs = tuple(Out(made, i) for i in range(_outputs))
            return outs[0] if _outputs == 1 else outs

        return call

    def const(self, var: Var) -> Const:
        """Return the pattern of any constant."""
        return Const(var)

    def literal(self, value: Any, rtol: float = 1e-5, uniform: bool = True) -> Literal:
        """Return the pattern of a constant: as a plain number or array, but with a tolerance of its own."""
        return Literal(np.asarray(value), rtol, uniform)

    def optional(self, inner: Any) -> Maybe:
        """Return the pattern of an input that may be absent, or of an operator that may be."""
        return Maybe(_as_pattern(inner))

    def any_of(self, *options: Any) -> AnyOf:
        """Return the pattern of one of `options`. A variable that only others have is None."""
        patterns = tuple(_as_pattern(option) for option in options)
        return AnyOf(patterns, tuple(map(_heads, patterns)))

    def shared(self, inner: Any) -> Shared:
        """Return the pattern `inner` of an operator whose value may have other users."""
        return Shared(_as_pattern(inner))

    def rest(self, var: Var) -> Rest:
        """Return the pattern of all remaining inputs, at least none."""
        return Rest(var)

    def attr(self, var: Var | None = None, test: Callable[[Any], bool] | None = None) -> AttributePattern:
        """Return the pattern of an attribute whose value satisfies `test` and is bound to `var`."""
        return AttributePattern(MISSING, test, var)


def _as_pattern(value: Any) -> Pattern:
    if isinstance(value, Pattern):
        return value
    if value is None:
        return Absent()
    if isinstance(value, bool | int | float | np.ndarray | np.generic | list | tuple):
        return Literal(np.asarray(value), 1e-5, True)
    raise TypeError(f"{value!r} is not a pattern")


def _heads(pattern: Pattern) -> frozenset[OpKey | None] | None:
    """Return the operators that a value that matches `pattern` may come from."""
    match pattern:
        case Out():
            return pattern.call.ops or None
        case Shared():
            return _heads(pattern.inner)
        case AnyOf():
            known = [heads for heads in pattern.heads if heads is not None]
            return frozenset[OpKey | None]().union(*known) if len(known) == len(pattern.heads) else None
        case Const() | Literal():
            return _CONSTANT
        case _:
            return None


def _as_attribute(value: Any) -> AttributePattern:
    if isinstance(value, AttributePattern):
        return value
    if isinstance(value, Var):
        return AttributePattern(MISSING, None, value)
    if callable(value):
        return AttributePattern(MISSING, cast("Callable[[Any], bool]", value), None)
    if isinstance(value, list):
        value = tuple(cast("list[Any]", value))
    return AttributePattern(value, None, None)


# --- compiled patterns ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledPattern:
    """A pattern with what the matcher wants to know about it beforehand."""

    roots: tuple[Pattern, ...]
    variables: dict[str, Var]
    root_calls: tuple[Call, ...]
    """The calls that the root may be: one, unless the root is `any_of`."""
    depth: int
    """The longest chain of calls."""
    size: int
    """How many patterns and calls it consists of."""
    shared: tuple[Shared, ...]
    literals: tuple[Literal, ...]
    numbers: tuple[tuple[int | None, Literal], ...]
    """Numbers among the inputs of the root, each with its position; None where operands may swap."""


def compile_pattern(match: Function) -> CompiledPattern:
    """Call `match` with one variable for each of its parameters and return the pattern. Raises ValueError."""
    variables = {name: Var(name) for name in _parameters(match)}
    result = cast("Callable[..., Any]", match)(PatternBuilder(), *variables.values())
    roots = tuple(_as_pattern(r) for r in cast("Sequence[Any]", result if isinstance(result, tuple) else (result,)))
    inside = _inside(roots[0])
    calls = dict.fromkeys(p.call for p in inside if isinstance(p, Out))
    for root in roots[1:]:
        if not isinstance(root, Out) or root.call not in calls:
            raise ValueError(f"output {root} of the pattern is not inside {roots[0]}")
    root_calls = tuple(_root_calls(roots[0]))
    return CompiledPattern(
        roots=roots,
        variables=variables,
        root_calls=root_calls,
        depth=_depth(roots[0], inside),
        size=len(inside) + len(calls),
        shared=tuple(p for p in inside if isinstance(p, Shared)),
        literals=tuple(p for p in inside if isinstance(p, Literal)),
        numbers=_root_numbers(root_calls[0]) if len(root_calls) == 1 else (),
    )


def _root_numbers(call: Call) -> tuple[tuple[int | None, Literal], ...]:
    return tuple(
        (None if call.commutative else index, pattern)
        for index, pattern in enumerate(call.inputs)
        if isinstance(pattern, Literal)
    )


def _parameters(function: Function) -> tuple[str, ...]:
    """Return the parameters of `function` that have no default, without the first, which is `op`."""
    code, defaults = function.__code__, function.__defaults__ or ()  # inspect.signature takes 20 times as long
    return code.co_varnames[1 : code.co_argcount - len(defaults)]


def children(pattern: Pattern) -> tuple[Pattern, ...]:
    """Return the patterns directly inside `pattern`."""
    if isinstance(pattern, Out):
        return pattern.call.inputs
    if isinstance(pattern, Maybe | Shared):
        return (pattern.inner,)
    return pattern.options if isinstance(pattern, AnyOf) else ()


def may_match(pattern: Pattern, operators: Collection[OpKey]) -> bool:
    """Whether a model of these operators has those that `pattern` cannot do without."""
    match pattern:
        case Out():
            call = pattern.call
            present = not call.ops or any(key in operators for key in call.ops)
            return present and all(may_match(child, operators) for child in call.inputs)
        case Shared():
            return may_match(pattern.inner, operators)
        case AnyOf():
            return any(may_match(option, operators) for option in pattern.options)
        case _:
            return True


def first_input(pattern: Pattern) -> Pattern | None:
    """Return what stands in for an operator that is absent: its first input. None when `pattern` is no operator."""
    match pattern:
        case Out():
            return pattern.call.inputs[0]
        case Shared():
            return first_input(pattern.inner)
        case AnyOf():
            return first_input(pattern.options[0])
        case _:
            return None


def _inside(root: Pattern) -> dict[Pattern, tuple[Pattern, ...]]:
    """Return every pattern below `root`, and `root` itself, with the patterns directly inside it."""
    found: dict[Pattern, tuple[Pattern, ...]] = {}
    waiting = [root]
    for pattern in waiting:  # grows while it is walked
        if pattern not in found:
            found[pattern] = children(pattern)
            waiting.extend(found[pattern])
    return found


def _depth(root: Pattern, inside: Mapping[Pattern, tuple[Pattern, ...]]) -> int:
    """Return the longest chain of calls below `root`; each pattern is looked at once, however often it occurs."""
    known: dict[Pattern, int] = {}

    def depth(pattern: Pattern) -> int:
        if pattern not in known:
            below = max(map(depth, inside[pattern]), default=0)
            known[pattern] = below + isinstance(pattern, Out)
        return known[pattern]

    return depth(root)


def _root_calls(root: Pattern) -> Iterator[Call]:
    if isinstance(root, AnyOf):
        for option in root.options:
            yield from _root_calls(option)
    elif isinstance(root, Out) and root.index == 0:
        yield root.call
    else:
        raise ValueError(f"{root} cannot be the root of a pattern: it must be an operator's first output, or any_of")
