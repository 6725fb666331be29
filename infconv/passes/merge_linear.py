"""Consecutive linear maps by constants become one where that is less to compute and to store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Match, Refuse, Rule, constant, dtype_of, rank
from infconv.passes._weights import Linear, affine, check_unshared, linear, per_channel, rounded
from infconv.passes._windows import windows

_ADDITIVE = frozenset({"Add", "Sub"})
_LARGE = 1024.0
"""What is added and taken away again rounds x to its own precision; beyond this that may be what it is for."""
_MOST_ELEMENTS = 1 << 22
"""Of a matrix: the product of larger ones takes seconds, and in float64 gigabytes."""

# --- element-wise ----------------------------------------------------------------------------------------------------


def _affine(op: Any, x: Any, c: Any, node: Any) -> Any:
    """Return the pattern of Mul, Div, Add and Sub by a constant."""
    k = op.const(c)
    return op.any_of(
        op.any("Add", "Mul")(x, k, _node=node), op.any("Sub", "Div")(x, k, _node=node), op.Sub(k, x, _node=node)
    )


def _merge_two(op: Builder, x: ir.Value, n1: ir.Node, n2: ir.Node) -> ir.Value:
    """(x + a) + b = x + (a + b), (x a) b = x (a b)."""
    if (n1.op_type in _ADDITIVE) != (n2.op_type in _ADDITIVE):
        raise Refuse("one adds and the other multiplies: two operators it stays")
    scale, shift = _composed((n1, n2))
    if n1.op_type not in _ADDITIVE:
        return op.Mul(x, op.const(scale))
    return op.Sub(op.const(shift), x) if scale.flat[0] < 0 else op.Add(x, op.const(shift))


def _merge_three(op: Builder, x: ir.Value, n1: ir.Node, n2: ir.Node, n3: ir.Node) -> ir.Value:
    """(x a + b) c = x (a c) + b c, (x + a) b + c = x b + (a b + c)."""
    kinds = [node.op_type in _ADDITIVE for node in (n1, n2, n3)]
    if kinds[0] == kinds[1] or kinds[1] == kinds[2]:
        raise Refuse("they do not alternate: two of them are one")
    scale, shift = _composed((n1, n2, n3))
    return op.Add(op.Mul(x, op.const(scale)), op.const(shift))


def _composed(nodes: Sequence[ir.Node]) -> tuple[np.ndarray, np.ndarray]:
    """Return the constants s and t with which `nodes`, one after the other, compute s x + t. Raises Refuse."""
    constants = [_operand(node) for node in nodes]
    dtype = constants[0].dtype
    is_integer = dtype.kind == "i"
    exact = dtype if is_integer else np.dtype(np.float64)
    scale, shift = np.ones((), exact), np.zeros((), exact)
    peak = np.zeros(())
    for node, c in zip(nodes, constants, strict=True):
        if is_integer and node.op_type == "Div":
            raise Refuse("integers are divided with a rest")
        parts = affine(node.op_type, c.astype(exact), constant_first=constant(node.inputs[0]) is not None)
        s, t = (part if part.shape == c.shape else part.reshape(()) for part in parts)
        with np.errstate(over="ignore"):  # integers wrap around, here as there
            scale, shift = scale * s, shift * s + t
        peak = np.maximum(peak, _in_units_of_x(shift, scale))
    if not is_integer and np.any((peak > _LARGE) & (_in_units_of_x(shift, scale) < peak / 2)):
        raise Refuse("a large number is added and taken away again, which rounds: (x + 2²³) - 2²³ is an integer")
    if max(scale.size, shift.size) > max(c.size for c in constants):
        raise Refuse("together the constants are larger than each of them")
    return (scale, shift) if is_integer else (_exact(scale, dtype), _exact(shift, dtype))


def _in_units_of_x(shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(shift.astype(np.float64) / scale)


def _exact(part: np.ndarray, dtype: np.dtype) -> np.ndarray:
    result = rounded(part, dtype)
    if np.any((result == 0) & (part != 0)):
        raise Refuse(f"the product of the constants is too small for {dtype}")
    return result


def _operand(node: ir.Node) -> np.ndarray:
    """Return the constant operand of an element-wise node. Raises Refuse."""
    found = [value for value in node.inputs if constant(value) is not None]
    array = constant(found[0])
    if len(found) != 1 or array is None:
        raise Refuse("both operands are constant")
    dtype = dtype_of(found[0])
    if dtype is None or not (dtype.is_floating_point() or array.dtype.kind == "i"):
        raise Refuse(f"numbers of type {dtype} do not add up like that")
    return array


# --- matrices --------------------------------------------------------------------------------------------------------


def _merge_matrices(op: Builder, x: ir.Value, n1: ir.Node, n2: ir.Node, match: Match) -> ir.Value:
    """(x A + a) B + b = x (A B) + (a B + b)."""
    first, second = linear(n1), linear(n2)
    shift = match.bindings.get("c")
    bias = first.bias if shift is None else per_channel(shift, rank(n1.outputs[0]), first.outputs, 0)
    if first.weight.ndim != 2 or second.weight.ndim != 2:
        raise Refuse("a weight is no matrix")
    if first.transposes_input or second.transposes_input:
        raise Refuse("Gemm transposes its input")
    _check_pays(first.inputs * second.outputs, first, second)
    a, b = _matrix(first), _matrix(second)
    dtype = first.weight.dtype
    weight = op.const(rounded(a @ b, dtype))
    if bias is None and second.bias is None:
        return op.MatMul(x, weight)
    moved = np.zeros(1) if bias is None else np.broadcast_to(bias, first.outputs) @ b
    total = op.const(rounded(moved if second.bias is None else moved + second.bias, dtype))
    if "Gemm" in (n1.op_type, n2.op_type):
        return op.Gemm(x, weight, total)
    return op.Add(op.MatMul(x, weight, _like=n2.outputs[0]), total)


def _matrix(old: Linear) -> np.ndarray:
    """Return the weight as float64 [inputs, outputs]."""
    matrix = old.weight.astype(np.float64) * old.alpha
    return matrix if old.in_axes == (0,) else matrix.T


def _check_pays(merged: int, first: Linear, second: Linear) -> None:
    """Raise Refuse unless the merged weight has fewer elements: also the number of multiplications for each output."""
    separate = first.weight.size + second.weight.size
    if merged >= separate:
        raise Refuse(f"one weight of {merged} elements is no gain over two of {separate}")
    largest = max(merged, first.weight.size, second.weight.size)
    if largest > _MOST_ELEMENTS:
        raise Refuse(f"a weight of {largest} elements is too large to be multiplied here")
    for old in (first, second):
        check_unshared(cast(ir.Value, old.node.inputs[1]))


# --- convolutions ----------------------------------------------------------------------------------------------------


def _merge_convolutions(op: Builder, x: ir.Value, n1: ir.Node, n2: ir.Node) -> ir.Value:
    """Of two convolutions one of which is pointwise (1x1): mix its channels into the weight of the other."""
    first, second = linear(n1), linear(n2)
    if first.weight.shape[0] != 1 or second.weight.shape[0] != 1:
        raise Refuse("a convolution has groups")
    outer, inner = windows(n2, second.weight.shape[3:]), windows(n1, first.weight.shape[3:])
    if not outer.padded and all(size == 1 for size in outer.kernel):
        window, keep = inner, n1
        strides = [a * b for a, b in zip(inner.strides, outer.strides, strict=True)]
    elif inner.is_pointwise:
        window, keep, strides = outer, n2, list(outer.strides)
        if outer.padded and first.bias is not None and first.bias.any():
            raise Refuse("the second convolution pads with zeros what has a bias")
    else:
        raise Refuse("neither convolution is pointwise")
    _check_pays(first.inputs * second.outputs * int(np.prod(window.kernel)), first, second)
    # One of the kernels has one element, so that the product over the channels between them has the other's shape.
    a, b = (w[0].astype(np.float64).reshape(*w.shape[1:3], -1) for w in (first.weight, second.weight))
    weight = np.einsum("omp,miq->oipq", b, a, optimize=True).reshape(second.outputs, first.inputs, *window.kernel)
    constants = [weight, *_bias(first, second)]
    attributes = {name: value for name, value in keep.attributes.items() if name not in ("auto_pad", "strides")}
    made = [op.const(rounded(c, first.weight.dtype)) for c in constants]
    return op.Conv(x, *made, _attrs=attributes, pads=window.pads, strides=strides)


def _bias(first: Linear, second: Linear) -> list[np.ndarray]:
    """Return the bias of both convolutions together, none when neither has one."""
    if first.bias is None:
        return [] if second.bias is None else [second.bias]
    return [second.applied(first.bias) + (0.0 if second.bias is None else second.bias)]


# --- rules -----------------------------------------------------------------------------------------------------------


def _matrices(op: Any, x: Any, w1: Any, b1: Any, n1: Any, w2: Any, b2: Any, n2: Any) -> Any:
    inner = op.any("MatMul", "Gemm")(x, op.const(w1), op.optional(op.const(b1)), _attrs=..., _node=n1)
    return op.any("MatMul", "Gemm")(inner, op.const(w2), op.optional(op.const(b2)), _attrs=..., _node=n2)


def _biased_matrices(op: Any, x: Any, w1: Any, c: Any, n1: Any, w2: Any, b2: Any, n2: Any) -> Any:
    inner = op.Add(op.MatMul(x, op.const(w1), _node=n1), op.const(c))
    return op.any("MatMul", "Gemm")(inner, op.const(w2), op.optional(op.const(b2)), _attrs=..., _node=n2)


def _convolutions(op: Any, x: Any, w1: Any, b1: Any, n1: Any, w2: Any, b2: Any, n2: Any) -> Any:
    inner = op.Conv(x, op.const(w1), op.optional(op.const(b1)), _attrs=..., _node=n1)
    return op.Conv(inner, op.const(w2), op.optional(op.const(b2)), _attrs=..., _node=n2)


class MergeLinear(RewritePass):
    """Merge consecutive linear maps by constants where one is less to compute and to store than both.

    Element-wise: (x + a) + b = x + (a + b), (x a) b = x (a b), also with Sub and Div; (x a + b) c = x (a c) + b c and
    (x + a) b + c = x b + (a b + c), two operators for three.
    Matrices: (x A + a) B + b = x (A B) + (a B + b) for MatMul, Gemm and MatMul with Add, only when A B has fewer
    elements than A and B: a factorized (low-rank) weight stays factorized.
    Convolutions: W2 * (W1 * x) when one of them is 1x1, without groups, likewise only when the merged kernel has
    fewer elements. A 1x1 convolution with a bias before one that pads with zeros is left alone, the padding has no
    bias. Strides of a 1x1 convolution behind the other multiply.

    `y = Add(Add(x, a), b)` becomes `y = Add(x, a + b)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="affine-affine",
            match=lambda op, x, c1, n1, c2, n2: _affine(op, _affine(op, x, c1, n1), c2, n2),
            build=_merge_two,
            since_opset=7,
        ),
        Rule(
            name="affine-affine-affine",
            match=lambda op, x, c1, n1, c2, n2, c3, n3: _affine(
                op, _affine(op, _affine(op, x, c1, n1), c2, n2), c3, n3
            ),
            build=_merge_three,
            since_opset=7,
        ),
        Rule(name="matmul-matmul", match=_matrices, build=_merge_matrices, since_opset=7),
        Rule(name="matmul-add-matmul", match=_biased_matrices, build=_merge_matrices, since_opset=7),
        Rule(name="conv-conv", match=_convolutions, build=_merge_convolutions),
    )
