"""MatMul of matrices, its bias and its transposed operands become one Gemm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Match, Refuse, Rule, all_of, dims, is_float, rank, same_dim


def _matrices(match: Match) -> str | None:
    wrong = next((name for name in ("a", "b") if rank(match.value(name)) != 2), None)
    return wrong and f"'{match.value(wrong).name}' is not known to be a matrix"


def _takes_bias(match: Match) -> str | None:
    """Gemm broadcasts its bias to the product's shape, never the product to the bias'."""
    bias, a, b = match.value("c"), dims(match.value("a")), dims(match.value("b"))
    shape = dims(bias)
    if shape is None or a is None or b is None:
        return f"the shape of '{bias.name}' is not known"
    attributes = {} if match.bindings.get("attrs") is None else match["attrs"]
    rows, columns = (attributes[name].value if name in attributes else 0 for name in ("transA", "transB"))
    product = (a[1 if rows else 0], b[0 if columns else 1])
    aligned = zip(reversed(shape), reversed(product), strict=False)
    if len(shape) > 2 or not all(size == 1 or same_dim(size, wanted) for size, wanted in aligned):
        return f"'{bias.name}' is not known to broadcast to the shape of the product"
    return None


def _is_swap(perm: Sequence[int] | None) -> bool:
    return perm is None or tuple(perm) == (1, 0)


def _transposed(op: Builder, a: ir.Value, b: ir.Value, node: ir.Node, ta: ir.Node | None, tb: ir.Node | None) -> Any:
    """Make a Gemm like `node` with the operands that Transposes `ta` and `tb` read."""
    if ta is None and tb is None:
        raise Refuse("the operand is transposed otherwise")
    rest = {name: attribute for name, attribute in node.attributes.items() if name not in ("transA", "transB")}
    flags = _flag(node, "transA", ta), _flag(node, "transB", tb)
    return op.Gemm(a, b, *node.inputs[2:], _attrs=rest, transA=flags[0], transB=flags[1])


def _flag(node: ir.Node, name: str, transpose: ir.Node | None) -> int | None:
    """Return the attribute `name` for an operand that is read before `transpose`; None for its default."""
    known = node.attributes.get(name)
    if known is not None and known.is_ref():
        raise Refuse(f"{name} is an attribute of the function")
    return ((known.as_int() if known is not None else 0) ^ (transpose is not None)) or None


def _operands(op: Any, a: Any, b: Any, ta: Any, tb: Any) -> tuple[Any, Any]:
    left = op.optional(op.Transpose(a, perm=_is_swap, _node=ta))
    return left, op.optional(op.Transpose(b, perm=_is_swap, _node=tb))


class FuseMatmulAdd(RewritePass):
    """Turn MatMul of matrices and the Add after it into Gemm; Transposes of matrices become its transA and transB.

    a b + c, where a and b are known to be of rank 2 (Gemm takes nothing else) and c broadcasts to the product: a
    number, [N], [1, N], [M, 1] or [M, N], constant or not. A Gemm without bias takes one, too.
    op(a^T) b with the Transpose in between is one Gemm with transA=1, MatMul of a transposed matrix likewise.

    `y = Add(MatMul(a, b), c)` becomes `y = Gemm(a, b, c)`.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="matmul-add",
            match=lambda op, a, b, c: op.Add(op.MatMul(a, b), c),
            build=lambda op, a, b, c: op.Gemm(a, b, c),
            when=all_of(is_float, _matrices, _takes_bias),
            since_opset=7,
        ),
        Rule(
            name="gemm-add",
            match=lambda op, a, b, c, attrs: op.Add(op.Gemm(a, b, beta=lambda beta: True, _attrs=attrs), c),
            build=lambda op, a, b, c, attrs: op.Gemm(a, b, c, _attrs=attrs),
            when=all_of(is_float, _matrices, _takes_bias),
            since_opset=11,
        ),
        Rule(
            name="transpose-gemm",
            match=lambda op, a, b, c, node, ta, tb: op.Gemm(
                *_operands(op, a, b, ta, tb), op.optional(c), _attrs=..., _node=node, _some=("Transpose",)
            ),
            build=_transposed,
            when=all_of(is_float, _matrices),
            since_opset=7,
        ),
        Rule(
            name="transpose-matmul",
            match=lambda op, a, b, node, ta, tb: op.MatMul(
                *_operands(op, a, b, ta, tb), _node=node, _some=("Transpose",)
            ),
            build=_transposed,
            when=all_of(is_float, _matrices),
            since_opset=11,
        ),
    )
