"""What a random graph is made of, second part: what moves, types, chooses or leaves as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from tests.fuzz.builder import LIMIT, Builder, Value, broadcast


def reshape(b: Builder) -> None:
    """Flatten the tail, split the last dimension, keep dimensions by 0 or by Shape arithmetic, or undo at once."""
    x = b.pick(min_rank=2, where=lambda v: all(d > 0 for d in v.shape[1:]))
    if x is None:
        return
    tail = math.prod(x.shape[1:])
    factor = b.choose([f for f in (1, 2, 3, 4) if tail % f == 0])
    target = b.choose([[tail], [factor, tail // factor], [tail // factor, factor], list(x.shape[1:])])
    kind = b.choose(["-1", "0", "shape", "merge", "Flatten"])
    if kind == "merge":
        last = x.shape[-1]
        merged = x.shape[0] * (tail // last)
        y = b.node("Reshape", [x, b.ints(-1, last)], merged, last, exact=x.exact)
    elif kind == "Flatten":
        y = b.node("Flatten", [x], x.shape[0], tail, exact=x.exact)
    else:
        y = b.node("Reshape", [x, _target(b, x, kind, target)], x.shape[0], *target, exact=x.exact)
    if b.chance(0.3):
        b.node("Reshape", [y, b.ints(-1, *x.shape[1:])], *x.shape, exact=x.exact)


def _target(b: Builder, x: Value, kind: str, tail: Sequence[int]) -> Value:
    if kind != "shape":
        return b.ints(int(kind), *tail)
    ints = {"dtype": TensorProto.INT64, "exact": True}
    shape = b.node("Shape", [x], x.rank, **ints)
    if b.chance(0.5):
        first = b.node("Gather", [shape, b.constant(0, np.int64)], **ints)
        first = b.node("Unsqueeze", [first, b.ints(0)], 1, **ints)
    else:
        first = b.node("Slice", [shape, b.ints(0), b.ints(1), b.ints(0)], 1, **ints)
    return b.node("Concat", [first, b.ints(*tail)], 1 + len(tail), axis=0, **ints)


def transpose(b: Builder) -> None:
    x = b.pick(min_rank=2)
    if x is None:
        return
    perm = [int(i) for i in b.rng.permutation(x.rank)]
    y = b.node("Transpose", [x], *(x.shape[i] for i in perm), perm=perm, exact=x.exact)
    if b.chance(0.5):
        if b.chance(0.6):
            y = b.same(b.choose(["Relu", "Sigmoid"]), y)
        back = [perm.index(i) for i in range(x.rank)] if b.chance(0.7) else [int(i) for i in b.rng.permutation(x.rank)]
        b.node("Transpose", [y], *(y.shape[i] for i in back), perm=back)


def unsqueeze(b: Builder) -> None:
    x = b.pick(where=lambda v: v.rank < 5)
    if x is None:
        return
    axis = b.number(0, x.rank)
    shape = [*x.shape[:axis], 1, *x.shape[axis:]]
    y = b.node("Unsqueeze", [x, b.ints(axis if b.chance(0.6) else axis - x.rank - 1)], *shape, exact=x.exact)
    if b.chance(0.3):
        b.node("Squeeze", [y, b.ints(axis)], *x.shape, exact=x.exact)


def squeeze(b: Builder) -> None:
    x = b.pick(where=lambda v: 1 in v.shape)
    if x is None:
        return
    axes = [i for i, d in enumerate(x.shape) if d == 1][: b.number(1, 2)]
    b.node("Squeeze", [x, b.ints(*axes)], *(d for i, d in enumerate(x.shape) if i not in axes), exact=x.exact)


def concat(b: Builder) -> None:
    x = b.pick(min_rank=1)
    if x is None:
        return
    axis = b.choose([i for i, d in enumerate(x.shape)])

    def fits(v: Value) -> bool:
        return v.rank == x.rank and all(
            i == axis or p == q for i, (p, q) in enumerate(zip(v.shape, x.shape, strict=True))
        )

    parts = [x] + [v for v in (b.pick(where=fits) for _ in range(b.number(0, 2))) if v is not None]
    sizes = [v.shape[axis] for v in parts]
    if len({s > 0 for s in sizes}) > 1 or sum(v.size for v in parts) > LIMIT:
        return
    shape = [*x.shape[:axis], sum(sizes), *x.shape[axis + 1 :]]
    b.node("Concat", parts, *shape, axis=axis if b.chance(0.6) else axis - x.rank, exact=all(v.exact for v in parts))


def split(b: Builder) -> None:
    """Split an axis, evenly or not; sometimes put the parts together again."""
    x = b.pick(where=lambda v: any(d > 1 for d in v.shape))
    if x is None:
        return
    axis = b.choose([i for i, d in enumerate(x.shape) if d > 1])
    whole = x.shape[axis]
    first = b.number(1, whole - 1)
    sizes = [first, whole - first]
    shapes = [[*x.shape[:axis], s, *x.shape[axis + 1 :]] for s in sizes]
    parts = b.nodes_of("Split", [x, b.ints(*sizes)], shapes, axis=axis, exact=x.exact)
    if b.chance(0.3):
        b.node("Concat", parts if b.chance(0.7) else parts[::-1], *x.shape, axis=axis, exact=x.exact)


def slice_(b: Builder) -> None:
    x = b.pick(where=lambda v: any(d > 1 for d in v.shape))
    if x is None:
        return
    axis = b.choose([i for i, d in enumerate(x.shape) if d > 1])
    size = x.shape[axis]
    start, step = b.number(0, size - 1), b.choose([1, 1, 2])
    end = b.choose([size, np.iinfo(np.int64).max, b.number(start + 1, size), 2 * size])
    if b.chance(0.2):
        start, end, step, length = size - 1, -size - 1, -1, size
    else:
        length = len(range(start, min(end, size), step))
    if b.chance(0.3) and step > 0:
        start -= size
    arguments = [b.ints(int(v)) for v in (start, end, axis - x.rank * b.chance(0.3), step)]
    b.node("Slice", [x, *arguments], *x.shape[:axis], length, *x.shape[axis + 1 :], exact=x.exact)


def gather(b: Builder) -> None:
    x = b.pick(where=lambda v: any(d > 0 for d in v.shape))
    if x is None:
        return
    axis = b.choose([i for i, d in enumerate(x.shape) if d > 0])
    size = x.shape[axis]
    scalar = b.chance(0.4)
    indices = b.number(-size, size - 1) if scalar else [b.number(-size, size - 1) for _ in range(b.number(1, 4))]
    inner = [] if scalar else [len(indices)]
    b.node(
        "Gather",
        [x, b.constant(indices, np.int64)],
        *x.shape[:axis],
        *inner,
        *x.shape[axis + 1 :],
        axis=axis,
        exact=x.exact,
    )


def pad(b: Builder) -> None:
    x = b.pick(min_rank=1, where=lambda v: all(d > 1 for d in v.shape[1:]))
    if x is None:
        return
    pads = [0 if x.shape[i % x.rank] < 0 or b.chance(0.5) else b.number(0, 1) for i in range(2 * x.rank)]
    pad_by(b, x, pads)


def pad_by(b: Builder, x: Value, pads: Sequence[int]) -> Value:
    shape = [d + pads[i] + pads[i + x.rank] if d > 0 else d for i, d in enumerate(x.shape)]
    mode = b.choose(["constant", "constant", "edge", "reflect"])
    if mode == "reflect" and any(d == 1 and list(pads[i :: x.rank]) != [0, 0] for i, d in enumerate(x.shape)):
        mode = "edge"  # a single element has nothing to be reflected
    value = [b.constant(b.choose([0.0, 0.0, 1.5]))] if mode == "constant" and b.chance(0.6) else []
    return b.node("Pad", [x, b.ints(*pads), *value], *shape, mode=mode, exact=x.exact)


def expand(b: Builder) -> None:
    """Expand to a constant shape, or to another value's."""
    x = b.pick(where=lambda v: v.size * 3 <= LIMIT)
    assert x is not None
    like = b.pick(where=lambda v: (s := broadcast(x.shape, v.shape)) is not None and math.prod(map(abs, s)) <= LIMIT)
    if like is not None and b.chance(0.5):
        shape = b.node("Shape", [like], like.rank, dtype=TensorProto.INT64, exact=True)
        b.node("Expand", [x, shape], *(broadcast(x.shape, like.shape) or ()), exact=x.exact)
    else:
        target = [3 if d == 1 and b.chance(0.7) else d for d in x.shape]
        lead = [2] if x.rank < 4 and b.chance(0.3) else []
        target = [*lead, *target]
        b.node("Expand", [x, b.ints(*(max(d, 1) for d in target))], *target, exact=x.exact)


def tile(b: Builder) -> None:
    x = b.pick(min_rank=1, where=lambda v: v.size * 4 <= LIMIT)
    if x is None:
        return
    repeats = [b.number(1, 2) if d > 0 else 1 for d in x.shape]
    b.node("Tile", [x, b.ints(*repeats)], *(d * r for d, r in zip(x.shape, repeats, strict=True)), exact=x.exact)


# --- types and the rest --------------------------------------------------------------------------------------------


def cast(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    kind = b.choose(["same", "double", "int", "bool"] if x.exact else ["same", "double"])
    if kind == "same":
        b.same("Cast", x, to=TensorProto.FLOAT, exact=x.exact)
        return
    dtype = {"double": TensorProto.DOUBLE, "int": TensorProto.INT64, "bool": TensorProto.BOOL}[kind]
    y = b.same("Cast", x, to=dtype, dtype=dtype, exact=x.exact)
    b.same("Cast", y, to=TensorProto.FLOAT, exact=x.exact)


def where(b: Builder) -> None:
    """Choose between values by a comparison of unrounded ones, or by a constant mask."""
    x = b.pick(exact=True)
    assert x is not None
    if b.chance(0.3):
        condition = b.constant(b.rng.random([max(d, 1) for d in x.shape]) < b.choose([0.0, 0.5, 1.0]), np.bool_)
    else:
        threshold = b.constant(b.choose([0.0, 0.3]))
        condition = b.binary(b.choose(["Greater", "Less"]), x, threshold, dtype=TensorProto.BOOL, exact=True)
    if b.chance(0.2):
        condition = b.same("Not", condition, dtype=TensorProto.BOOL, exact=True)
    other = b.pick(where=lambda v: broadcast(x.shape, v.shape) == x.shape)
    b.node("Where", [condition, x, other or b.constant(0.0)], *x.shape)


def identity(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    b.same("Identity", x, exact=x.exact)


def dropout(b: Builder) -> None:
    x = b.pick()
    assert x is not None
    more = [b.constant(0.5), b.constant(False, np.bool_)] if b.chance(0.5) else []
    b.same("Dropout", x, *more, exact=x.exact)


def constant_part(b: Builder) -> None:
    """A computation on constants alone, then added."""
    x = b.pick(min_rank=1, where=lambda v: v.shape[-1] > 0)
    if x is None:
        return
    c = b.same("Exp", b.constant(b.rng.uniform(-1, 1, x.shape[-1])))
    c = b.binary("Mul", c, b.scalar(0.5))
    b.binary("Add", x, c)


def einsum(b: Builder) -> None:
    x = b.pick(rank=3, where=lambda v: 0 < v.shape[-1] <= 64)
    if x is None:
        return
    b.node("Einsum", [x, b.weight(x.shape[-1], 4)], *x.shape[:-1], 4, equation="abc,cd->abd")
