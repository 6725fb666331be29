"""A graph under construction: values with symbolic shapes, constants in either form, names that never clash."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LIMIT = 4000
"""No value has more elements than this, the batch counted once."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of the graph. A dimension is its size, or -k for k times the batch size."""

    name: str
    shape: tuple[int, ...]
    dtype: int = TensorProto.FLOAT
    exact: bool = False
    """Computed without rounding, so that a comparison or a cast to an integer cannot go either way."""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(abs(d) for d in self.shape)

    @property
    def is_static(self) -> bool:
        return all(d > 0 for d in self.shape)


def broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """Return the common shape of `a` and `b`, or None when they do not broadcast."""
    rank = max(len(a), len(b))
    pairs = zip([1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b), strict=True)
    merged = [q if p == 1 else p if q in {1, p} else 0 for p, q in pairs]
    return None if 0 in merged else tuple(merged)


class Builder:
    """Nodes, constants and the values that a next node may use; `outer` is the graph around a branch."""

    def __init__(self, rng: np.random.Generator, opset: int, outer: Builder | None = None) -> None:
        self.rng, self.opset, self.outer = rng, opset, outer
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.weights: list[Value] = []
        self.values: list[Value] = []
        self._count = 0
        self._prefix = f"{outer.fresh('branch')}_" if outer else ""

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{self._prefix}{stem}_{self._count}"

    # --- choices ---------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def choose(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def number(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def reachable(self) -> list[Value]:
        return self.values + ([v for v in self.outer.reachable() if self.may_capture(v)] if self.outer else [])

    @staticmethod
    def may_capture(value: Value) -> bool:
        """Whether a branch may use `value`: ONNX Runtime loses a Cast to double and back that only branches use."""
        return not value.name.startswith(("cast", "again"))

    def pick(self, **wanted: Any) -> Value | None:
        """Return a float value, the later ones more often, or None.

        `rank` its rank, `min_rank` the least, `dtype` the type, `exact` whether it must be, `where` a condition.
        """
        where = wanted.get("where") or (lambda _: True)
        dtype = wanted.get("dtype", TensorProto.FLOAT)
        fitting = [
            v
            for v in self.reachable()
            if v.dtype == dtype
            and v.rank == wanted.get("rank", v.rank)
            and v.rank >= wanted.get("min_rank", 0)
            and (v.exact or not wanted.get("exact"))
            and where(v)
        ]
        if not fitting:
            return None
        return self.choose(fitting[-4:] if self.chance(0.6) else fitting)

    # --- parts -----------------------------------------------------------------------------------------------------

    def constant(self, array: Any, dtype: Any = np.float32) -> Value:
        """Return a constant, as an initializer or as a Constant node."""
        array = np.asarray(array, dtype)
        name = self.fresh("const")
        if self.chance(0.5):
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            tensor = numpy_helper.from_array(array, name + "_value")
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return Value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype), exact=True)

    def ints(self, *values: int) -> Value:
        return self.constant(values, np.int64)

    def weight(self, *shape: int) -> Value:
        """Return random weights, sometimes ones that are in use already."""
        known = [w for w in self.weights if w.shape == shape]
        if known and self.chance(0.4):
            return self.choose(known)
        fan_in = max(1, math.prod(shape[1:]) if len(shape) > 1 else 4)
        weight = self.constant(self.rng.normal(0, 1 / math.sqrt(fan_in), shape))
        self.weights.append(weight)
        return weight

    def node(self, operator: str, inputs: Sequence[Value | None], *shape: int, **options: Any) -> Value:
        """Add a node of one output of that shape. Options: `dtype`, `exact`, and the node's attributes."""
        return self.nodes_of(operator, inputs, [shape], **options)[0]

    def nodes_of(
        self, operator: str, inputs: Sequence[Value | None], shapes: Sequence[Sequence[int]], **options: Any
    ) -> list[Value]:
        """Add a node of several outputs."""
        dtype, exact = options.pop("dtype", TensorProto.FLOAT), options.pop("exact", False)
        outputs = [Value(self.fresh(operator.lower()), tuple(s), dtype, exact) for s in shapes]
        names = [v.name if v else "" for v in inputs]
        self.nodes.append(helper.make_node(operator, names, [o.name for o in outputs], **options))
        self.values += outputs
        return outputs

    def same(self, operator: str, value: Value, *more: Value | None, **options: Any) -> Value:
        """Add a node whose output is shaped as its first input."""
        return self.node(operator, [value, *more], *value.shape, **options)

    def binary(self, operator: str, a: Value, b: Value, **options: Any) -> Value:
        shape = broadcast(a.shape, b.shape)
        assert shape is not None, (operator, a, b)
        return self.node(operator, [a, b], *shape, **options)

    def scalar(self, value: float) -> Value:
        return self.constant(value if self.chance(0.7) else [value])

    def reduce(self, operator: str, x: Value, axes: Sequence[int], keep: bool = True) -> Value:
        """Add a reduction, its axes where this opset wants them."""
        kept = {a % x.rank for a in axes}
        shape = [1 if i in kept else d for i, d in enumerate(x.shape) if keep or i not in kept]
        if self.opset >= 18 or operator == "ReduceSum":
            return self.node(operator, [x, self.ints(*axes)], *shape, keepdims=int(keep))
        return self.node(operator, [x], *shape, axes=list(axes), keepdims=int(keep))

    def info(self, value: Value) -> onnx.ValueInfoProto:
        dims = [d if d > 0 else "N" if d == -1 else None for d in value.shape]
        return helper.make_tensor_value_info(value.name, value.dtype, dims)
