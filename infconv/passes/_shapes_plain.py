"""Shapes and types of element-wise, normalising, reducing and generating operators."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes._dims import Dim, Dims, broadcast_dims, floor_div, is_natural, product, unknown
from infconv.passes._op import DTypeRule, Op, Row, Unknown, axis_in, constant_tensor

_BOOL, _INT64, _FLOAT = ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.FLOAT
_SAME: tuple[DTypeRule, ...] = (0,)


def _like_first(op: Op) -> list[Dims]:
    return [op.dims(0)] * len(op.node.outputs)


def _broadcast(op: Op) -> list[Dims]:
    if op.opset < 7:  # the second operand was broadcast to the first, by attributes
        return [op.dims(0)]
    return [broadcast_dims(op.dims(index) for index in range(len(op.inputs)))]


def _layer_norm(op: Op) -> list[Dims]:
    dims = op.dims(0)
    axis = axis_in(op.attr_int("axis", -1), len(dims))
    statistics = dims[:axis] + (1,) * (len(dims) - axis)
    return [dims, statistics, statistics]


def _batch_norm(op: Op) -> list[Dims]:
    return [op.dims(0), *[op.dims(1)] * (len(op.node.outputs) - 1)]


def _reduce(op: Op) -> list[Dims]:
    axes = op.attr_or_input("axes", 1)
    if not axes and op.attr_int("noop_with_empty_axes", 0):
        return [op.dims(0)]
    return [reduced(op.dims(0), axes, keep=op.attr_int("keepdims", 1) == 1)]


def reduced(dims: Dims, axes: list[int] | None, *, keep: bool) -> Dims:
    """Return `dims` reduced along `axes` (all when there are none)."""
    gone = {axis_in(axis, len(dims)) for axis in axes} if axes else set(range(len(dims)))
    if keep:
        return tuple(1 if axis in gone else dim for axis, dim in enumerate(dims))
    return tuple(dim for axis, dim in enumerate(dims) if axis not in gone)


def _arg_reduce(op: Op) -> list[Dims]:
    return [reduced(op.dims(0), [op.attr_int("axis", 0)], keep=op.attr_int("keepdims", 1) == 1)]


def _top_k(op: Op) -> list[Dims]:
    dims = list(op.dims(0))
    axis = axis_in(op.attr_int("axis", -1), len(dims))
    count: Dim = op.attr_int("k", 0) if op.opset < 10 else op.elements(1)[0]
    dims[axis] = count if is_natural(count) else unknown()
    return [tuple(dims)] * 2


def _shape(op: Op) -> list[Dims]:
    return [(len(shape_slice(op)),)]


def shape_slice(op: Op) -> Dims:
    """Return the part of the input's shape that a Shape node asks for."""
    dims = op.dims(0)
    return dims[slice(op.attr_int("start", 0), op.attr_int("end", len(dims)))]


def _constant(op: Op) -> list[Dims]:
    tensor = constant_tensor(op.node.outputs[0])
    if tensor is None:
        raise Unknown
    return [tuple(op.ints_of([int(dim) for dim in tensor.shape.numpy()]))]


def _constant_type(op: Op) -> ir.DataType | None:
    tensor = constant_tensor(op.node.outputs[0])
    return None if tensor is None else tensor.dtype


def _constant_of_shape(op: Op) -> list[Dims]:
    return [tuple(dim if is_natural(dim) else unknown() for dim in op.elements(0))]


def _constant_of_shape_type(op: Op) -> ir.DataType | None:
    return op.required("value").as_tensor().dtype if op.has_attribute("value") else _FLOAT


def _range(op: Op) -> list[Dims]:
    if not all(op.has_content(index) for index in range(3)):
        return [(unknown(),)]
    start, limit, delta = (op.elements(index)[0] for index in range(3))
    if not isinstance(delta, int) or delta == 0:
        return [(unknown(),)]
    span = limit - start if delta > 0 else start - limit
    length = -floor_div(-span, abs(delta))  # the ceiling
    if isinstance(length, int):
        return [(max(length, 0),)]
    return [(length if is_natural(span) else unknown(),)]


def _one_hot(op: Op) -> list[Dims]:
    dims = list(op.dims(0))
    axis = op.attr_int("axis", -1)
    depth = op.elements(1)[0] if op.has_content(1) else unknown()
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, depth if is_natural(depth) else unknown())
    return [tuple(dims)]


def _non_zero(op: Op) -> list[Dims]:
    return [(len(op.dims(0)), unknown())]


def _cast_type(op: Op) -> ir.DataType | None:
    return ir.DataType(op.required("to").as_int())


def _attribute_type(name: str, default: int | ir.DataType) -> DTypeRule:
    """Return the rule for a type that attribute `name` gives, or else an input or a fixed type."""

    def rule(op: Op) -> ir.DataType | None:
        code = op.attr_int(name, 0)
        if code:
            return ir.DataType(code)
        return default if isinstance(default, ir.DataType) else op.dtype(default)

    return rule


def _quantized_type(op: Op) -> ir.DataType | None:
    if op.has(2):
        return op.dtype(2)
    return ir.DataType(op.attr_int("output_dtype", 0) or ir.DataType.UINT8)


def _mask_type(op: Op) -> ir.DataType | None:
    return _BOOL if op.opset >= 10 else op.dtype(0)


def _first_and_scalars(op: Op) -> list[Dims]:
    return [op.dims(0), (), ()]


def _size(op: Op) -> list[Dims]:
    return [()]


def shape_size(op: Op) -> Dim:
    """Return the number of elements of the input."""
    return product(op.dims(0))


def _rows(names: str, row: Row) -> dict[str, Row]:
    return dict.fromkeys(names.split(), row)


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumProd CumSum Elu Erf Exp Floor Gelu "
    "GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LeakyRelu Log LogSoftmax "
    "LpNormalization MeanVarianceNormalization Mish Neg Not PRelu RMSNormalization Reciprocal Relu ReverseSequence "
    "Round Scatter ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish "
    "Tan Tanh ThresholdedRelu Trilu"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

RULES: dict[str, Row] = {
    **_rows(_UNARY, (_like_first, _SAME)),
    **_rows("Add Sub Mul Div Pow Mod BitShift BitwiseAnd BitwiseOr BitwiseXor", (_broadcast, _SAME)),
    **_rows("And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual", (_broadcast, (_BOOL,))),
    **_rows("Max Mean Min Sum", (_broadcast, _SAME)),
    **_rows(_REDUCTIONS, (_reduce, _SAME)),
    **_rows("ArgMax ArgMin", (_arg_reduce, (_INT64,))),
    **_rows("IsInf IsNaN", (_like_first, (_BOOL,))),
    "Where": (_broadcast, (1,)),
    "Cast": (_like_first, (_cast_type,)),
    "CastLike": (_like_first, (1,)),
    "Dropout": (_like_first, (0, _mask_type)),
    "LayerNormalization": (_layer_norm, (0, _FLOAT)),
    "BatchNormalization": (_batch_norm, (0, 3)),
    "TopK": (_top_k, (0, _INT64)),
    "Shape": (_shape, (_INT64,)),
    "Size": (_size, (_INT64,)),
    "Constant": (_constant, (_constant_type,)),
    "ConstantOfShape": (_constant_of_shape, (_constant_of_shape_type,)),
    "Range": (_range, _SAME),
    "OneHot": (_one_hot, (2,)),
    "NonZero": (_non_zero, (_INT64,)),
    "EyeLike": (_like_first, (_attribute_type("dtype", 0),)),
    "Bernoulli": (_like_first, (_attribute_type("dtype", 0),)),
    "RandomNormalLike": (_like_first, (_attribute_type("dtype", 0),)),
    "RandomUniformLike": (_like_first, (_attribute_type("dtype", 0),)),
    "QuantizeLinear": (_like_first, (_quantized_type,)),
    "DequantizeLinear": (_like_first, (_attribute_type("output_dtype", 1),)),
    "DynamicQuantizeLinear": (_first_and_scalars, (ir.DataType.UINT8, _FLOAT, ir.DataType.UINT8)),
}
