"""Gemm as MatMul and Add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._attributes import plain_attributes
from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Rule, constant, is_float
from infconv.passes._weights import rounded


def _lower(op: Builder, a: ir.Value, b: ir.Value, c: ir.Value | None, node: ir.Node) -> ir.Value:
    attributes = plain_attributes(node)
    product = op.MatMul(
        _transposed(op, a, attributes.get("transA", 0)), _transposed(op, b, attributes.get("transB", 0))
    )
    result = _times(op, product, attributes.get("alpha", 1.0))
    return result if c is None else op.Add(result, _times(op, c, attributes.get("beta", 1.0)))


def _transposed(op: Builder, value: ir.Value, flag: int) -> Any:
    found = constant(value)
    if not flag:
        return value
    return op.Transpose(value, perm=[1, 0]) if found is None else op.const(np.ascontiguousarray(found.T))


def _times(op: Builder, value: ir.Value, factor: float) -> Any:
    found = constant(value)
    if factor == 1:
        return value
    if found is None:
        return op.Mul(value, op.const(factor, like=value if _values.dtype_of(value) else op.nodes[0].inputs[0]))
    return op.const(rounded(found.astype(np.float64) * factor, found.dtype))


class LowerGemm(RewritePass):
    """Replace Gemm by MatMul and Add, for targets without Gemm and for passes that look for MatMul.

    alpha A' B' + beta C: transposes and factors of constants are computed, others become Transpose and Mul. The
    inverse of `fuse-matmul-add`.

    `y = Gemm<transB=1>(x, W, b)` becomes `y = Add(MatMul(x, W'), b)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="gemm",
            match=lambda op, a, b, c, node: op.Gemm(a, b, op.optional(c), _attrs=..., _node=node),
            build=_lower,
            when=is_float,
            since_opset=7,
        ),
    )
