"""Arithmetic on dimensions that may be symbolic.

A dimension is an `int` or an `Expr`: a polynomial with integer coefficients over *atoms*. An atom is a named dimension
(`batch`), a nameless one, or an opaque term such as `(seq//2)`. Polynomials are kept canonical, so that equality is
structural: `Expr("b") * 2 + 1 == 1 + Expr("b") + Expr("b")`. (sympy does more, and takes 0.35 s to import.)
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple, TypeAlias, Union

_MAX_TERMS = 16
_MAX_DEGREE = 8
_MAX_TEXT = 160
_PLACEHOLDERS = frozenset({"", "?", "*", "-1", "None", "unknown", "dynamic"})
"""What exporters write for "no idea": the same text twice does not mean the same size."""

_counter = itertools.count()


class Atom(NamedTuple):
    """An indivisible term. Nameless ones have a '#' in their text, which no dimension of a model may have."""

    text: str
    natural: bool = True
    """Cannot be negative."""
    known: bool = True
    """Follows from the sizes of the model's inputs; otherwise it stands for something that was not understood."""


Monomial: TypeAlias = tuple[Atom, ...]


class Expr:
    """An immutable polynomial; never a plain number (those are `int`)."""

    __slots__ = ("_hash", "_text", "known", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self.known = all(atom.known for monomial, _ in terms for atom in monomial)
        """Whether it follows from the sizes of the model's inputs."""
        self._hash = hash(terms)
        self._text = ""
        """What it is written as, once somebody asked."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        return _build([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _build([(monomial, -factor) for monomial, factor in self.terms])

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        return _build([(tuple(sorted(m + n)), a * b) for m, a in self.terms for n, b in _terms(other)])

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_div(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floor_div(other, self)

    def __str__(self) -> str:
        """Return e.g. `2*batch*seq + 1`: the highest degree first, then alphabetical, the constant last."""
        if not self._text:
            self._text = self._written()
        return self._text

    def _written(self) -> str:
        ordered = sorted(self.terms, key=lambda term: (-len(term[0]), term[0]))
        text = ""
        for monomial, factor in ordered:
            size = abs(factor)
            parts = [str(size)] if size != 1 or not monomial else []
            joint = "-" if factor < 0 else "+"
            text += f" {joint} " if text else joint.replace("+", "")
            text += "*".join(parts + [atom.text for atom in monomial])
        return text

    __repr__ = __str__


Dim: TypeAlias = Union[int, Expr]  # noqa: UP007  (Expr is used before it is complete)
Dims: TypeAlias = tuple[Dim, ...]


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Expr) else (((), int(dim)),)


def _build(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    """Return the canonical sum of `terms`; an unknown when it is too large to be worth following."""
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        total[monomial] = total.get(monomial, 0) + factor
    kept = sorted((monomial, factor) for monomial, factor in total.items() if factor)
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    if len(kept) > _MAX_TERMS or any(len(monomial) > _MAX_DEGREE for monomial, _ in kept):
        return unknown(natural=False)
    return Expr(tuple(kept))


def symbol(name: str, *, known: bool = True) -> Expr:
    """Return the dimension called `name`."""
    return Expr((((Atom(name, True, known),), 1),))


def unknown(*, natural: bool = True) -> Expr:
    """Return a new number of which nothing is known, except perhaps that it is not negative."""
    return Expr((((Atom(f"#{next(_counter)}", natural, False),), 1),))


def is_known(dim: Dim) -> bool:
    """Return whether `dim` follows from the sizes of the model's inputs."""
    return isinstance(dim, int) or dim.known


def is_natural(dim: Dim) -> bool:
    """Return whether `dim` is provably >= 0."""
    if isinstance(dim, int):
        return dim >= 0
    return all(factor >= 0 and all(atom.natural for atom in monomial) for monomial, factor in dim.terms)


def is_positive(dim: Dim) -> bool:
    """Return whether `dim` is provably >= 1. A lone symbol is not: a batch may be empty."""
    if isinstance(dim, int):
        return dim > 0
    return dim.terms[0][0] == () and is_natural(dim)


def equal(a: Dim, b: Dim) -> bool | None:
    """Return whether a == b for every (True) or no (False) size; None when it depends or is not known."""
    if a == b:
        return True
    difference = a - b
    if isinstance(difference, int):
        return difference == 0
    return False if is_positive(difference) or is_positive(-difference) else None


def less(a: Dim, b: Dim) -> bool | None:
    """Return whether a < b for every (True) or no (False) size; None when it depends or is not known."""
    if is_positive(b - a):
        return True
    return False if is_natural(a - b) else None


def _call(text: str, a: Dim, b: Dim, *, natural: bool) -> Expr:
    """Return an opaque term of `a` and `b`, e.g. `(seq//2)`."""
    if len(text) > _MAX_TEXT:
        return unknown(natural=natural)
    return Expr((((Atom(text, natural, is_known(a) and is_known(b)),), 1),))


def floor_div(a: Dim, b: Dim) -> Dim:
    """Return floor(a / b); b is nonzero whenever the model runs at all."""
    if b == 0:
        return unknown(natural=False)
    if b == 1:
        return a
    if isinstance(b, Expr):
        exact = _exact_quotient(a, b)
        return _opaque_quotient(a, b) if exact is None else exact
    if isinstance(a, int):
        return a // b
    if b < 0:
        return floor_div(-a, -b)
    # floor((b*q + r) / b) == q + floor(r / b): leaves 0 <= coefficients < b, e.g. (s-1)//2 + 1 == (s+1)//2
    whole = _build([(monomial, factor // b) for monomial, factor in a.terms])
    rest = _build([(monomial, factor % b) for monomial, factor in a.terms])
    if isinstance(rest, int):
        return whole + rest // b
    divisor = math.gcd(b, *(factor for monomial, factor in rest.terms if monomial))
    reduced = _build([(monomial, factor // divisor) for monomial, factor in rest.terms])
    if b == divisor:
        return whole + reduced
    return whole + _opaque_quotient(reduced, b // divisor)


def _opaque_quotient(a: Dim, b: Dim) -> Dim:
    return _call(f"({_operand(a)}//{_operand(b)})", a, b, natural=is_natural(a) and is_natural(b))


def _operand(dim: Dim) -> str:
    text = str(dim)
    return f"({text})" if isinstance(dim, Expr) and (len(dim.terms) > 1 or "*" in text) else text


def _exact_quotient(a: Dim, b: Expr) -> Dim | None:
    """Return a / b when it is a polynomial, for a `b` of one term (or equal to `a`)."""
    if a == b:
        return 1
    if len(b.terms) != 1:
        return None
    divisor, scale = b.terms[0]
    quotient: list[tuple[Monomial, int]] = []
    for monomial, factor in _terms(a):
        left = list(monomial)
        for atom in divisor:
            if atom not in left:
                return None
            left.remove(atom)
        if factor % scale:
            return None
        quotient.append((tuple(left), factor // scale))
    return _build(quotient)


def modulo(a: Dim, b: Dim) -> Dim:
    """Return a - b * floor(a / b)."""
    if b == 0:
        return unknown(natural=False)
    quotient = floor_div(a, b)
    rest = a - b * quotient
    if isinstance(rest, int):
        return rest
    return _call(f"({_operand(a)}%{_operand(b)})", a, b, natural=is_natural(a) and is_natural(b))


def maximum(a: Dim, b: Dim) -> Dim:
    """Return the larger of the two."""
    if is_natural(a - b):
        return a
    if is_natural(b - a):
        return b
    return _call(f"max({', '.join(sorted((str(a), str(b))))})", a, b, natural=is_natural(a) or is_natural(b))


def minimum(a: Dim, b: Dim) -> Dim:
    """Return the smaller of the two."""
    if is_natural(a - b):
        return b
    if is_natural(b - a):
        return a
    return _call(f"min({', '.join(sorted((str(a), str(b))))})", a, b, natural=is_natural(a) and is_natural(b))


def broadcast(a: Dim, b: Dim) -> Dim:
    """Return what two sizes of one axis broadcast to (ONNX's multidirectional rule).

    Two different symbols give a nameless size: either may be 1, and with 0 against 1 the result is 0, so that it is
    not their maximum.
    """
    if b in (a, 1):
        return a
    if a == 1:
        return b
    if isinstance(a, int) or is_positive(a - 1):
        return a
    if isinstance(b, int) or is_positive(b - 1):
        return b
    # The same two operands give the same nameless size again.
    first, second = sorted((str(a), str(b)))
    return Expr((((Atom(f"#({first}|{second})", True, False),), 1),))


def broadcast_dims(shapes: Iterable[Dims]) -> Dims:
    """Return the shape that `shapes` broadcast to."""
    result: Dims | None = None
    for dims in shapes:
        if result is None or dims == result:
            result = dims
            continue
        rank = max(len(dims), len(result))
        padded = (1,) * (rank - len(result)) + result, (1,) * (rank - len(dims)) + dims
        result = tuple(broadcast(a, b) for a, b in zip(*padded, strict=True))
    return result or ()


def product(dims: Iterable[Dim]) -> Dim:
    """Return the product; 1 of nothing."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def name_of(dim: Expr) -> str | None:
    """Return the text that stands for `dim` in a model, None when a part of it has no name."""
    text = str(dim)
    return None if "#" in text else text


def parse(text: str, known: Container[str]) -> Expr | None:
    """Return the dimension that a model calls `text`; None for placeholders such as "?".

    `2*seq + 1` is read as arithmetic, if it is written as this module writes it; any other text is a name. `known`
    are the names of the inputs' dimensions.
    """
    if text in _PLACEHOLDERS or "#" in text:
        return None
    whole = symbol(text, known=text in known)
    if text.isidentifier():
        return whole
    try:
        dim = _evaluate(ast.parse(text, mode="eval").body, known)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return whole
    return dim if isinstance(dim, Expr) and str(dim) == text else whole


_OPERATORS: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floor_div,
    ast.Mod: modulo,
}


def _evaluate(tree: ast.expr, known: Container[str]) -> Dim:
    if isinstance(tree, ast.Name):
        return symbol(tree.id, known=tree.id in known)
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return tree.value
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_evaluate(tree.operand, known)
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        return _OPERATORS[type(tree.op)](_evaluate(tree.left, known), _evaluate(tree.right, known))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and len(tree.args) == 2 and not tree.keywords:
        function = {"max": maximum, "min": minimum}.get(tree.func.id)
        if function:
            return function(_evaluate(tree.args[0], known), _evaluate(tree.args[1], known))
    raise ValueError(ast.dump(tree))
