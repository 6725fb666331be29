"""A node as the shape rules see it: what is known of its inputs, and its attributes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._dims import Dim, Dims, is_known, unknown

MAX_ELEMENTS = 256
"""Tensors with more elements are not shapes; their contents are not followed."""
INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})

Content: TypeAlias = np.ndarray
"""The elements of a small tensor, as objects: `int` or `Expr`; of a boolean one: True, False or None (not known)."""


class Unknown(LookupError):
    """A rule needs something that is not known; its outputs stay unknown."""


@dataclasses.dataclass
class Facts:
    """What is known about values. A value that is missing is not known (or was not visited yet)."""

    dims: dict[ir.Value, Dims] = dataclasses.field(default_factory=dict["ir.Value", Dims])
    contents: dict[ir.Value, Content] = dataclasses.field(default_factory=dict["ir.Value", Content])
    dtypes: dict[ir.Value, ir.DataType] = dataclasses.field(default_factory=dict["ir.Value", ir.DataType])

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type of `value`."""
        return self.dtypes.get(value) or _values.dtype_of(value) or None  # DataType.UNDEFINED is 0

    def content(self, value: ir.Value) -> Content | None:
        """Return the elements of `value`, read from its tensor if it is a small constant of integers or booleans."""
        known = self.contents.get(value)
        if known is not None:
            return known
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype not in INTEGERS | {ir.DataType.BOOL} or tensor.size > MAX_ELEMENTS:
            return None
        content = self.contents[value] = tensor.numpy().astype(object)
        return content


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind `value`, as `_values.tensor` does, but quickly for a Constant node with a tensor."""
    node = None if value is None else value.producer()
    attribute = None if node is None or node.op_type != "Constant" else node.attributes.data.get("value")
    if attribute is None or attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
        return _values.tensor(value)
    return attribute.value  # as_tensor() checks a runtime protocol, which takes 0.1 ms


class Op:
    """A node and the facts about its inputs. What is asked for and not known raises `Unknown`."""

    __slots__ = ("_facts", "inputs", "node", "opset")

    def __init__(self, node: ir.Node, facts: Facts, opset: int) -> None:
        self.node = node
        self.inputs = node.inputs
        self.opset = opset
        self._facts = facts

    def has(self, index: int) -> bool:
        """Return whether the input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        """Return the input; Unknown when it is left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Unknown(index)
        return value

    def dims(self, index: int) -> Dims:
        """Return the dimensions of an input."""
        dims = self._facts.dims.get(self.value(index))
        if dims is None:
            raise Unknown(index)
        return dims

    def dtype(self, index: int) -> ir.DataType | None:
        """Return the element type of an input, None when it is not known."""
        return self._facts.dtype(self.value(index)) if self.has(index) else None

    def content(self, index: int) -> Content:
        """Return the elements of a small integer or boolean input, in its shape."""
        content = self._facts.content(self.value(index))
        if content is None:
            raise Unknown(index)
        return content

    def has_content(self, index: int) -> bool:
        """Return whether the elements of the input are known, at least some of them."""
        return self.has(index) and self._facts.content(self.value(index)) is not None

    def content_or_unknowns(self, index: int) -> Content:
        """Return the elements of an input, new unknowns for those of a small tensor of which nothing is known."""
        value = self.value(index)
        content = self._facts.content(value)
        if content is None:
            dims = self.ints_of(self.dims(index))
            size = int(np.prod(dims))
            if size > MAX_ELEMENTS or self.dtype(index) not in INTEGERS:
                raise Unknown(index)
            content = np.empty(size, dtype=object)
            content[:] = [unknown(natural=False) for _ in range(size)]
            self._facts.contents[value] = content = content.reshape(dims)
        return content

    def elements(self, index: int) -> list[Dim]:
        """Return the elements of a small integer input as a flat list."""
        return list(self.content(index).ravel())

    def ints(self, index: int) -> list[int]:
        """Return the elements of a small integer input, all of them numbers."""
        return self.ints_of(self.elements(index))

    @staticmethod
    def ints_of(dims: Sequence[Dim]) -> list[int]:
        """Return `dims`, which must all be numbers."""
        fixed = [int(dim) for dim in dims if isinstance(dim, int)]
        if len(fixed) != len(dims):
            raise Unknown
        return fixed

    def floats(self, index: int) -> list[float]:
        """Return the elements of a small constant input of real numbers."""
        tensor = constant_tensor(self.value(index))
        if tensor is None or tensor.size > MAX_ELEMENTS or not _values.is_real(tensor.dtype):
            raise Unknown(index)
        return [float(element) for element in tensor.numpy().ravel()]

    def has_attribute(self, name: str) -> bool:
        """Return whether the attribute is given."""
        return name in self.node.attributes.data

    def _attribute(self, name: str) -> ir.Attr | None:
        attribute = self.node.attributes.data.get(name)
        if attribute is not None and attribute.is_ref():
            raise Unknown(name)
        return attribute

    def attr_int(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        attribute = self._attribute(name)
        return default if attribute is None else attribute.as_int()

    def required(self, name: str) -> ir.Attr:
        """Return an attribute that has no default."""
        attribute = self._attribute(name)
        if attribute is None:
            raise Unknown(name)
        return attribute

    def attr_text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        attribute = self._attribute(name)
        return default if attribute is None else attribute.as_string()

    def attr_ints(self, name: str) -> list[int] | None:
        """Return an attribute of integers, None when it is left out."""
        attribute = self._attribute(name)
        return None if attribute is None else list(attribute.as_ints())

    def attr_or_input(self, name: str, index: int) -> list[int] | None:
        """Return integers that older opsets have as attribute `name` and newer ones as input `index`."""
        return self.ints(index) if self.has(index) else self.attr_ints(name)


def axis_in(axis: int, rank: int) -> int:
    """Return `axis` counted from the front."""
    if not -rank <= axis < rank:
        raise Unknown(axis)
    return axis % rank


def unknowns(rank: int) -> Dims:
    """Return dimensions of which nothing is known."""
    return tuple(unknown() for _ in range(rank))


def best(a: Dim, b: Dim) -> Dim:
    """Return what is known best of two dimensions that must be equal."""
    if isinstance(a, int):
        return a
    return b if isinstance(b, int) or (is_known(b) and not is_known(a)) else a


DTypeRule: TypeAlias = "int | ir.DataType | Callable[[Op], ir.DataType | None]"
"""The element type of an output: that of an input, a fixed one, or computed."""
ShapeRule: TypeAlias = Callable[[Op], Sequence["Dims | None"]]
Row: TypeAlias = "tuple[ShapeRule, tuple[DTypeRule, ...]]"
"""How an operator's outputs follow from its inputs. The last type holds for all further outputs."""
