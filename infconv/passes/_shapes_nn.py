"""Shapes and types of convolutions, pools, matrix products and recurrent operators."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes._dims import Dim, Dims, broadcast_dims, floor_div
from infconv.passes._op import Op, Row, Unknown, best

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64


def _conv(op: Op) -> list[Dims]:
    return _convolved(op, weight=1)


def _qlinear_conv(op: Op) -> list[Dims]:
    return _convolved(op, weight=3)


def _convolved(op: Op, weight: int) -> list[Dims]:
    weight_dims = op.dims(weight)
    kernel = op.attr_ints("kernel_shape") or op.ints_of(weight_dims[2:])
    return [(op.dims(0)[0], weight_dims[0], *_windows(op, op.dims(0)[2:], kernel))]


def _pool(op: Op) -> list[Dims]:
    dims = op.dims(0)
    kernel = list(op.required("kernel_shape").as_ints())
    return [(*dims[:2], *_windows(op, dims[2:], kernel))] * len(op.node.outputs)


def _windows(op: Op, sizes: Dims, kernel: list[int]) -> Dims:
    """Return how many positions a sliding window has along each spatial axis."""
    rank = len(sizes)
    strides = op.attr_ints("strides") or [1] * rank
    dilations = op.attr_ints("dilations") or [1] * rank
    auto_pad = op.attr_text("auto_pad", "NOTSET")
    if len(kernel) != rank or op.attr_int("ceil_mode", 0):
        raise Unknown("versions differ in whether the last window may start in the padding")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(-floor_div(-size, stride) for size, stride in zip(sizes, strides, strict=True))
    pads = _explicit_pads(op, auto_pad, rank)
    result: list[Dim] = []
    for axis, size in enumerate(sizes):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        result.append(floor_div(size + pads[axis] + pads[axis + rank] - extent, strides[axis]) + 1)
    return tuple(result)


def _explicit_pads(op: Op, auto_pad: str, rank: int) -> list[int]:
    if auto_pad not in ("NOTSET", "VALID"):
        raise Unknown(auto_pad)
    pads = op.attr_ints("pads") if auto_pad == "NOTSET" else None
    return pads or [0] * (2 * rank)


def _global_pool(op: Op) -> list[Dims]:
    dims = op.dims(0)
    return [dims[:2] + (1,) * (len(dims) - 2)]


def _conv_transpose(op: Op) -> list[Dims]:
    dims, weight = op.dims(0), op.dims(1)
    rank = len(dims) - 2
    channels = weight[1] * op.attr_int("group", 1)
    if op.has_attribute("output_shape"):
        return [(dims[0], channels, *(op.attr_ints("output_shape") or [])[-rank:])]
    kernel = op.attr_ints("kernel_shape") or op.ints_of(weight[2:])
    strides = op.attr_ints("strides") or [1] * rank
    dilations = op.attr_ints("dilations") or [1] * rank
    extra = op.attr_ints("output_padding") or [0] * rank
    auto_pad = op.attr_text("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return [(dims[0], channels, *(size * stride for size, stride in zip(dims[2:], strides, strict=True)))]
    pads = _explicit_pads(op, auto_pad, rank)
    sizes: list[Dim] = []
    for axis in range(rank):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        sizes.append(strides[axis] * (dims[2 + axis] - 1) + extra[axis] + extent - pads[axis] - pads[axis + rank])
    return [(dims[0], channels, *sizes)]


def _gemm(op: Op) -> list[Dims]:
    a, b = op.dims(0), op.dims(1)
    return [(a[1 if op.attr_int("transA", 0) else 0], b[0 if op.attr_int("transB", 0) else 1])]


def _matmul(op: Op) -> list[Dims]:
    return [multiplied(op.dims(0), op.dims(1))]


def _qlinear_matmul(op: Op) -> list[Dims]:
    return [multiplied(op.dims(0), op.dims(3))]


def multiplied(a: Dims, b: Dims) -> Dims:
    """Return the shape of numpy's `a @ b`."""
    if not a or not b:
        raise Unknown("scalar operand")
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else ()
    return broadcast_dims([a[:-2], b[:-2]]) + rows + columns


def _einsum(op: Op) -> list[Dims]:
    equation = op.required("equation").as_string().replace(" ", "")
    if "." in equation:
        raise Unknown("ellipsis")
    left, arrow, right = equation.partition("->")
    sizes: dict[str, Dim] = {}
    for index, letters in enumerate(left.split(",")):
        for letter, dim in zip(letters, op.dims(index), strict=True):
            sizes[letter] = (
                dim if sizes.get(letter, 1) == 1 else best(sizes[letter], dim) if dim != 1 else sizes[letter]
            )
    if not arrow:
        right = "".join(sorted(letter for letter in sizes if left.count(letter) == 1))
    return [tuple(sizes[letter] for letter in right)]


def _recurrent(op: Op) -> list[Dims]:
    dims = op.dims(0)
    hidden = op.attr_int("hidden_size", 0) or op.dims(2)[2]
    directions = 2 if op.attr_text("direction", "forward") == "bidirectional" else 1
    if op.attr_int("layout", 0):
        batch, steps = dims[:2]
        last: Dims = (batch, directions, hidden)
        return [(batch, steps, directions, hidden), last, last]
    steps, batch = dims[:2]
    last = (directions, batch, hidden)
    return [(steps, directions, batch, hidden), last, last]


_POOLS = "AveragePool MaxPool LpPool"
_GLOBAL_POOLS = "GlobalAveragePool GlobalMaxPool GlobalLpPool"
RULES: dict[str, Row] = {
    "Conv": (_conv, (0,)),
    "ConvInteger": (_conv, (_INT32,)),
    "QLinearConv": (_qlinear_conv, (7,)),
    **dict.fromkeys(_POOLS.split(), (_pool, (0, _INT64))),
    **dict.fromkeys(_GLOBAL_POOLS.split(), (_global_pool, (0,))),
    "ConvTranspose": (_conv_transpose, (0,)),
    "Gemm": (_gemm, (0,)),
    "MatMul": (_matmul, (0,)),
    "MatMulInteger": (_matmul, (_INT32,)),
    "QLinearMatMul": (_qlinear_matmul, (7,)),
    "Einsum": (_einsum, (0,)),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), (_recurrent, (0,))),
}
