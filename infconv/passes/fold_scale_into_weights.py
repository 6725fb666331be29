"""Scales and shifts by constants become part of the linear operator beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Refuse, Rule, rank, static_dim
from infconv.passes._weights import (
    LINEAR,
    Linear,
    affine,
    check_unshared,
    linear,
    multiplied,
    per_channel,
    rebuilt,
    rounded,
    shifted_bias,
)

# --- what to look for ------------------------------------------------------------------------------------------------


def _linear(op: Any, x: Any, w: Any, b: Any, node: Any) -> Any:
    return op.any(*LINEAR)(x, op.const(w), op.optional(op.const(b)), _attrs=..., _node=node)


def _combined(op: Any, y: Any, c: Any, root: Any) -> Any:
    return op.any_of(op.any("Mul", "Add")(y, op.const(c), _node=root), op.any("Div", "Sub")(y, op.const(c), _node=root))


def _scaled(op: Any, y: Any, c: Any, root: Any) -> Any:
    return op.any_of(op.Mul(y, op.const(c), _node=root), op.Div(y, op.const(c), _node=root))


def _after(op: Any, x: Any, w: Any, b: Any, node: Any, c: Any, root: Any) -> Any:
    y = _linear(op, x, w, b, node)
    return op.any_of(_combined(op, y, c, root), op.Sub(op.const(c), y, _node=root))


def _after_bias(op: Any, x: Any, w: Any, b: Any, node: Any, c: Any, root: Any) -> Any:
    return _scaled(op, op.Add(op.MatMul(x, op.const(w), _node=node), op.const(b)), c, root)


def _after_left(op: Any, x: Any, w: Any, c: Any, root: Any) -> Any:
    return _scaled(op, op.MatMul(op.const(w), x), c, root)


def _before(op: Any, x: Any, w: Any, b: Any, node: Any, c: Any, inner: Any) -> Any:
    return _linear(op, _combined(op, x, c, inner), w, b, node)


# --- after the operator ----------------------------------------------------------------------------------------------


def _fold_after(op: Builder, x: ir.Value, node: ir.Node, c: ir.Value, root: ir.Node) -> ir.Value:
    old = linear(node)
    output_rank = old.rank if old.rank is not None else _rank_after(x, old)
    numbers = per_channel(c, output_rank, old.outputs, old.inner)
    scale, shift = affine(root.op_type, numbers, constant_first=root.inputs[0] is c)
    if old.bias is None and not shift.any():
        return rebuilt(op, old, x, None, outputs=scale)
    if node.op_type == "MatMul":
        raise Refuse("MatMul has no bias to take the shift")
    return rebuilt(op, old, x, (0.0 if old.bias is None else old.bias) * scale + shift, outputs=scale)


def _rank_after(x: ir.Value, matmul: Linear) -> int | None:
    known = rank(x)
    return None if known is None else max(known, matmul.stored_rank) - (known == 1)


def _fold_after_bias(op: Builder, x: ir.Value, node: ir.Node, b: ir.Value, c: ir.Value, root: ir.Node) -> ir.Value:
    """(x W + b) * c = x (W c) + (b c) for MatMul, whose bias is an Add."""
    old, output_rank = linear(node), _rank_after(x, linear(node))
    bias, numbers = per_channel(b, output_rank, old.outputs, 0), per_channel(c, output_rank, old.outputs, 0)
    scale, _ = affine(root.op_type, numbers)
    return op.Add(rebuilt(op, old, x, None, outputs=scale), op.const(rounded(bias * scale, old.weight.dtype)))


def _fold_left(op: Builder, x: ir.Value, w: ir.Value, c: ir.Value, root: ir.Node) -> ir.Value:
    """(W x) * c = (W c) x, where c is a number."""
    number, weight = _values.constant(c), _values.constant(w)
    if number is None or weight is None or number.size != 1 or number.ndim > max(rank(x) or 0, weight.ndim) - 1:
        raise Refuse(f"'{c.name}' is not one number")
    check_unshared(w)
    scale, _ = affine(root.op_type, number.astype(np.float64).reshape(-1))
    return op.MatMul(op.const(multiplied(weight, scale.reshape((1,) * weight.ndim))), x)


# --- before the operator ---------------------------------------------------------------------------------------------


def _fold_before(op: Builder, x: ir.Value, node: ir.Node, c: ir.Value, inner: ir.Node) -> ir.Value:
    old = linear(node)
    input_rank = _rank_before(x, old, c)
    numbers = per_channel(c, input_rank, old.inputs, old.inner)
    if numbers.size > 1 and static_dim(x, -1 - old.inner) != numbers.size:
        raise Refuse(f"'{x.name}' is not known to have {numbers.size} channels before '{c.name}' is applied")
    scale, shift = affine(inner.op_type, numbers)
    shift = np.broadcast_to(shift, old.inputs)
    return rebuilt(op, old, x, shifted_bias(old, x, shift), inputs=scale)


def _rank_before(x: ir.Value, old: Linear, c: ir.Value) -> int | None:
    """Return the rank of `x`, of which `x` combined with `c` has to be, too."""
    known = rank(x)
    if known is None and old.rank is not None and (rank(c) or 0) < old.rank:
        return old.rank
    if known is None and rank(c):
        raise Refuse(f"the rank of '{x.name}' is not known")
    return known


class FoldScaleIntoWeights(RewritePass):
    """Fold Mul, Div, Add and Sub by constants into the weight and bias of the linear operator before or after them.

    After: (W x + b) * s + t = (s W) x + (s b + t), for one number or one for each output channel. Before:
    W (s x + t) + b = (W s) x + (W t + b), one for each input channel, where t needs a window that never reaches into
    padding (zeros, which are not shifted). Gemm's alpha and beta are folded too. MatMul takes a scale, also across the
    Add that is its bias; a shift of MatMul stays an Add, for `fuse-matmul-add`.

    The constant must broadcast to one number for each channel and must not enlarge the result: [C] after a Conv of
    images is along their width, and refused.

    `y = Mul(Conv(x, W, b), s)` becomes `y = Conv(x, W', b')`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(name="linear-affine", match=_after, build=_fold_after, since_opset=7),
        Rule(name="matmul-bias-scale", match=_after_bias, build=_fold_after_bias, since_opset=7),
        Rule(name="left-matmul-scale", match=_after_left, build=_fold_left, since_opset=7),
        Rule(name="affine-linear", match=_before, build=_fold_before, since_opset=7),
    )
