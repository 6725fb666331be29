"""Shapes and types of operators that move elements: Reshape, Slice, Concat, Gather, Resize and the like."""

from __future__ import annotations

import numpy as np

from infconv.passes._dims import (
    Dim,
    Dims,
    broadcast_dims,
    equal,
    floor_div,
    is_known,
    is_natural,
    maximum,
    minimum,
    product,
    unknown,
)
from infconv.passes._op import Op, Row, Unknown, axis_in, best, unknowns

_FAR = (1 << 31) - 1
"""Exporters write this, or more, for "to the end"."""


def reshaped(source: Dims | None, target: list[Dim], *, allow_zero: bool) -> Dims:
    """Return the shape that Reshape gives; `source` may be unknown.

    A symbolic element is taken as it is, although at size 0 it means "copy" unless `allow_zero`: an empty tensor whose
    target has a zero elsewhere is the one case where that differs.
    """
    result: list[Dim] = []
    holes: list[int] = []
    for axis, element in enumerate(target):
        if element == -1 or not (isinstance(element, int) or is_known(element) or is_natural(element)):
            holes.append(axis)
            result.append(unknown())
        elif element == 0 and not allow_zero:
            result.append(source[axis] if source is not None and axis < len(source) else unknown())
        else:
            result.append(element)
    if len(holes) == 1 and source is not None:
        others = product(dim for axis, dim in enumerate(result) if axis != holes[0])
        if others != 0:
            quotient = floor_div(product(source), others)
            result[holes[0]] = quotient if isinstance(quotient, int) or is_known(quotient) else unknown()
    return tuple(result)


def _reshape(op: Op) -> list[Dims]:
    try:
        source = op.dims(0)
    except Unknown:
        source = None
    if op.opset < 5:
        return [reshaped(source, [*op.required("shape").as_ints()], allow_zero=False)]
    if not op.has_content(1):
        return [unknowns(op.ints_of(op.dims(1))[0])]
    return [reshaped(source, op.elements(1), allow_zero=op.attr_int("allowzero", 0) == 1)]


def _flatten(op: Op) -> list[Dims]:
    dims, axis = op.dims(0), op.attr_int("axis", 1)
    axis = axis if axis >= 0 else axis + len(dims)
    return [(product(dims[:axis]), product(dims[axis:]))]


def _squeeze(op: Op) -> list[Dims]:
    dims, axes = op.dims(0), op.attr_or_input("axes", 1)
    if axes is None:
        return [tuple(dim for dim in op.ints_of(dims) if dim != 1)]
    gone = {axis_in(axis, len(dims)) for axis in axes}
    return [tuple(dim for axis, dim in enumerate(dims) if axis not in gone)]


def _unsqueeze(op: Op) -> list[Dims]:
    dims, axes = op.dims(0), op.attr_or_input("axes", 1)
    if axes is None:
        raise Unknown("axes")
    new = {axis_in(axis, len(dims) + len(axes)) for axis in axes}
    rest = iter(dims)
    return [tuple(1 if axis in new else next(rest) for axis in range(len(dims) + len(axes)))]


def _transpose(op: Op) -> list[Dims]:
    dims = op.dims(0)
    return [tuple(dims[axis] for axis in op.attr_ints("perm") or reversed(range(len(dims))))]


def _concat(op: Op) -> list[Dims]:
    shapes = [op.dims(index) for index in range(len(op.inputs))]
    axis = axis_in(op.attr_int("axis", 1), len(shapes[0]))
    result = list(shapes[0])
    for dims in shapes[1:]:
        for position, dim in enumerate(dims):
            result[position] = result[position] + dim if position == axis else best(result[position], dim)
    return [tuple(result)]


def _split(op: Op) -> list[Dims]:
    dims, count = op.dims(0), len(op.node.outputs)
    axis = axis_in(op.attr_int("axis", 0), len(dims))
    sizes: list[Dim] | None = op.elements(1) if op.has(1) else None
    if sizes is None and op.attr_ints("split"):
        sizes = [*op.required("split").as_ints()]
    if sizes is None:
        chunk = -floor_div(-dims[axis], count)
        sizes = [chunk] * (count - 1) + [dims[axis] - chunk * (count - 1)]
    return [(*dims[:axis], size if is_natural(size) else unknown(), *dims[axis + 1 :]) for size in sizes]


def _slice(op: Op) -> list[Dims]:
    dims = list(op.dims(0))
    for axis, (start, end, step) in slice_ranges(op, len(dims)).items():
        dims[axis] = _sliced(dims[axis], start, end, step)
    return [tuple(dims)]


def slice_ranges(op: Op, rank: int) -> dict[int, tuple[Dim | None, Dim | None, int | None]]:
    """Return axis -> (start, end, step) of a Slice node; None for what is not known."""
    if op.opset < 10:
        starts, ends = list(op.required("starts").as_ints()), list(op.required("ends").as_ints())
        axes, steps = op.attr_ints("axes") or range(len(starts)), [1] * len(starts)
        return {axis_in(a, rank): (b, e, s) for a, b, e, s in zip(axes, starts, ends, steps, strict=True)}
    count = op.ints_of(op.dims(1))[0]
    known = [op.elements(index) if op.has_content(index) else [None] * count for index in (1, 2)]
    axes = op.ints(3) if op.has(3) else range(count)
    steps = op.ints(4) if op.has(4) else [1] * count
    return {axis_in(a, rank): (b, e, s) for a, b, e, s in zip(axes, *known, steps, strict=True)}


def _sliced(dim: Dim, start: Dim | None, end: Dim | None, step: int | None) -> Dim:
    """Return the length of `range(start, end, step)` after ONNX's clamping to `dim`."""
    if start is None or end is None or step is None or step == 0:
        return unknown()
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(dim)))
    if step < 0:
        whole = step == -1 and start == -1 and isinstance(end, int) and end <= -_FAR
        return dim if whole else unknown()
    length = _span(dim, start, end)
    return -floor_div(-length, step)


def _span(dim: Dim, start: Dim, end: Dim) -> Dim:
    """Return how many elements lie between `start` and `end`, one of the three being symbolic."""
    to_end = (isinstance(end, int) and end >= _FAR) or is_natural(end - dim)
    if isinstance(start, int) and start < 0:
        if to_end:
            return minimum(-start, dim)  # the last elements
        first = maximum(dim + start, 0)
    elif is_natural(start):
        first = start
    else:
        return unknown()
    if to_end:
        last = dim
    elif isinstance(end, int) and end < 0:
        last = maximum(dim + end, 0)
    elif is_natural(end):
        last = minimum(end, dim)
    else:
        return unknown()
    return maximum(last - first, 0)


def _gather(op: Op) -> list[Dims]:
    dims = op.dims(0)
    axis = axis_in(op.attr_int("axis", 0), len(dims))
    return [dims[:axis] + op.dims(1) + dims[axis + 1 :]]


def _like_indices(op: Op) -> list[Dims]:
    return [op.dims(1)]


def _gather_nd(op: Op) -> list[Dims]:
    dims, indices = op.dims(0), op.dims(1)
    used = op.attr_int("batch_dims", 0) + op.ints_of(indices[-1:])[0]
    return [indices[:-1] + dims[used:]]


def _expand(op: Op) -> list[Dims]:
    return [tuple(dim if is_natural(dim) else unknown() for dim in broadcast_dims([op.dims(0), tuple(op.elements(1))]))]


def _tile(op: Op) -> list[Dims]:
    if op.opset < 6:
        raise Unknown("tiles and axis")
    sizes = [dim * count for dim, count in zip(op.dims(0), op.elements(1), strict=True)]
    return [tuple(size if is_natural(size) else unknown() for size in sizes)]


def _pad(op: Op) -> list[Dims]:
    dims = list(op.dims(0))
    axes = [axis_in(axis, len(dims)) for axis in op.ints(3)] if op.has(3) else list(range(len(dims)))
    pads: list[Dim] = op.elements(1) if op.opset >= 11 else [*(op.attr_ints("pads") or op.attr_ints("paddings") or ())]
    for position, axis in enumerate(axes):
        size = dims[axis] + pads[position] + pads[position + len(axes)]
        dims[axis] = size if isinstance(size, int) or is_known(size) else unknown()
    return [tuple(dims)]


def _depth_to_space(op: Op) -> list[Dims]:
    batch, channels, height, width = op.dims(0)
    block = op.required("blocksize").as_int()
    return [(batch, floor_div(channels, block * block), height * block, width * block)]


def _space_to_depth(op: Op) -> list[Dims]:
    batch, channels, height, width = op.dims(0)
    block = op.required("blocksize").as_int()
    return [(batch, channels * block * block, floor_div(height, block), floor_div(width, block))]


def _resize(op: Op) -> list[Dims]:
    dims = list(op.dims(0))
    if op.attr_text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return [unknowns(len(dims))]
    axes = op.attr_ints("axes") if op.opset >= 18 else None
    axes = [axis_in(axis, len(dims)) for axis in axes] if axes else list(range(len(dims)))
    if op.has(3) and equal(product(op.dims(3)), 0) is not True:
        sizes = op.elements(3) if op.has_content(3) else [unknown() for _ in axes]
        for axis, size in zip(axes, sizes, strict=True):
            dims[axis] = size if is_natural(size) else unknown()
        return [tuple(dims)]
    if op.attr_text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return [unknowns(len(dims))]
    return [_scaled(dims, axes, _scales(op, 1 if op.opset < 11 else 2))]


def _upsample(op: Op) -> list[Dims]:
    if op.opset < 7:
        raise Unknown("height_scale and width_scale")
    dims = list(op.dims(0))
    scales = _scales(op, 1) if op.opset >= 9 else list(op.required("scales").as_floats())
    return [_scaled(dims, list(range(len(dims))), scales)]


def _scales(op: Op, index: int) -> list[float] | None:
    try:
        return op.floats(index)
    except Unknown:
        return None


def _scaled(dims: list[Dim], axes: list[int], scales: list[float] | None) -> Dims:
    if scales is None:
        for axis in axes:
            dims[axis] = unknown()
        return tuple(dims)
    for axis, scale in zip(axes, scales, strict=True):
        dim = dims[axis]
        if isinstance(dim, int):
            dims[axis] = int(np.floor(np.float32(dim) * np.float32(scale)))
        elif scale == int(scale):
            dims[axis] = dim * int(scale)
        else:
            dims[axis] = floor_div(dim, int(1 / scale)) if scale in (0.5, 0.25, 0.125) else unknown()
    return tuple(dims)


RULES: dict[str, Row] = {
    "Reshape": (_reshape, (0,)),
    "Flatten": (_flatten, (0,)),
    "Squeeze": (_squeeze, (0,)),
    "Unsqueeze": (_unsqueeze, (0,)),
    "Transpose": (_transpose, (0,)),
    "Concat": (_concat, (0,)),
    "Split": (_split, (0,)),
    "Slice": (_slice, (0,)),
    "Gather": (_gather, (0,)),
    "GatherElements": (_like_indices, (0,)),
    "GatherND": (_gather_nd, (0,)),
    "Expand": (_expand, (0,)),
    "Tile": (_tile, (0,)),
    "Pad": (_pad, (0,)),
    "DepthToSpace": (_depth_to_space, (0,)),
    "SpaceToDepth": (_space_to_depth, (0,)),
    "Resize": (_resize, (0,)),
    "Upsample": (_upsample, (0,)),
}
