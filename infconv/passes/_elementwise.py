"""Operators that work on each element by itself, and what broadcasting does to shapes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from infconv.passes._dims import Dims, equal
from infconv.passes._moves import sizes

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Each element of the result depends on that of the first input; other inputs are single numbers, or only a type."""
BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
"""All inputs are broadcast to the shape of the result (since opset 8)."""
SAME_SHAPE = (
    *UNARY, "BatchNormalization", "CumSum", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization",
    "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "Softmax", "Trilu",
)  # fmt: skip
"""The result has the shape of the first input."""


def is_needless(source: ir.Value, expanded: ir.Value, others: Sequence[ir.Value], kept: int = 0) -> bool:
    """Whether broadcasting `source` with `others` is known to give the same as with `expanded`, for which it stands.

    `expanded` is `source` repeated along axes of size 1, perhaps with new axes in front. The last `kept` axes are not
    broadcast by the operator.
    """
    small, large, rest = sizes(source), sizes(expanded), [sizes(other) for other in others]
    if small is None or large is None or len(small) < kept or not _is_repeated(small, large):
        return False
    known = [dims for dims in rest if dims is not None and len(dims) >= kept]
    for position in range(1, len(large) + 1):
        size, own = large[-position], small[-position] if position <= len(small) else None
        if own is not None and equal(own, size):
            continue
        if position <= kept or not any(position <= len(d) and (size == 1 or equal(d[-position], size)) for d in known):
            return False
    return True


def _is_repeated(small: Dims, large: Dims) -> bool:
    aligned = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(a == 1 or equal(a, b) for a, b in aligned)


_COMMON = frozenset({
    ir.DataType.BOOL, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT16, ir.DataType.INT32,
    ir.DataType.INT64, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.UINT8,
})  # fmt: skip


def is_common(dtype: ir.DataType | None) -> bool:
    """Whether runtimes can be trusted to move such elements: few have Expand of bfloat16, or Slice of float8."""
    return dtype in _COMMON
