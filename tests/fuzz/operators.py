"""What a random graph is made of, first part: operators that compute, and compositions that exporters write."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from tests.fuzz.builder import LIMIT, Builder, Value, broadcast
from tests.fuzz.movement import pad_by

UNARY = ("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Erf", "Softplus", "Softsign", "Sin", "Cos", "Selu", "HardSigmoid")
MOVES = ("Identity", "Neg", "Abs", "Relu")
"""Unary operators that do not round."""
NEUTRAL = (0.0, 1.0, -1.0, 2.0, 0.5)


def unary(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    operator = b.choose(UNARY if b.opset < 14 else (*UNARY, "HardSwish"))
    y = b.same(operator, x, exact=x.exact and operator in MOVES)
    if b.chance(0.2):  # twice in a row, which some operators need not be
        b.same(operator, y, exact=y.exact and operator in MOVES)


def unary_with_attributes(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    operator = b.choose(["LeakyRelu", "Elu", "HardSigmoid", "Celu", "ThresholdedRelu"])
    if operator == "ThresholdedRelu" and not x.exact:
        operator = "LeakyRelu"
    b.same(operator, x, alpha=float(b.choose([0.01, 0.3, 1.0])))


def safe_unary(b: Builder) -> None:
    """Operators that need their input in a range, behind what puts it there."""
    x = b.pick()
    assert x is not None
    operator = b.choose(["Sqrt", "Log", "Reciprocal", "Exp"])
    if operator == "Exp":
        b.same("Exp", b.same("Tanh", x))
    else:
        b.same(operator, b.binary("Add", b.same("Abs", x), b.scalar(0.5)))


def binary(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    operator = b.choose(["Add", "Sub", "Mul", "Max", "Min"])
    other = b.pick(where=lambda v: (s := broadcast(x.shape, v.shape)) is not None and math.prod(map(abs, s)) <= LIMIT)
    if other is None or b.chance(0.1):
        other = x
    b.binary(operator, *([x, other] if b.chance(0.5) else [other, x]))


def with_constant(b: Builder) -> None:
    """x op c and c op x, where c is a scalar, one value a channel, or of the full shape; neutral ones included."""
    x = b.pick()
    assert x is not None
    shape = [d if d > 0 and b.chance(0.5) else 1 for d in x.shape][b.number(0, x.rank) :]
    array = b.rng.uniform(0.5, 2, shape) if b.chance(0.6) else np.full(shape, b.choose(NEUTRAL[1:]))
    operator = b.choose(["Add", "Sub", "Mul", "Div"])
    if operator in {"Add", "Sub"} and b.chance(0.2):
        array = np.zeros(shape)
    c = b.constant(array)
    if operator != "Div" and b.chance(0.4):
        b.binary(operator, c, x)
    else:
        b.binary(operator, x, c)


def power(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    exponent = b.choose([1.0, 2.0, 2.0, 3.0, 0.5])
    b.binary("Pow", b.same("Abs", x) if exponent == 0.5 else b.same("Tanh", x), b.constant(exponent))


def variadic(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    others = [v for v in b.reachable() if v.dtype == x.dtype and v.shape == x.shape]
    chosen = [x] + [b.choose(others) for _ in range(b.number(0, 2))]
    b.node(b.choose(["Sum", "Mean", "Max", "Min"]), chosen, *x.shape)


def clip(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    low = b.constant(b.choose([-1.0, 0.0, -0.5])) if b.chance(0.7) else None
    high = b.constant(b.choose([1.0, 6.0, 0.5])) if b.chance(0.7) or low is None else None
    if b.chance(0.3):
        x = b.same("Relu", x)
    b.same("Clip", x, low, *([high] if high else []))


def activation(b: Builder) -> None:
    """GELU in its forms, SiLU, HardSwish, Mish, leaky and clipped ReLU as exporters spell them out."""
    x = b.pick()
    assert x is not None
    kind = b.choose(["erf", "tanh", "quick", "silu", "hardswish", "mish", "softplus", "sigmoid"])
    if kind == "erf":
        inner = b.same("Erf", b.binary("Div", x, b.scalar(math.sqrt(2))))
        b.binary("Mul", b.binary("Mul", x, b.binary("Add", inner, b.scalar(1.0))), b.scalar(0.5))
    elif kind == "tanh":
        cube = b.binary("Mul", b.binary("Pow", x, b.constant(3.0)), b.scalar(0.044715))
        inner = b.same("Tanh", b.binary("Mul", b.binary("Add", x, cube), b.scalar(math.sqrt(2 / math.pi))))
        b.binary("Mul", b.binary("Mul", b.scalar(0.5), x), b.binary("Add", b.scalar(1.0), inner))
    elif kind in {"quick", "silu"}:
        inner = b.binary("Mul", x, b.scalar(1.702)) if kind == "quick" else x
        b.binary("Mul", x, b.same("Sigmoid", inner))
    elif kind == "hardswish":
        inner = b.same("Clip", b.binary("Add", x, b.constant(3.0)), b.constant(0.0), b.constant(6.0))
        b.binary("Div", b.binary("Mul", x, inner), b.constant(6.0))
    elif kind == "mish":
        b.binary("Mul", x, b.same("Tanh", b.same("Softplus", x)))
    elif kind == "softplus":
        b.same("Log", b.binary("Add", b.same("Exp", b.same("Tanh", x)), b.scalar(1.0)))
    else:
        b.binary(
            "Div", b.constant(1.0), b.binary("Add", b.constant(1.0), b.same("Exp", b.same("Neg", b.same("Tanh", x))))
        )


def layer_norm(b: Builder) -> None:
    """LayerNorm and RMSNorm written out, over the last axes."""
    x = b.pick(min_rank=2, where=lambda v: v.shape[-1] > 2)
    if x is None:
        return
    width = x.shape[-1]
    if b.opset >= 17 and b.chance(0.2):
        b.same("LayerNormalization", x, b.weight(width), *([b.weight(width)] if b.chance(0.5) else []))
        return
    centred = x if b.chance(0.3) else b.binary("Sub", x, b.reduce("ReduceMean", x, [-1]))
    square = b.binary("Mul", centred, centred) if b.chance(0.4) else b.binary("Pow", centred, b.constant(2.0))
    variance = b.binary("Add", b.reduce("ReduceMean", square, [b.choose([-1, x.rank - 1])]), b.scalar(0.1))
    y = b.binary("Div", centred, b.same("Sqrt", variance))
    if b.chance(0.8):
        y = b.binary("Mul", y, b.weight(width))
        if b.chance(0.8):
            b.binary("Add", y, b.weight(width))


def softmax(b: Builder) -> None:
    x = b.pick(min_rank=1)
    if x is None:
        return
    axis = b.number(-x.rank, x.rank - 1)
    kind = b.choose(["Softmax", "LogSoftmax", "written out", "log"])
    if kind in {"Softmax", "LogSoftmax"}:
        b.same(kind, x, axis=axis)
    elif kind == "log":
        b.same("Log", b.same("Softmax", b.same("Tanh", x), axis=axis))
    else:
        power = b.same("Exp", b.binary("Sub", x, b.reduce("ReduceMax", x, [axis])))
        b.binary("Div", power, b.reduce("ReduceSum", power, [axis]))


def reduce(b: Builder) -> None:
    x = b.pick(min_rank=1)
    if x is None:
        return
    operator = b.choose(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"])
    count = b.number(1, x.rank)
    axes = sorted(int(a) for a in b.rng.permutation(x.rank)[:count])
    b.reduce(operator, x, [a - x.rank if b.chance(0.3) else a for a in axes], keep=b.chance(0.5))


# --- linear operators ----------------------------------------------------------------------------------------------


def matmul(b: Builder) -> None:
    x = b.pick(min_rank=2, where=lambda v: 0 < v.shape[-1] <= 64)
    if x is None:
        return
    width = b.choose([4, 6, 8])
    y = b.node("MatMul", [x, b.weight(x.shape[-1], width)], *x.shape[:-1], width)
    if b.chance(0.5):
        y = b.binary("Add", *([y, b.weight(width)] if b.chance(0.5) else [b.weight(width), y]))
    if b.chance(0.3):
        y = b.binary(b.choose(["Mul", "Div"]), y, b.scalar(b.choose(NEUTRAL[1:])))
    if b.chance(0.2):
        b.node("MatMul", [y, b.weight(width, 5)], *y.shape[:-1], 5)


def attention(b: Builder) -> None:
    """x times its own transpose, scaled: a product of two computed values."""
    x = b.pick(min_rank=2, where=lambda v: v.shape[-1] > 0)
    if x is None or x.size * abs(x.shape[-2]) > LIMIT:
        return
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    key = b.node("Transpose", [x], *(x.shape[i] for i in perm), perm=perm)
    scores = b.node("MatMul", [x, key], *x.shape[:-1], x.shape[-2])
    b.same("Softmax", b.binary("Div", scores, b.constant(math.sqrt(x.shape[-1]))), axis=-1)


def parallel(b: Builder) -> None:
    """Several linear maps of one input."""
    x = b.pick(min_rank=2, where=lambda v: 0 < v.shape[-1] <= 64)
    if x is None:
        return
    for _ in range(3):
        width = b.choose([4, 4, 8])
        y = b.node("MatMul", [x, b.weight(x.shape[-1], width)], *x.shape[:-1], width)
        if b.chance(0.6):
            b.binary("Add", y, b.weight(width))


def gemm(b: Builder) -> None:
    x = b.pick(rank=2, where=lambda v: 0 < v.shape[-1] <= 64)
    if x is None:
        return
    width, k = b.choose([4, 8]), x.shape[1]
    flip = int(b.chance(0.5))
    w = b.weight(width, k) if flip else b.weight(k, width)
    bias = [b.choose([b.weight(width), b.weight(1, width), b.weight(1), b.constant(0.5)])] if b.chance(0.7) else []
    scales = {"alpha": float(b.choose([0.5, 2.0])), "beta": float(b.choose([0.0, 0.5]))} if b.chance(0.3) else {}
    y = b.node("Gemm", [x, w, *bias], x.shape[0], width, transB=flip, **scales)
    if b.chance(0.4):
        b.binary(b.choose(["Add", "Mul"]), y, b.weight(width))


def conv(b: Builder) -> None:
    x = b.pick(rank=4, where=lambda v: all(d > 0 for d in v.shape[1:]) and v.shape[1] <= 16)
    if x is None:
        return
    channels, size = x.shape[1], b.choose([1, 1, 3])
    if min(x.shape[2:]) < size:
        return
    group = channels if b.chance(0.25) else 1
    out = channels if group > 1 else b.choose([4, 8])
    stride, pad = b.choose([1, 1, 2]), b.choose([0, size // 2])
    spatial = [(d + 2 * pad - size) // stride + 1 for d in x.shape[2:]]
    inputs = [x, b.weight(out, channels // group, size, size), *([b.weight(out)] if b.chance(0.5) else [])]
    options = {"group": group, "strides": [stride] * 2, "pads": [pad] * 4}
    y = b.node("Conv", inputs, x.shape[0], out, *spatial, **options)
    if b.chance(0.4):
        y = _batch_norm(b, y)
    if b.chance(0.3):
        c = b.constant(b.rng.uniform(0.5, 2, b.choose([(out, 1, 1), (1, out, 1, 1), (1,)])))
        y = b.binary(b.choose(["Add", "Mul", "Sub", "Div"]), y, c)
    if b.chance(0.4):
        b.same("Relu", y)


def batch_norm(b: Builder) -> None:
    x = b.pick(min_rank=2, where=lambda v: 0 < v.shape[1] <= 16)
    if x is not None:
        _batch_norm(b, x)


def _batch_norm(b: Builder, x: Value) -> Value:
    c = x.shape[1]
    variance = b.constant(b.rng.uniform(0.5, 2, c))
    return b.same("BatchNormalization", x, b.weight(c), b.weight(c), b.weight(c), variance, epsilon=1e-3)


def pool(b: Builder) -> None:
    x = b.pick(rank=4, where=lambda v: all(d > 1 for d in v.shape[1:]))
    if x is None:
        return
    operator = b.choose(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "means"])
    if operator == "means":
        b.reduce("ReduceMean", x, [2, 3], keep=b.chance(0.5))
    elif operator.startswith("Global"):
        b.node(operator, [x], *x.shape[:2], 1, 1)
    else:
        stride = b.choose([1, 2])
        if b.chance(0.3):
            x = pad_by(b, x, [0, 0, 1, 1, 0, 0, 1, 1])
        spatial = [(d - 2) // stride + 1 for d in x.shape[2:]]
        b.node(operator, [x], *x.shape[:2], *spatial, kernel_shape=[2, 2], strides=[stride] * 2)


# --- inside branches -------------------------------------------------------------------------------------------------


def in_branch(b: Builder, x: Value) -> Value:
    """Add one node inside a branch that keeps the shape of `x`; return its output."""
    kind = b.choose(["unary", "constant", "captured", "identity", "pair"])
    if kind == "unary":
        return b.same(b.choose(["Relu", "Sigmoid", "Tanh"]), x)
    if kind == "identity":
        return b.same("Identity", x)
    if kind == "constant":
        return b.binary(b.choose(["Add", "Mul"]), x, b.constant(b.choose(NEUTRAL)))
    if kind == "pair" and x.rank == 2:
        there = b.node("Transpose", [x], x.shape[1], x.shape[0], perm=[1, 0])
        return b.node("Transpose", [there], *x.shape, perm=[1, 0])
    other = b.pick(where=lambda v: broadcast(x.shape, v.shape) == x.shape)
    return b.binary("Add", x, other or x)
