"""Operators that map their first input linearly by a constant weight, and arithmetic on that weight.

Weights are computed in float64 and rounded once. What a model was loaded with is mapped, read-only and often shared:
it is never changed in place, every function here returns new arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import onnx_ir as ir

from infconv.passes._attributes import plain_attributes
from infconv.passes._build import Builder
from infconv.passes._pattern import Refuse
from infconv.passes._values import constant, dtype_of, rank, use_count
from infconv.passes._windows import windows

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
COPY_LIMIT = 16 << 10
"""A shared weight of more bytes is not copied in order to change it for one of its users."""
_BLOCK = 1 << 20
"""Elements that are held in float64 at a time."""

Numbers: TypeAlias = "np.ndarray | float"
"""float64: one number, or one for each channel."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight and bias: y = W x + b."""

    node: ir.Node
    weight: np.ndarray
    """The stored weight; of a convolution with the groups as an axis of their own."""
    out_axes: tuple[int, ...]
    """The axes of `weight` that make up the output's channels, in their order."""
    in_axes: tuple[int, ...]
    bias: np.ndarray | None
    """float64, of one element or one for each output channel. Gemm's beta is in it."""
    alpha: float = 1.0

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return int(np.prod([self.weight.shape[axis] for axis in self.out_axes]))

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return int(np.prod([self.weight.shape[axis] for axis in self.in_axes]))

    @property
    def rank(self) -> int | None:
        """The rank of the input and the output; None for MatMul, which does not say."""
        return None if self.node.op_type == "MatMul" else self.stored_rank

    @property
    def stored_rank(self) -> int:
        """The rank of the weight as the node has it."""
        return self.weight.ndim - (self.node.op_type.startswith("Conv"))

    @property
    def inner(self) -> int:
        """The number of dimensions after the channels."""
        return self.stored_rank - 2 if self.node.op_type.startswith("Conv") else 0

    @property
    def transposes_input(self) -> bool:
        """Whether the input's channels are its rows."""
        return self.node.op_type == "Gemm" and bool(self.node.attributes.get_int("transA", 0))

    def scaled(self, outputs: Numbers = 1.0, inputs: Numbers = 1.0) -> np.ndarray:
        """Return the weight, shaped as the node has it, for scaled inputs and outputs. Raises Refuse."""
        factor = self._spread(np.asarray(outputs) * self.alpha, self.out_axes)
        if not _is_one(inputs):
            factor = factor * self._spread(inputs, self.in_axes)
        return self.stored(multiplied(self.weight, factor))

    def stored(self, weight: np.ndarray) -> np.ndarray:
        """Return `weight`, whose axes are those of `self.weight`, as the node has it: without an axis of groups."""
        if not self.node.op_type.startswith("Conv"):
            return weight
        return weight.reshape(weight.shape[0] * weight.shape[1], *weight.shape[2:])

    def applied(self, shift: np.ndarray) -> np.ndarray:
        """Return what adding `shift`, one number for each input channel, to the input adds to each output channel.

        That holds where no window reaches into padding.
        """
        others = tuple(axis for axis in range(self.weight.ndim) if axis not in self.out_axes)
        changed = self.weight.astype(np.float64) * self._spread(shift, self.in_axes)
        return changed.sum(axis=others).ravel() * self.alpha

    def _spread(self, numbers: Numbers, axes: Sequence[int]) -> np.ndarray:
        """Return `numbers`, one for each channel of `axes`, in a shape that broadcasts to the weight."""
        array = np.asarray(numbers, dtype=np.float64)
        if array.size == 1:
            return array.reshape([1] * self.weight.ndim)
        return array.reshape([size if axis in axes else 1 for axis, size in enumerate(self.weight.shape)])


def linear(node: ir.Node) -> Linear:
    """Return `node`, one of LINEAR with constant weight and bias, as a Linear. Raises Refuse."""
    attributes = plain_attributes(node)
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or (bias is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        raise Refuse("its weight or bias is not constant")
    dtype = dtype_of(node.inputs[1])
    if dtype is None or not dtype.is_floating_point():
        raise Refuse("its weight is not float")
    alpha, exact = 1.0, None if bias is None else bias.astype(np.float64)
    match node.op_type:
        case "Conv" | "ConvTranspose":
            group = int(attributes.get("group", 1))
            weight = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
            out_axes, in_axes = ((0, 1), (0, 2)) if node.op_type == "Conv" else ((0, 2), (0, 1))
        case "Gemm":
            alpha = float(attributes.get("alpha", 1.0))
            exact = _gemm_bias(exact, float(attributes.get("beta", 1.0)))
            out_axes, in_axes = ((0,), (1,)) if attributes.get("transB", 0) else ((1,), (0,))
        case _:
            if weight.ndim < 2:
                raise Refuse("the weight of MatMul is a vector")
            out_axes, in_axes = (weight.ndim - 1,), (weight.ndim - 2,)
    return Linear(node, weight, out_axes, in_axes, exact, alpha)


def _gemm_bias(bias: np.ndarray | None, beta: float) -> np.ndarray | None:
    if bias is not None and bias.ndim == 2 and bias.shape[0] != 1:
        raise Refuse("the bias of Gemm differs between rows")
    return None if bias is None else bias.reshape(-1) * beta


def rebuilt(
    op: Builder, old: Linear, x: ir.Value, bias: np.ndarray | None, outputs: Numbers = 1.0, inputs: Numbers = 1.0
) -> ir.Value:
    """Make a node like `old` on `x` with another bias (float64, or None), its outputs and inputs scaled. Raises Refuse.

    MatMul has no bias: with one it becomes Gemm, if it is of matrices.
    """
    op_type, weight = old.node.op_type, cast(ir.Value, old.node.inputs[1])
    attributes = {name: a for name, a in old.node.attributes.items() if name != "beta"}
    if bias is not None and op_type == "MatMul":
        if rank(x) != 2 or old.weight.ndim != 2:
            raise Refuse(f"MatMul has no bias, and '{x.name}' is not known to be a matrix, as Gemm wants")
        op_type = "Gemm"
    if not (_is_one(outputs) and _is_one(inputs)):
        if np.size(inputs) > 1 and old.transposes_input:
            raise Refuse("Gemm transposes what is scaled")
        check_unshared(weight)
        weight = op.const(old.scaled(outputs, inputs))
        attributes.pop("alpha", None)
    arguments = [x, weight]
    if bias is not None:
        size = old.outputs if op_type.startswith("Conv") else bias.size
        arguments.append(op.const(rounded(bias if bias.size == size else np.full(size, bias), old.weight.dtype)))
    return op.call(op_type, *arguments, _attrs=attributes, _like=old.node.outputs[0])


def _is_one(numbers: Numbers) -> bool:
    return bool((numbers == 1).all()) if isinstance(numbers, np.ndarray) else numbers == 1


def check_unshared(weight: ir.Value) -> None:
    """Raise Refuse when others use `weight` too, so that changing it would leave the model with two large weights."""
    found = constant(weight)
    uses = use_count(weight) + weight.is_graph_output()
    if found is not None and uses > 1 and found.nbytes > COPY_LIMIT:
        raise Refuse(f"the weight '{weight.name}' is used {uses} times")


# --- arithmetic ------------------------------------------------------------------------------------------------------


def multiplied(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return `weight` * `factor` (float64, of the same rank) in the weight's type and shape. Raises Refuse."""
    result = np.empty_like(weight)
    rows = max(1, _BLOCK // max(1, weight[:1].size))
    for start in range(0, len(weight), rows):
        block = slice(start, start + rows)
        part = factor if len(factor) == 1 else factor[block]
        result[block] = rounded(weight[block].astype(np.float64) * part, weight.dtype)
    return result


def rounded(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return float64 numbers in `dtype`. Raises Refuse when that is not finite, or when too little is left of them."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = exact.astype(dtype)
    if not np.isfinite(result).all():
        raise Refuse(f"the new weight is not finite in {dtype}")
    # 16-bit types: what underflows loses far more than a rounding.
    if dtype.itemsize < 4 and exact.size:
        error, largest = np.abs(result.astype(np.float64) - exact).max(), np.abs(exact).max()
        if error > largest * 2.0**-8:
            raise Refuse(f"the new weight is too small for {dtype}")
    return result


def per_channel(value: ir.Value, rank: int | None, channels: int, inner: int) -> np.ndarray:
    """Return the constant `value` as float64 of one element, or of one for each channel.

    It is an operand of an element-wise operator on a tensor of `rank` (None: not known, at least 1) whose channels
    are the axis before the last `inner` ones. Raises Refuse when the constant varies along another axis or
    broadcasts the tensor to another shape.
    """
    array = constant(value)
    if array is None:
        raise Refuse(f"'{value.name}' is not constant")
    shape = list(array.shape)
    if len(shape) > (1 if rank is None else rank):
        raise Refuse(f"'{value.name}' of rank {len(shape)} may be of higher rank than what it is combined with")
    aligned = [1] * (inner + 1 - len(shape)) + shape
    axis = len(aligned) - 1 - inner
    if aligned[axis] not in (1, channels) or any(size != 1 for i, size in enumerate(aligned) if i != axis):
        raise Refuse(f"'{value.name}' of shape {shape} is not one number for each of {channels} channels")
    return array.astype(np.float64).reshape(-1)


def affine(op_type: str, c: np.ndarray, constant_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return s and t of op(y, c) = s y + t for Mul, Div, Add, Sub and Sub with the constant first. Raises Refuse."""
    one, zero = np.ones(1, c.dtype), np.zeros(1, c.dtype)
    match op_type:
        case "Mul":
            return c, zero
        case "Div":
            with np.errstate(divide="ignore"):
                scale = 1 / c
            if not np.isfinite(scale).all():
                raise Refuse("it divides by zero")
            return scale, zero
        case "Add":
            return one, c
        case _:
            return (-one, c) if constant_first else (one, -c)


def shifted_bias(old: Linear, x: ir.Value, shift: np.ndarray) -> np.ndarray | None:
    """Return the bias of `old` when `shift`, one number for each input channel, is added to its input `x` inside it.

    Raises Refuse where the shift would have to be padded with.
    """
    if not shift.any():
        return old.bias
    op_type = old.node.op_type
    if op_type == "ConvTranspose":
        raise Refuse("the edges of ConvTranspose's output see fewer inputs, so that a shift is not the same everywhere")
    if op_type == "Conv" and windows(old.node, old.weight.shape[3:]).padded:
        raise Refuse("Conv pads with zeros, which are not shifted")
    if old.transposes_input:
        raise Refuse("Gemm transposes what is shifted")
    if op_type == "MatMul" and (rank(x) != 2 or old.weight.ndim != 2):
        raise Refuse("MatMul has no bias to take the shift")
    return old.applied(shift) + (0.0 if old.bias is None else old.bias)
