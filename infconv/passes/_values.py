"""What is known about a value (its constant, type and shape) and about operators, without computing anything.

Every question may be answered with None: not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from infconv.passes._match import Match

_REAL = frozenset(dtype for dtype in ir.DataType if dtype.is_floating_point() or dtype.is_integer())
_ONE_NUMBER = "infconv.one_number"
_UNIFORM_LIMIT = 1 << 20
"""A constant of more elements is not searched for being full of one number."""


def tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind `value`: an initializer or the output of a Constant node; nothing is computed.

    An initializer that is also a graph input is only a default, which the caller of the model may replace.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain:
        return None
    return _constant_attribute(node)


def _constant_attribute(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.value  # as_tensor() checks a runtime protocol, which takes 0.1 ms
        if name in ("value_float", "value_floats"):
            return ir.tensor(attribute.value, ir.DataType.FLOAT)
        if name in ("value_int", "value_ints"):
            return ir.tensor(attribute.value, ir.DataType.INT64)
    return None


def constant(value: ir.Value | None, max_bytes: int | None = None) -> np.ndarray | None:
    """Return the constant behind `value` as an array to be read only, or None.

    The array is a view of the model's own (perhaps mapped) bytes where the format allows it, so asking for a large
    weight is cheap. `max_bytes` leaves larger ones alone.
    """
    found = tensor(value)
    if found is None or (max_bytes is not None and found.nbytes > max_bytes):
        return None
    return found.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """Return the number in a constant of one real element, whatever its rank."""
    found = tensor(value)
    if found is None or found.size != 1 or not (is_real(found.dtype) or found.dtype == ir.DataType.BOOL):
        return None
    return float(found.numpy().reshape(())[()])


def equals(found: ir.TensorProtocol, wanted: np.ndarray, rtol: float, uniform: bool) -> bool:
    """Whether `found` has the value `wanted`, within `rtol` of it, or rounded to the type of `found`.

    A 0-d `wanted` also equals a tensor of one element, and with `uniform` one that is full of it.
    """
    if wanted.ndim:
        if found.shape.dims != wanted.shape or not (is_real(found.dtype) or found.dtype == ir.DataType.BOOL):
            return False
        array = found.numpy()
        close = np.abs(array.astype(np.float64) - wanted) <= rtol * np.abs(wanted)
        rounded = found.dtype.is_floating_point() and (close | (array == wanted.astype(array.dtype))).all()
        return bool(close.all() or rounded)
    number = _one_number(found)
    if number is None or not (uniform or found.size == 1):
        return False
    aim = float(wanted)
    if abs(number - aim) <= rtol * abs(aim):
        return True
    near = found.dtype.is_floating_point() and abs(number - aim) <= 0.5 * abs(aim)  # 4-bit floats round that much
    return near and number == float(wanted.astype(found.dtype.numpy()))


def _one_number(found: ir.TensorProtocol) -> float | None:
    """Return the number that all elements are. The answer is kept: every rule with a number in it asks."""
    if _ONE_NUMBER not in found.meta:
        found.meta[_ONE_NUMBER] = _find_one_number(found)
    return found.meta[_ONE_NUMBER]


def _find_one_number(found: ir.TensorProtocol) -> float | None:
    if not 0 < found.size <= _UNIFORM_LIMIT or not (is_real(found.dtype) or found.dtype == ir.DataType.BOOL):
        return None
    array = found.numpy()
    first = array.flat[0]
    # The usual bias or weight is told by its ends, without looking at all of it.
    return float(first) if first == array.flat[-1] and (array == first).all() else None


def is_real(dtype: ir.DataType | None) -> bool:
    """Whether `dtype` holds integers or real numbers."""
    return dtype in _REAL


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """Return the element type of `value`: the declared one, or that of its constant."""
    if value is None:
        return None
    if value.dtype is not None:
        return value.dtype
    found = tensor(value)
    return None if found is None else found.dtype


def dims(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...] | None:
    """Return the dimensions of `value`: numbers where they are fixed."""
    if value is None:
        return None
    shape = value.shape
    if shape is None and (found := tensor(value)) is not None:
        shape = cast(ir.Shape, found.shape)
    return None if shape is None else shape.dims


def known_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of `value` when every dimension is a number."""
    known = dims(value)
    if known is None:
        return None
    fixed = tuple(d for d in known if isinstance(d, int))
    return fixed if len(fixed) == len(known) else None


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions of `value`."""
    known = dims(value)
    return None if known is None else len(known)


def static_dim(value: ir.Value | None, axis: int) -> int | None:
    """Return the size of `value` along `axis` (negative: from the end) when it is a number."""
    known = dims(value)
    if known is None or not -len(known) <= axis < len(known):
        return None
    size = known[axis]
    return size if isinstance(size, int) else None


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether the shapes of `a` and `b` are known to be equal: the same numbers, the same names of dimensions."""
    left, right = dims(a), dims(b)
    if left is None or right is None or len(left) != len(right):
        return False
    return all(same_dim(x, y) for x, y in zip(left, right, strict=True))


def same_dim(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are known to be equal; an unnamed one equals nothing, not even itself."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def fits_inside(small: ir.Value | None, large: ir.Value | None) -> bool:
    """Whether `large` is known to keep its shape when `small` is broadcast to it."""
    left, right = dims(small), dims(large)
    if left is None or right is None or len(left) > len(right):
        return left == ()
    return all(x == 1 or same_dim(x, y) for x, y in zip(reversed(left), reversed(right), strict=False))


def use_count(value: ir.Value) -> int:
    """Return how many inputs of nodes `value` is, those in subgraphs included."""
    # uses() copies; a value with 100,000 users would make every pass quadratic.
    return len(value._uses)


def is_used(value: ir.Value) -> bool:
    """Whether anything needs `value`."""
    return value.is_graph_output() or use_count(value) > 0


# --- what the schemas of operators say -----------------------------------------------------------------------------


@cache
def schema_defaults(domain: str, op_type: str, opset: int) -> Mapping[str, Any]:
    """Return the default values of an operator's attributes, for operators that onnx knows."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    defaults: dict[str, Any] = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            defaults[name] = value.decode() if isinstance(value, bytes) else value
    return defaults


@cache
def attribute_types(domain: str, op_type: str, opset: int) -> Mapping[str, ir.AttributeType]:
    """Return the types of an operator's attributes, for operators that onnx knows: 1 for a float is 1.0."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    # The enum comes from a compiled module whose stub does not say that it is one.
    return {name: ir.AttributeType[cast(Any, a.type).name] for name, a in schema.attributes.items()}


# --- ready-made conditions for Rule.when ---------------------------------------------------------------------------


def is_float(match: Match) -> str | None:
    """Ask that the pattern's first variable, or else what the pattern computes, is of a floating-point type."""
    name, value = match.first()
    dtype = dtype_of(value) or dtype_of(match.outputs[0])
    return None if dtype is not None and dtype.is_floating_point() else f"{name} is not known to be float"


def all_of(*conditions: Callable[[Match], str | None]) -> Callable[[Match], str | None]:
    """Return the condition that every one of `conditions` holds; the reason is that of the first that does not."""

    def check(match: Match) -> str | None:
        return next((reason for reason in (condition(match) for condition in conditions) if reason), None)

    return check
