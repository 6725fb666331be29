"""What changed from one opset to the next, where the schema alone does not tell: the way up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._build import Builder
from infconv.passes._opset import Adapter, Table, attribute, get_input, set_input, take_attribute
from infconv.passes._opset_scan import batched_scan
from infconv.passes._pattern import Refuse


def _int64(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def _known_rank(value: ir.Value | None) -> int:
    rank = _values.rank(value)
    if rank is None:
        raise Refuse(f"the rank of '{value.name if value else ''}' is not known")
    return rank


def _is_wanted(node: ir.Node, index: int) -> bool:
    """Whether anybody uses the output `index`."""
    output = node.outputs[index] if index < len(node.outputs) else None
    return output is not None and bool(_values.use_count(output) or output.is_graph_output())


# --- opset 2 to 7: Caffe2's conventions go -----------------------------------------------------------------------


def _broadcast(node: ir.Node, op: Builder) -> None:
    """`broadcast=1, axis=k` lined B up with the dimensions of A from k on; since 7, numpy's rule lines up the last."""
    axis = take_attribute(node, "axis")
    if take_attribute(node, "broadcast", 0) and axis is not None:
        rank, own = _known_rank(node.inputs[0]), _known_rank(node.inputs[1])
        missing = rank - (axis % rank) - own
        if missing > 0:
            set_input(node, 1, op.Unsqueeze(node.inputs[1], axes=list(range(own, own + missing))))


def _gemm_7(node: ir.Node, op: Builder) -> None:
    take_attribute(node, "broadcast")


def _prelu_7(node: ir.Node, op: Builder) -> None:
    """The slope was one number for each channel (dimension 1); since 7 it broadcasts as in numpy."""
    slope = _values.known_shape(node.inputs[1])
    if slope in {(), (1,)}:
        return
    rank = _known_rank(node.inputs[0])
    if _known_rank(node.inputs[1]) == 1 and rank > 2:
        set_input(node, 1, op.Unsqueeze(node.inputs[1], axes=list(range(1, rank - 1))))


def _inference_7(node: ir.Node, op: Builder) -> None:
    if not take_attribute(node, "is_test", 0):
        raise Refuse("is_test is 0: it trains")


def _recurrent_7(node: ir.Node, op: Builder) -> None:
    if not take_attribute(node, "output_sequence", 0) and _is_wanted(node, 0):
        raise Refuse("its output Y is used, but output_sequence is 0")


def _concat_4(node: ir.Node, op: Builder) -> None:
    node.attributes.add(ir.AttrInt64("axis", attribute(node, "axis", 1)))


def _cast_6(node: ir.Node, op: Builder) -> None:
    name = take_attribute(node, "to")
    if name.upper() not in ir.DataType.__members__:
        raise Refuse(f"'{name}' is not a type")
    node.attributes.add(ir.AttrInt64("to", ir.DataType[name.upper()].value))


def _reshape_5(node: ir.Node, op: Builder) -> None:
    take_attribute(node, "consumed_inputs")
    set_input(node, 1, op.const(_int64(*take_attribute(node, "shape", ()))))


def _pad_2(node: ir.Node, op: Builder) -> None:
    node.attributes.add(ir.AttrInt64s("pads", take_attribute(node, "paddings")))


def _lp_pool_2(node: ir.Node, op: Builder) -> None:
    p = take_attribute(node, "p", 2.0)
    if p != int(p):
        raise Refuse(f"p is {p}, not an integer")
    node.attributes.add(ir.AttrInt64("p", int(p)))


def _split_2(node: ir.Node, op: Builder) -> None:
    sizes = _values.constant(get_input(node, 1))
    if get_input(node, 1) is not None and sizes is None:
        raise Refuse("its sizes are computed")
    if sizes is not None:
        node.attributes.add(ir.AttrInt64s("split", sizes.astype(int).tolist()))
    node.resize_inputs(1)


def _tile_6(node: ir.Node, op: Builder) -> None:
    """`tiles` copies along one `axis`; since 6, a number of copies for each dimension."""
    tiles, axis = _values.scalar(node.inputs[1]), _values.scalar(node.inputs[2])
    if tiles is None or axis is None:
        raise Refuse("its counts are computed")
    repeats = np.ones(_known_rank(node.inputs[0]), np.int64)
    repeats[int(axis)] = int(tiles)
    node.resize_inputs(2)
    set_input(node, 1, op.const(repeats))


def _upsample_7(node: ir.Node, op: Builder) -> None:
    scales = [1.0, 1.0, take_attribute(node, "height_scale"), take_attribute(node, "width_scale")]
    node.attributes.add(ir.AttrFloat32s("scales", scales))


# --- opset 9 to 12: attributes become inputs ---------------------------------------------------------------------


def _batch_normalization_9(node: ir.Node, op: Builder) -> None:
    if not take_attribute(node, "spatial", 1):
        raise Refuse("spatial is 0: statistics for each element")


def _upsample_9(node: ir.Node, op: Builder) -> None:
    set_input(node, 1, op.const(np.array(take_attribute(node, "scales"), np.float32)))


def _upsample_10(node: ir.Node, op: Builder) -> Sequence[ir.Value]:
    return [op.Resize(*node.inputs, mode=attribute(node, "mode", "nearest"))]


def _resize_11(node: ir.Node, op: Builder) -> None:
    """Resize 10 is what 11 calls asymmetric, rounded towards what is larger in the input (as ONNX Runtime does)."""
    scales = node.inputs[1]
    if attribute(node, "mode", "nearest") == "nearest":
        factors = _values.constant(scales)
        shrinks = factors is not None and bool((factors < 1).any())
        if factors is not None and shrinks and bool((factors > 1).any()):
            raise Refuse("it shrinks one dimension and enlarges another")
        node.attributes.add(ir.AttrString("nearest_mode", "ceil" if shrinks else "floor"))
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
    set_input(node, 1, op.const(np.zeros(0, np.float32)))
    set_input(node, 2, scales)


def _slice_10(node: ir.Node, op: Builder) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        value = take_attribute(node, name)
        if value is not None:
            set_input(node, index, op.const(_int64(*value)))


def _top_k_10(node: ir.Node, op: Builder) -> None:
    set_input(node, 1, op.const(_int64(take_attribute(node, "k"))))


def _dropout_10(node: ir.Node, op: Builder) -> None:
    if _is_wanted(node, 1):
        raise Refuse("its mask is used, which has another type there")
    node.resize_outputs(1)


def _dropout_12(node: ir.Node, op: Builder) -> None:
    if _is_wanted(node, 1):
        raise Refuse("its mask is used, which older opsets do not define for inference")
    ratio = take_attribute(node, "ratio", 0.5)
    set_input(node, 1, op.const(np.array(ratio, np.float32)))


def _clip_11(node: ir.Node, op: Builder) -> None:
    for index, name in enumerate(("min", "max"), start=1):
        limit = take_attribute(node, name)
        if limit is not None:
            set_input(node, index, op.const(limit, like=node.inputs[0]))


def _pad_11(node: ir.Node, op: Builder) -> None:
    set_input(node, 1, op.const(_int64(*take_attribute(node, "pads"))))
    value = take_attribute(node, "value", 0.0)
    if value and attribute(node, "mode", "constant") == "constant":
        set_input(node, 2, op.const(value, like=node.inputs[0]))


def _scatter_11(node: ir.Node, op: Builder) -> Sequence[ir.Value]:
    return [op.ScatterElements(*node.inputs, axis=attribute(node, "axis", 0))]


# --- opset 13 and later ------------------------------------------------------------------------------------------


def _axes_to_input(node: ir.Node, op: Builder) -> None:
    axes = take_attribute(node, "axes")
    if axes:
        set_input(node, 1, op.const(_int64(*axes)))


def _split_13(node: ir.Node, op: Builder) -> None:
    sizes = take_attribute(node, "split")
    if sizes:
        set_input(node, 1, op.const(_int64(*sizes)))


def _split_18(node: ir.Node, op: Builder) -> None:
    if get_input(node, 1) is None:
        node.resize_inputs(1)
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _softmax_13(node: ir.Node, op: Builder) -> Sequence[ir.Value] | None:
    """All dimensions from `axis` on were normalized together; since 13 only `axis` itself."""
    x, axis = node.inputs[0], attribute(node, "axis", 1)
    dims = _values.dims(x)
    if axis == -1 or (dims is not None and all(dim == 1 for dim in dims[axis % len(dims) + 1 :])):
        node.attributes.add(ir.AttrInt64("axis", axis))
        return None
    flat = op.call(node.op_type, op.Flatten(x, axis=axis), axis=-1)
    return [op.Reshape(flat, op.Shape(x), _like=node.outputs[0])]


def _batch_normalization_14(node: ir.Node, op: Builder) -> None:
    if any(_is_wanted(node, index) for index in range(1, len(node.outputs))):
        raise Refuse("its statistics are outputs: it trains")
    node.resize_outputs(1)


def _roi_align_16(node: ir.Node, op: Builder) -> None:
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _grid_sample_20(node: ir.Node, op: Builder) -> None:
    mode = attribute(node, "mode", "bilinear")
    node.attributes.add(ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, "nearest")))


def _dft_20(node: ir.Node, op: Builder) -> None:
    axis = take_attribute(node, "axis", 1)
    set_input(node, 2, op.const(np.array(axis, np.int64)))


def _group_normalization_21(node: ir.Node, op: Builder) -> None:
    """Scale and bias were given for each group; since 21 for each channel."""
    groups = attribute(node, "num_groups")
    channels = _values.static_dim(node.inputs[0], 1)
    if channels is None:
        size = op.Div(op.Shape(node.inputs[0], start=1, end=2), op.const(_int64(groups)))
        shape = op.Concat(op.const(_int64(1)), size, axis=0)
    else:
        shape = op.const(_int64(1, channels // groups))
    for index in (1, 2):
        column = op.Unsqueeze(node.inputs[index], op.const(_int64(1)))
        set_input(node, index, op.Reshape(op.Expand(column, shape), op.const(_int64(-1))))


_BROADCASTING: dict[str, Adapter] = dict.fromkeys(
    ("Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "Equal", "Greater", "Less", "Pow"), _broadcast
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: Table = {
    **{(name, 7): adapter for name, adapter in _BROADCASTING.items()},
    **{(f"Reduce{name}", 18): _axes_to_input for name in _REDUCTIONS},
    **{(name, 13): _softmax_13 for name in ("Softmax", "LogSoftmax", "Hardmax")},
    **{(name, 13): _axes_to_input for name in ("Squeeze", "Unsqueeze", "ReduceSum")},
    **{(name, 7): _recurrent_7 for name in ("RNN", "LSTM")},
    ("GRU", 7): _recurrent_7,
    ("BatchNormalization", 7): _inference_7,
    ("BatchNormalization", 9): _batch_normalization_9,
    ("BatchNormalization", 14): _batch_normalization_14,
    ("Cast", 6): _cast_6,
    ("Clip", 11): _clip_11,
    ("Concat", 4): _concat_4,
    ("DFT", 20): _dft_20,
    ("Dropout", 7): _inference_7,
    ("Dropout", 10): _dropout_10,
    ("Dropout", 12): _dropout_12,
    ("Gemm", 7): _gemm_7,
    ("GlobalLpPool", 2): _lp_pool_2,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_normalization_21,
    ("LpPool", 2): _lp_pool_2,
    ("PRelu", 7): _prelu_7,
    ("Pad", 2): _pad_2,
    ("Pad", 11): _pad_11,
    ("Reshape", 5): _reshape_5,
    ("Resize", 11): _resize_11,
    ("RoiAlign", 16): _roi_align_16,
    ("Scan", 9): batched_scan,
    ("Scatter", 11): _scatter_11,
    ("Slice", 10): _slice_10,
    ("Split", 2): _split_2,
    ("Split", 13): _split_13,
    ("Split", 18): _split_18,
    ("Tile", 6): _tile_6,
    ("TopK", 10): _top_k_10,
    ("Upsample", 7): _upsample_7,
    ("Upsample", 9): _upsample_9,
    ("Upsample", 10): _upsample_10,
}
