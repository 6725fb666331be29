"""How much each operator computes, and what share of it runs in which type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from infconv.census import COMPUTE, all_nodes, compute_type
from infconv.convert._base import DimRange

if TYPE_CHECKING:
    import onnx_ir as ir


class Work(NamedTuple):
    """What one compute operator does."""

    type: str
    """float16, int8 …"""
    multiplications: float


def work_of(model: ir.Model) -> dict[str, Work] | None:
    """Return node -> work for every compute operator (`census.COMPUTE`), by its name or else its first output's.

    Dynamic dimensions have their usual size. None when the size of an operator is not known.
    """
    found: dict[str, Work] = {}
    for node in all_nodes(model):
        if node.op_type in COMPUTE and node.inputs:
            count = _multiplications(node)
            if count is None:
                return None
            found[node.name or node.outputs[0].name or ""] = Work(compute_type(node), count)
    return found


def shares(work: Mapping[str, Work], types: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return type -> share of the multiplications, most first; `types` replaces the types, and only its nodes count."""
    sums: dict[str, float] = {}
    for name, (own, count) in work.items():
        if types is None or name in types:
            kind = own if types is None else types[name]
            sums[kind] = sums.get(kind, 0.0) + count
    total = sum(sums.values())
    return {kind: sums[kind] / total for kind in sorted(sums, key=lambda kind: -sums[kind])} if total else {}


def _multiplications(node: ir.Node) -> float | None:
    """Return the multiplications of one run of `node`; None when its shapes are not known."""
    output = _sizes(node.outputs[0])
    inputs = [_sizes(value) for value in node.inputs]
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    kind = node.op_type
    if kind == "Einsum":
        return _einsum(node, inputs)
    if first is None or second is None:
        return None
    if kind in {"LSTM", "GRU", "RNN"}:
        return math.prod(first[:2]) * (math.prod(second) + math.prod(inputs[2] or (0,)))
    if kind == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if output is None:
        return None
    if "Conv" in kind:
        weight = (inputs[3] if kind == "QLinearConv" and len(inputs) > 3 else second) or second
        return math.prod(output) * math.prod(weight[1:])
    if kind == "MatMulNBits":
        return math.prod(output) * node.attributes.get_int("K", 1)
    if kind == "Attention" and node.domain == "com.microsoft":  # the projections, then two products
        return math.prod(first[:2]) * math.prod(second) + 2.0 * math.prod(output) * first[1]
    if "Attention" in kind:
        return 2.0 * math.prod(output) * math.prod(second[-2:-1])
    inner = first[-2] if _is_transposed(node) and len(first) > 1 else first[-1]
    return math.prod(output) * inner


def _is_transposed(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transA", 0))


def _einsum(node: ir.Node, inputs: Sequence[Sequence[int] | None]) -> float | None:
    """Return the product of the sizes of all indices: what the naive sum over them multiplies."""
    terms = node.attributes.get_string("equation", "").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=False):
        if shape is None or len(term) != len(shape):  # an ellipsis
            return None
        sizes.update(zip(term, shape, strict=True))
    return float(math.prod(sizes.values()))


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    shape = None if value is None else value.shape
    if shape is None and value is not None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if shape is None:
        return None
    name = (value.name if value is not None else "") or ""
    return tuple(
        d if isinstance(d, int) else DimRange().usual(str(d.value or f"{name}.{i}")) for i, d in enumerate(shape)
    )
