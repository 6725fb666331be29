"""Matrix product as pointwise convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Refuse, Rule, rank
from infconv.passes._weights import linear


def _replace(op: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    old, dimensions = linear(node), rank(x)
    if dimensions is None or not 3 <= dimensions <= 5 or old.weight.ndim != 2:
        raise Refuse(f"'{x.name}' is not known to have 3 to 5 dimensions, or its weight is no matrix")
    places = range(1, dimensions - 1)
    shape = (old.outputs, old.inputs, *(1 for _ in places))
    weight = op.const(np.ascontiguousarray(old.weight.T).reshape(shape))
    channels_first = op.Transpose(x, perm=[0, dimensions - 1, *places])
    return op.Transpose(op.Conv(channels_first, weight), perm=[0, *(axis + 1 for axis in places), 1])


class ReplaceMatmulByConv(RewritePass):
    """Replace MatMul of [N, ..., C] by a constant matrix by a 1x1 Conv between two Transposes.

    For targets that are better at convolutions, and where the Transposes cancel with those around them, as in models
    that were channels-last. The inverse of `replace-conv-by-matmul`.

    `y = MatMul(x, W)` becomes `y = Transpose(Conv(Transpose(x), W'))`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="matmul",
            match=lambda op, x, w, node: op.MatMul(x, op.const(w), _node=node),
            build=_replace,
            since_opset=7,
        ),
    )
