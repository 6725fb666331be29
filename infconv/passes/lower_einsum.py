"""Einsum for targets that have no operator for it, or a slow one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import reduce
from infconv.passes._match import Match
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule


@dataclasses.dataclass(frozen=True)
class _Term:
    """A value and a label for each of its axes."""

    value: ir.Value
    labels: str


def parse(equation: str, operands: int) -> tuple[list[str], str]:
    """Return the labels of the operands and of the result. Raises Refuse for what cannot be lowered."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation:
        raise Refuse(f"the equation '{equation}' has an ellipsis")
    if any(len(set(term)) != len(term) for term in (*terms, result)):
        raise Refuse(f"the equation '{equation}' repeats an index within a term")
    if len(terms) != operands:
        raise Refuse(f"the equation '{equation}' is for {len(terms)} operands, not for {operands}")
    if not arrow:
        counts = Counter("".join(terms))
        result = "".join(sorted(label for label, count in counts.items() if count == 1))
    return terms, result


class _Lowering:
    """Builds the operators for one Einsum."""

    def __init__(self, op: Builder, sizes: dict[str, int]) -> None:
        self.op = op
        self.sizes = sizes
        """Of the labels whose size is known."""

    def sum_out(self, term: _Term, keep: Iterable[str]) -> _Term:
        """Sum over the axes whose labels are not in `keep`."""
        kept = "".join(label for label in term.labels if label in set(keep))
        if kept == term.labels:
            return term
        axes = [i for i, label in enumerate(term.labels) if label not in kept]
        return _Term(reduce(self.op, "ReduceSum", term.value, axes, 0), kept)

    def transpose(self, term: _Term, labels: str) -> ir.Value:
        if labels == term.labels:
            return term.value
        return self.op.Transpose(term.value, perm=[term.labels.index(label) for label in labels])

    def reshape(self, value: ir.Value, batch: int, groups: Sequence[str]) -> ir.Value:
        """Give `value`, whose first `batch` axes stay, one axis for each group; Reshape can work out one size only."""
        target = [self.size(group) for group in groups]
        if target.count(-1) > 1:
            unknown = [label for group in groups for label in group if label not in self.sizes]
            raise Refuse(f"the sizes of the indices {unknown} are not known")
        return self.op.Reshape(value, self.op.const(np.array([0] * batch + target, np.int64)))

    def size(self, group: str) -> int:
        """Return how many elements the axes of `group` have together, -1 when that is not known."""
        return int(np.prod([self.sizes[label] for label in group])) if set(group) <= self.sizes.keys() else -1

    def combine(self, a: _Term, b: _Term, keep: set[str]) -> _Term:
        """Multiply two terms, and sum over the labels that they share and that are not in `keep`."""
        a, b = (self.sum_out(t, keep.union(other.labels)) for t, other in ((a, b), (b, a)))
        shared = [label for label in a.labels if label in b.labels]
        batch = "".join(label for label in shared if label in keep)
        inner = "".join(label for label in shared if label not in keep)
        rows = "".join(label for label in a.labels if label not in shared)
        columns = "".join(label for label in b.labels if label not in shared)
        if not inner:
            return self.multiply(a, b, batch, rows, columns)
        left = self.merge(self.transpose(a, batch + rows + inner), batch, rows, inner)
        right = self.merge(self.transpose(b, batch + inner + columns), batch, inner, columns)
        return _Term(self.split(self.op.MatMul(left, right), batch, rows, columns), batch + rows + columns)

    def merge(self, value: ir.Value, batch: str, *groups: str) -> ir.Value:
        """Turn the axes after `batch` into a matrix."""
        if all(len(group) == 1 for group in groups):
            return value
        return self.reshape(value, len(batch), groups)

    def split(self, value: ir.Value, batch: str, *groups: str) -> ir.Value:
        """Undo `merge`: give each label of the matrix's groups its own axis again."""
        if all(len(group) == 1 for group in groups):
            return value
        return self.reshape(value, len(batch), "".join(groups))

    def multiply(self, a: _Term, b: _Term, batch: str, rows: str, columns: str) -> _Term:
        """Return the outer product, element-wise along the batch."""
        left, right = self.transpose(a, batch + rows), self.transpose(b, batch + columns)
        if columns:
            left = self.insert(left, np.arange(len(batch + rows), len(batch + rows + columns)))
        if rows:
            right = self.insert(right, np.arange(len(batch), len(batch + rows)))
        return _Term(self.op.Mul(left, right), batch + rows + columns)

    def insert(self, value: ir.Value, axes: np.ndarray) -> ir.Value:
        """Insert axes of size 1."""
        if self.op.opset < 13:
            return self.op.Unsqueeze(value, axes=axes.tolist())
        return self.op.Unsqueeze(value, self.op.const(axes.astype(np.int64)))


def _sizes(values: Sequence[ir.Value], terms: Sequence[str]) -> dict[str, int]:
    """Return the sizes of labels that are known. Raises Refuse when a term does not fit its operand."""
    sizes: dict[str, int] = {}
    for value, labels in zip(values, terms, strict=True):
        known = _values.dims(value)
        if known is None or len(known) != len(labels):
            raise Refuse(f"'{value.name}' is not known to have the {len(labels)} axes '{labels}'")
        for label, size in zip(labels, known, strict=True):
            if isinstance(size, int) and sizes.setdefault(label, size) != size:
                raise Refuse(f"the index '{label}' has the sizes {sizes[label]} and {size}")
            if size == 0:
                raise Refuse(f"'{value.name}' is empty, and Reshape takes 0 for something else")
    return sizes


def _lower(op: Builder, match: Match) -> ir.Value:
    values: tuple[ir.Value, ...] = match["xs"]
    terms, result = parse(match["equation"], len(values))
    lowering = _Lowering(op, _sizes(values, terms))
    waiting = [_Term(value, labels) for value, labels in zip(values, terms, strict=True)]
    current = waiting.pop(0)
    while waiting:
        following = waiting.pop(0)
        keep = set(result).union(*(term.labels for term in waiting))
        current = lowering.combine(current, following, keep)
    current = lowering.sum_out(current, result)
    made = lowering.transpose(current, result)
    return op.Identity(made) if made is values[0] else made


class LowerEinsum(RewritePass):
    """Replace Einsum by MatMul, Mul, ReduceSum, Transpose and Reshape, for targets without it.

    `bhqd,bhkd->bhqk` becomes `MatMul(x, Transpose(y))`. Operands are combined from left to right: indices that only
    one has and the result has not are summed first, those that both have and nobody needs later are the inner axis of
    a MatMul, and of several such axes one is made by Reshape, for which all sizes but one must be known. Left alone:
    an ellipsis, an index twice in a term. An axis of size 1 is not stretched along others of its index.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, xs, equation: op.Einsum(op.rest(xs), equation=op.attr(equation, bool)),
            build=_lower,
            since_opset=12,
        ),
    )
