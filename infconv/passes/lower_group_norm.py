"""Group normalization for targets that have no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._match import Match
from infconv.passes._norms import uniform
from infconv.passes._pattern import Refuse
from infconv.passes._rewrite import Rule


def _parts(op: Builder, match: Match) -> ir.Value:
    x, groups, rank = match.value("x"), int(match["g"]), _values.rank(match.value("x"))
    if rank is None or rank < 3:
        raise Refuse(f"'{x.name}' is not known to have axes besides batch and channels")
    shape = _values.known_shape(x)
    back = op.Shape(x) if shape is None else op.const(np.array(shape, np.int64))
    ones, zeros = (op.const(uniform(x, (groups,), number)) for number in (1.0, 0.0))
    grouped = op.Reshape(x, op.const(np.array([0, groups, -1], np.int64)))
    normalized = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=match["e"]), back, _like=x)
    scaled = op.Mul(normalized, _per_channel(op, match.value("s"), rank), _like=x)
    return op.Add(scaled, _per_channel(op, match.value("b"), rank), _like=x)


def _per_channel(op: Builder, vector: ir.Value, rank: int) -> ir.Value:
    """Return `vector` of C elements in the shape [C, 1, …, 1] of one axis less than `rank`."""
    array = _values.constant(vector)
    if array is not None:
        return op.const(array.reshape(-1, *[1] * (rank - 2)))
    return op.Unsqueeze(vector, op.const(np.arange(1, rank - 1, dtype=np.int64)))


class LowerGroupNorm(RewritePass):
    """Replace GroupNormalization by InstanceNormalization of the reshaped input, scale and bias.

    Groups become the channels of `[batch, groups, -1]`. The deprecated operator of opset 18 to 20 is left alone. ONNX
    Runtime computes this faster on the CPU than the operator, which it takes apart into elementary ones.
    """

    needs_shapes: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            match=lambda op, x, s, b, g, e: op.GroupNormalization(x, s, b, num_groups=op.attr(g, bool), epsilon=e),
            build=_parts,
            since_opset=21,
        ),
    )
