"""Reductions from their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._forms import axes_of, reduce, single_precision, square
from infconv.passes._match import Match
from infconv.passes._pattern import Pattern, PatternBuilder, Refuse
from infconv.passes._rewrite import Rule

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_STATISTICS = frozenset({"Add", "Max", "Mul", "Neg", "Sqrt", "Sub"})
"""What comes after the mean or the variance in a normalization."""


def _make(name: str) -> Callable[[Builder, Match], ir.Value]:
    """Return a function that makes the reduction `name` of x with the axes of the matched one."""

    def build(op: Builder, match: Match) -> ir.Value:
        return reduce(op, name, match.value("x"), axes_of(match, "axes_input", "axes"), match["keep"])

    return build


def _any_reduction(op: PatternBuilder, name: str, x: Any, axes: Any, axes_input: Any, keep: Any) -> Pattern:
    return op.any(name)(x, op.optional(op.const(axes_input)), axes=axes, keepdims=keep)


def _rule(name: str, of: Callable[[PatternBuilder, Any], Any], outer: str, inner: str, since: int = 7) -> Rule:
    """Return the rule that outer(inner(of(x))) is the reduction `name`; without `outer` when that is empty.

    Three are for opset 18 only: OpenVINO 2026.4 ignores the axes of ReduceL1, ReduceLogSum and ReduceLogSumExp of
    opset 13 to 17, and sums over all.
    """

    def match(op: PatternBuilder, x: Any, axes: Any, axes_input: Any, keep: Any) -> Pattern:
        reduction = _any_reduction(op, inner, of(op, x), axes, axes_input, keep)
        return op.any(outer)(reduction) if outer else reduction

    return Rule(match=match, build=_make(name), when=single_precision, since_opset=since, name=f"{name} of {inner}")


def _other_keepdims(op: Builder, match: Match) -> ir.Value:
    """Make the reduction again so that it keeps its axes if it did not, and the other way round."""
    node: ir.Node = match["node"]
    x, axes, keep = match.value("x"), axes_of(match, "axes_input", "axes"), 1 - match["keep"]
    before, after = _values.dims(x), _values.dims(match.outputs[0])
    if before is None or after is None:
        raise Refuse(f"the shapes of '{x.name}' and '{match.outputs[0].name}' are not known")
    reduced = {axis % len(before) for axis in (range(len(before)) if axes is None else axes)}
    wanted = [1 if i in reduced else dim for i, dim in enumerate(before) if keep or i not in reduced]
    if len(wanted) != len(after) or not all(map(_values.same_dim, wanted, after)):
        raise Refuse(f"the result has more than the axes {sorted(reduced)} added or taken away")
    return reduce(op, node.op_type, x, axes, keep)


def _given_axes(op: Builder, match: Match) -> ir.Value:
    """Make the reduction without an attribute that is about reductions without axes."""
    axes = match.array("axes_input").reshape(-1).tolist()
    if not axes:
        raise Refuse("there are no axes: it does nothing")
    node: ir.Node = match["node"]
    return op.call(node.op_type, match["x"], match["axes_input"], keepdims=match["keep"])


def _mean_of_features(op: Builder, match: Match) -> ir.Value:
    """GlobalAveragePool of rank 3 is ReduceMean over the last axis."""
    x, users = match.value("x"), match.outputs[0].consumers()
    if _values.rank(x) != 3:
        raise Refuse(f"'{x.name}' is not known to be of rank 3")
    if match.outputs[0].is_graph_output() or any(user.op_type not in _STATISTICS for user in users):
        raise Refuse("its users are not those of a normalization")
    return reduce(op, "ReduceMean", x, [2], 1)


class FuseReduce(RewritePass):
    """Merge reductions with what is around them.

    `Σ x²` is ReduceSumSquare and its root ReduceL2, `Σ |x|` is ReduceL1, `log Σ x` is ReduceLogSum and `log Σ exp(x)`
    ReduceLogSumExp. A Squeeze, Unsqueeze, Flatten or Reshape that only takes away or brings back the reduced axes
    becomes the `keepdims` of the reduction. tf2onnx writes the mean and variance of a sequence's features as
    GlobalAveragePool; it becomes ReduceMean again, which the fusions of normalizations look for.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        _rule("ReduceL2", square, "Sqrt", "ReduceSum"),
        _rule("ReduceL2", lambda _, x: x, "Sqrt", "ReduceSumSquare"),
        _rule("ReduceSumSquare", square, "", "ReduceSum"),
        _rule("ReduceL1", lambda op, x: op.Abs(x), "", "ReduceSum", 18),
        _rule("ReduceLogSumExp", lambda op, x: op.Exp(x), "Log", "ReduceSum", 18),
        _rule("ReduceLogSumExp", lambda op, x: op.Exp(x), "", "ReduceLogSum", 18),
        _rule("ReduceLogSum", lambda _, x: x, "Log", "ReduceSum", 18),
        Rule(
            match=lambda op, x, axes, axes_input, keep, node, _: op.any("Squeeze", "Unsqueeze", "Reshape", "Flatten")(
                op.any(*_REDUCTIONS)(x, op.optional(op.const(axes_input)), axes=axes, keepdims=keep, _node=node),
                op.rest(_),
                _attrs=...,
            ),
            build=_other_keepdims,
            name="keepdims",
        ),
        Rule(
            match=lambda op, x, axes_input, keep, node: op.any(*_REDUCTIONS)(
                x, op.const(axes_input), noop_with_empty_axes=1, keepdims=keep, _node=node
            ),
            build=_given_axes,
            name="noop_with_empty_axes",
        ),
        Rule(
            match=lambda op, x: op.GlobalAveragePool(x),
            build=_mean_of_features,
            when=single_precision,
            name="mean of features",
        ),
    )
