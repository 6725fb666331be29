"""Why an operator that may do nothing, given its parameters, does something. One function for each kind of operator.

Each takes the node and the opset, and returns the reason, None when the result is the first input. Raises Refuse when
a parameter is not constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._moves import (
    attribute,
    axes_of,
    integer,
    integers,
    operand,
    permutation,
    reshaped,
    same_sizes,
    sizes,
    slices,
)

Check: TypeAlias = Callable[[ir.Node, int], str | None]


def _cast(node: ir.Node, _: int) -> str | None:
    if node.op_type == "CastLike":
        wanted = _values.dtype_of(node.inputs[1])
    else:
        to = cast("int | str", attribute(node, "to", 0))
        wanted = ir.DataType[to] if isinstance(to, str) else ir.DataType(to)  # a name in opsets below 6
    found = _values.dtype_of(node.inputs[0])
    if found is None or wanted is None:
        return "the types are not known"
    return None if found == wanted else f"it converts {found} to {wanted}"


def _single_input(node: ir.Node, _: int) -> str | None:
    return None if len(node.inputs) == 1 else f"it has {len(node.inputs)} inputs"


def _single_output(node: ir.Node, _: int) -> str | None:
    return None if len(node.outputs) == 1 else f"it has {len(node.outputs)} outputs"


def _reshape(node: ir.Node, opset: int) -> str | None:
    before = sizes(node.inputs[0])
    after = reshaped(node, opset, before)
    if before is None or after is None:
        return "the shapes are not known"
    return None if same_sizes(before, after) else f"the shape {list(before)} may become {list(after)}"


def _transpose(node: ir.Node, _: int) -> str | None:
    perm, dims = permutation(node), sizes(node.inputs[0])
    if perm == tuple(range(len(perm))):
        return None
    if dims is None:
        return f"perm is {list(perm)}"
    moved = [axis for axis in perm if dims[axis] != 1]
    keeps = moved == sorted(moved) and same_sizes(dims, tuple(dims[axis] for axis in perm))
    return None if keeps else f"perm is {list(perm)} for the shape {list(dims)}"


def _expand(node: ir.Node, _: int) -> str | None:
    target, dims = integers(node, 1), sizes(node.inputs[0])
    if target is None or dims is None:
        return "the shapes are not known"
    if len(target) > len(dims):
        return "it adds axes"
    known = dims[len(dims) - len(target) :]
    fits = all(size in (1, dim) for size, dim in zip(target, known, strict=True))
    return None if fits else f"the shape {list(dims)} may become {target}"


def _slice(node: ir.Node, opset: int) -> str | None:
    data = node.inputs[0]
    for axis, taken in slices(node, opset).items():
        if not taken.is_whole(_values.static_dim(data, axis)):
            return f"axis {axis} is taken from {taken.start} to {taken.end} by {taken.step}"
    return None


def _pad(node: ir.Node, opset: int) -> str | None:
    pads = integers(node, 1 if opset >= 11 else 9, "pads" if opset >= 2 else "paddings")
    if pads is None:
        return "its pads are not known"
    return f"its pads are {pads}" if any(pads) else None


def _pool(node: ir.Node, _: int) -> str | None:
    for name in ("kernel_shape", "strides"):
        found = attribute(node, name, ())
        if any(size != 1 for size in cast("Sequence[int]", found)):
            return f"{name} is {found}"
    pads = cast("Sequence[int]", attribute(node, "pads", ()))
    return f"pads is {pads}" if any(pads) else None


def _global_pool(node: ir.Node, _: int) -> str | None:
    shape = _values.dims(node.inputs[0])
    if shape is None:
        return "the shape is not known"
    return None if all(dim == 1 for dim in shape[2:]) else f"it pools {list(map(str, shape[2:]))}"


def _reduction(node: ir.Node, opset: int) -> str | None:
    data, axes = node.inputs[0], axes_of(node)
    if axes is None and integer(node, "noop_with_empty_axes", 0):
        return None
    if integer(node, "keepdims", 1) != 1:
        return "it does not keep its axes"
    rank = _values.rank(data)
    if rank is None:
        return "the shape is not known"
    reduced = range(rank) if axes is None else axes
    return next((f"axis {axis} may not be of size 1" for axis in reduced if _values.static_dim(data, axis) != 1), None)


def _resize(node: ir.Node, opset: int) -> str | None:
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    # tf_half_pixel_for_nn samples between the elements, even at scale 1
    if mode in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return f"coordinate_transformation_mode is {mode}"
    if operand(node, 3) is not None:
        return _resized_to(node, opset)
    index = 1 if opset < 11 or node.op_type == "Upsample" else 2
    scales = (
        _values.constant(node.inputs[index]) if operand(node, index) is not None else attribute(node, "scales", None)
    )
    if scales is None:
        return "its scales are not constant"
    return None if np.all(np.asarray(scales) == 1) else f"its scales are {np.asarray(scales).tolist()}"


def _resized_to(node: ir.Node, opset: int) -> str | None:
    data, wanted = node.inputs[0], integers(node, 3) or []
    axes = cast("Sequence[int] | None", attribute(node, "axes")) if opset >= 18 else None
    for axis, size in zip(axes or range(len(wanted)), wanted, strict=True):
        if _values.static_dim(data, axis) != size:
            return f"axis {axis} is resized to {size}"
    return None


def _tile(node: ir.Node, opset: int) -> str | None:
    repeats = integers(node, 1) if opset >= 6 else None
    return None if repeats is not None and all(count == 1 for count in repeats) else f"it repeats {repeats} times"


def _clip(node: ir.Node, opset: int) -> str | None:
    # The defaults of the older operator are finite: they limit infinities.
    limited = opset < 11 or operand(node, 1) is not None or operand(node, 2) is not None
    return "it has limits" if limited else None


def _gather(node: ir.Node, _: int) -> str | None:
    data, axis = node.inputs[0], integer(node, "axis", 0)
    size = _values.static_dim(data, axis)
    if _values.rank(node.inputs[1]) != 1 or size is None:
        return "the shapes are not known, or not those of all elements"
    if _values.known_shape(node.inputs[1]) != (size,):
        return f"it does not take the {size} elements of axis {axis}"
    taken = [index % size for index in integers(node, 1) or []]
    return None if taken == list(range(size)) else f"it changes the order along axis {axis}"


def _einsum(node: ir.Node, _: int) -> str | None:
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    operands, arrow, result = equation.partition("->")
    if len(node.inputs) > 1 or not re.fullmatch(r"[A-Za-z]+", operands) or len(set(operands)) < len(operands):
        return f"the equation is {equation}"
    same = operands == (result if arrow else "".join(sorted(operands)))
    return None if same else f"the equation is {equation}"


def _block(node: ir.Node, _: int) -> str | None:
    size = integer(node, "blocksize", 0)
    return None if size == 1 else f"blocksize is {size}"


def _leaky_relu(node: ir.Node, _: int) -> str | None:
    alpha = attribute(node, "alpha", 0.01)
    return None if alpha == 1 else f"alpha is {alpha}"


def _prelu(node: ir.Node, _: int) -> str | None:
    slope = _values.constant(node.inputs[1])
    return None if slope is not None and np.all(slope == 1) else "its slope is not 1"


def _cumulative(node: ir.Node, _: int) -> str | None:
    axes = integers(node, 1) or [0]
    if integer(node, "exclusive", 0):
        return "it is exclusive"
    return None if _values.static_dim(node.inputs[0], axes[0]) == 1 else f"axis {axes[0]} may not be of size 1"


CHECKS: dict[str, Check] = {
    "Cast": _cast,
    "CastLike": _cast,
    **dict.fromkeys(("Concat", "Max", "Mean", "Min", "Sum"), _single_input),
    "Split": _single_output,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _pad,
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), _reduction),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Tile": _tile,
    "Clip": _clip,
    "Gather": _gather,
    "Einsum": _einsum,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _block),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "CumSum": _cumulative,
}
