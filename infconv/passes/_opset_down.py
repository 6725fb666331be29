"""What an older opset says otherwise, where the schemas alone do not tell: the way down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._opset import Adapter, Table, attribute, get_input, set_input, take_attribute
from infconv.passes._pattern import Refuse


def _take_constant(node: ir.Node, index: int) -> np.ndarray | None:
    """Return the constant in input `index` and make the input absent; None when it was absent."""
    value = get_input(node, index)
    if value is None:
        return None
    found = _values.constant(value)
    if found is None:
        raise Refuse(f"'{value.name}' must be constant there, but is computed")
    node.replace_input_with(index, None)
    return found


def _trim(node: ir.Node, most: int) -> None:
    if any(value is not None for value in node.inputs[most:]):
        raise Refuse("it has inputs that do not exist there")
    node.resize_inputs(min(most, len(node.inputs)))


def _rank(node: ir.Node) -> int:
    rank = _values.rank(node.inputs[0])
    if rank is None:
        raise Refuse("the rank of its input is not known")
    return rank


def _ints_to_attribute(node: ir.Node, op: Builder, *, index: int, name: str) -> None:
    """Input `index`, a constant list of integers, becomes the attribute `name`."""
    numbers = _take_constant(node, index)
    _trim(node, index)
    if numbers is not None:
        node.attributes.add(ir.AttrInt64s(name, numbers.reshape(-1).tolist()))


def _reduction(node: ir.Node, op: Builder) -> None:
    """No axes, or an empty list of them, means all axes in either form; `noop_with_empty_axes` means none."""
    keeps = take_attribute(node, "noop_with_empty_axes", 0)
    _ints_to_attribute(node, op, index=1, name="axes")
    if not node.attributes.get_ints("axes", ()):
        node.attributes.pop("axes", None)
        if keeps:
            raise Refuse("noop_with_empty_axes is set, and there are no axes")


def _no_negative_axes(node: ir.Node, op: Builder) -> None:
    """Before opset 11, axes count from the front only."""
    axes, axis = attribute(node, "axes"), attribute(node, "axis")
    if axes is not None and min(axes, default=0) < 0:
        extra = len(axes) if node.op_type == "Unsqueeze" else 0
        node.attributes.add(ir.AttrInt64s("axes", [a % (_rank(node) + extra) for a in axes]))
    if axis is not None and axis < 0:
        node.attributes.add(ir.AttrInt64("axis", axis % _rank(node)))


def _softmax_11(node: ir.Node, op: Builder) -> Sequence[ir.Value] | None:
    """All dimensions from `axis` on are normalized together there, so the one that is meant must be the last."""
    x = node.inputs[0]
    rank = _rank(node)
    axis = attribute(node, "axis", -1) % rank
    dims = _values.dims(x) or ()
    if all(dim == 1 for dim in dims[axis + 1 :]):
        node.attributes.add(ir.AttrInt64("axis", axis))
        return None
    order = [i for i in range(rank) if i != axis] + [axis]
    last = op.call(node.op_type, op.Transpose(x, perm=order), axis=rank - 1)
    return [op.Transpose(last, perm=np.argsort(order).tolist(), _like=node.outputs[0])]


def _split_13(node: ir.Node, op: Builder) -> None:
    """Without sizes, parts are equal there; `num_outputs` allows a smaller last one."""
    count = take_attribute(node, "num_outputs", len(node.outputs))
    if get_input(node, 1) is not None:
        return
    size = _values.static_dim(node.inputs[0], attribute(node, "axis", 0))
    if size is None:
        raise Refuse("the size that it splits is not known")
    if size % count:
        part = -(-size // count)
        set_input(node, 1, op.const(np.array([part] * (count - 1) + [size - part * (count - 1)], np.int64)))


def _clip_6(node: ir.Node, op: Builder) -> None:
    for index, name in enumerate(("min", "max"), start=1):
        limit = _take_constant(node, index)
        if limit is not None:
            node.attributes.add(ir.AttrFloat32(name, float(limit)))
    _trim(node, 1)


def _pad_13(node: ir.Node, op: Builder) -> None:
    axes = _take_constant(node, 3)
    _trim(node, 3)
    if axes is None:
        return
    pads, rank = _take_constant(node, 1), _rank(node)
    assert pads is not None
    full = np.zeros((2, rank), np.int64)
    full[:, axes] = pads.reshape(2, -1)
    set_input(node, 1, op.const(full.reshape(-1)))


def _pad_2(node: ir.Node, op: Builder) -> None:
    value = _take_constant(node, 2)
    pads = _take_constant(node, 1)
    _trim(node, 1)
    assert pads is not None
    node.attributes.add(ir.AttrInt64s("pads", pads.tolist()))
    if value is not None:
        node.attributes.add(ir.AttrFloat32("value", float(value.reshape(()))))


def _slice_1(node: ir.Node, op: Builder) -> None:
    steps = _take_constant(node, 4)
    if steps is not None and (steps != 1).any():
        raise Refuse("its steps are not 1")
    for index, name in ((3, "axes"), (2, "ends"), (1, "starts")):
        numbers = _take_constant(node, index)
        if numbers is not None:
            node.attributes.add(ir.AttrInt64s(name, numbers.tolist()))
    _trim(node, 1)
    _no_negative_axes(node, op)


def _top_k_1(node: ir.Node, op: Builder) -> None:
    k = _take_constant(node, 1)
    assert k is not None
    _trim(node, 1)
    node.attributes.add(ir.AttrInt64("k", int(k.reshape(()))))


def _dropout_10(node: ir.Node, op: Builder) -> None:
    training = _take_constant(node, 2)
    if training is not None and training.any():
        raise Refuse("training_mode is true")
    ratio = _take_constant(node, 1)
    _trim(node, 1)
    take_attribute(node, "seed")
    node.attributes.add(ir.AttrFloat32("ratio", 0.5 if ratio is None else float(ratio)))


def _resize_11(node: ir.Node, op: Builder) -> None:
    for index in (1, 2):
        if get_input(node, index) is None:
            set_input(node, index, op.const(np.zeros(0, np.float32)))


def _resize_10(node: ir.Node, op: Builder) -> None:
    mode = attribute(node, "mode", "nearest")
    coordinates = take_attribute(node, "coordinate_transformation_mode", "half_pixel")
    nearest = take_attribute(node, "nearest_mode", "round_prefer_floor")
    scales = _values.constant(get_input(node, 2))
    if coordinates != "asymmetric" or mode not in ("nearest", "linear"):
        raise Refuse(f"it resizes with {mode}, {coordinates}")
    if scales is None or not scales.size:
        raise Refuse("its scales are computed")
    fits = {"floor": bool((scales >= 1).all()), "ceil": bool((scales <= 1).all())}
    if mode == "nearest" and not fits.get(nearest):
        raise Refuse(f"it resizes with {mode}, {nearest}")
    for name in ("exclude_outside", "extrapolation_value", "cubic_coeff_a"):
        take_attribute(node, name)
    set_input(node, 1, node.inputs[2])
    node.resize_inputs(2)


def _roi_align_10(node: ir.Node, op: Builder) -> None:
    mode = take_attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode != "output_half_pixel":
        raise Refuse(f"coordinate_transformation_mode is {mode}, there it is output_half_pixel")


def _grid_sample_16(node: ir.Node, op: Builder) -> None:
    mode = attribute(node, "mode", "linear")
    if _values.rank(node.inputs[0]) != 4:
        raise Refuse("its input is not known to have 4 dimensions")
    node.attributes.add(ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, "nearest")))


def _dft_17(node: ir.Node, op: Builder) -> None:
    axis = _take_constant(node, 2)
    _trim(node, 2)
    axis = -2 if axis is None else int(axis.reshape(()))
    node.attributes.add(ir.AttrInt64("axis", axis % _rank(node)))


def _shape_13(node: ir.Node, op: Builder) -> Sequence[ir.Value] | None:
    start, end = take_attribute(node, "start", 0), take_attribute(node, "end")
    if not start and end is None:
        return None
    ends = np.iinfo(np.int64).max if end is None else end
    return [op.Slice(op.Shape(node.inputs[0]), np.array([start], np.int64), np.array([ends], np.int64))]


def _mod_13(node: ir.Node, op: Builder) -> None:
    dtype = _values.dtype_of(node.inputs[0])
    if not attribute(node, "fmod", 0) and (dtype is None or dtype.is_floating_point()):
        raise Refuse("with fmod 0, it takes integers only there")


def _constant_11(node: ir.Node, op: Builder) -> None:
    tensor = _values.tensor(node.outputs[0])
    if tensor is None:
        raise Refuse("its value has no other form there")
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", tensor))


_axes = partial(_ints_to_attribute, index=1, name="axes")
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_COUNT_FROM_FRONT: dict[str, Adapter] = dict.fromkeys(
    ("ArgMax", "ArgMin", "Concat", "Gather", "Squeeze", "Unsqueeze", "Split", "Flatten"), _no_negative_axes
)

ADAPTERS: Table = {
    **{(name, 1): adapter for name, adapter in _COUNT_FROM_FRONT.items()},
    **{(f"Reduce{name}", 13): _reduction for name in _REDUCTIONS},
    **{(f"Reduce{name}", 1): _no_negative_axes for name in (*_REDUCTIONS, "Sum")},
    **{(name, 11): _softmax_11 for name in ("Softmax", "LogSoftmax", "Hardmax")},
    **{(name, 1): _no_negative_axes for name in ("Softmax", "LogSoftmax", "Hardmax")},
    ("Concat", 4): _no_negative_axes,
    ("Flatten", 9): _no_negative_axes,
    ("Split", 2): _no_negative_axes,
    ("Clip", 6): _clip_6,
    ("Constant", 11): _constant_11,
    ("DFT", 17): _dft_17,
    ("Dropout", 10): _dropout_10,
    ("GridSample", 16): _grid_sample_16,
    ("Mod", 13): _mod_13,
    ("Pad", 2): _pad_2,
    ("Pad", 13): _pad_13,
    ("ReduceSum", 11): _reduction,
    ("Resize", 10): _resize_10,
    ("Resize", 11): _resize_11,
    ("RoiAlign", 10): _roi_align_10,
    ("Shape", 13): _shape_13,
    ("Slice", 1): _slice_1,
    ("Split", 11): partial(_ints_to_attribute, index=1, name="split"),
    ("Split", 13): _split_13,
    ("Squeeze", 11): _axes,
    ("TopK", 1): _top_k_1,
    ("Unsqueeze", 11): _axes,
}
