"""The elements of shape tensors, followed symbolically through the operators that exporters compute shapes with.

Every rule gives an array of objects (see `_op.Content`), whose elements equal the tensor's for every size of the
model's inputs. Integers do not wrap around here: a result that leaves its type's range is dropped by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from infconv.passes import _dims
from infconv.passes._dims import Dim, is_natural, unknown
from infconv.passes._op import INTEGERS, MAX_ELEMENTS, Content, Op, Unknown, axis_in
from infconv.passes._shapes_move import slice_ranges
from infconv.passes._shapes_plain import shape_size, shape_slice

ContentRule = Callable[[Op], "list[Content]"]


def array(elements: list[Any]) -> Content:
    """Return the elements as a one-dimensional content."""
    content = np.empty(len(elements), dtype=object)
    content[:] = elements
    return content


def _limited(size: int) -> int:
    if size > MAX_ELEMENTS:
        raise Unknown("too many elements to be a shape")
    return size


def _shape(op: Op) -> list[Content]:
    return [array(list(shape_slice(op)))]


def _size(op: Op) -> list[Content]:
    return [array([shape_size(op)]).reshape(())]


def _same(op: Op) -> list[Content]:
    return [op.content(0)]


def _cast(op: Op) -> list[Content]:
    source = op.content(0)
    target = op.required("to").as_int()
    if target in INTEGERS:
        return [_each(lambda element: unknown(natural=True) if element is None else _plain(element), source)]
    return [_each(_truth, source)]


def _plain(element: Any) -> Any:
    return int(element) if isinstance(element, bool) else element


def _truth(element: Any) -> bool | None:
    if element is None or isinstance(element, bool):
        return element
    zero = _dims.equal(element, 0)
    return None if zero is None else not zero


def _each(function: Callable[..., Any], *contents: Content) -> Content:
    """Return `function` of the broadcast contents, element by element."""
    shape = np.broadcast_shapes(*(content.shape for content in contents))
    _limited(int(np.prod(shape)))
    flat = [np.broadcast_to(content, shape).ravel().tolist() for content in contents]
    return array([function(*elements) for elements in zip(*flat, strict=True)]).reshape(shape)


def _elementwise(function: Callable[..., Any]) -> ContentRule:
    def rule(op: Op) -> list[Content]:
        if op.opset < 7:
            raise Unknown("broadcast by attributes")
        return [_each(function, *(op.content_or_unknowns(index) for index in range(len(op.inputs))))]

    return rule


def _folded(function: Callable[[Dim, Dim], Dim]) -> ContentRule:
    def fold(*elements: Dim) -> Dim:
        result = elements[0]
        for element in elements[1:]:
            result = function(result, element)
        return result

    return _elementwise(fold)


def _divide(a: Dim, b: Dim) -> Dim:
    """Return a / b rounded towards zero, which is the floor when neither is negative."""
    if b == 0:
        return unknown(natural=False)
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    quotient = _dims.floor_div(a, b)
    return quotient if (is_natural(a) and is_natural(b)) or quotient * b == a else unknown(natural=False)


def _mod(op: Op) -> list[Content]:
    if op.attr_int("fmod", 0):
        raise Unknown("fmod")
    return _elementwise(_dims.modulo)(op)


def _absolute(element: Dim) -> Dim:
    if is_natural(element):
        return element
    return -element if is_natural(-element) else unknown()


def _negate(condition: bool | None) -> bool | None:
    return None if condition is None else not condition


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _or(a: bool | None, b: bool | None) -> bool | None:
    return _negate(_and(_negate(a), _negate(b)))


def _equal(a: Any, b: Any) -> bool | None:
    if isinstance(a, bool | None) or isinstance(b, bool | None):
        return None if a is None or b is None else a == b
    return _dims.equal(a, b)


def _where(op: Op) -> list[Content]:
    return [_each(_choose, op.content(0), op.content_or_unknowns(1), op.content_or_unknowns(2))]


def _choose(condition: bool | None, a: Dim, b: Dim) -> Dim:
    if condition is None:
        return a if a == b else unknown(natural=is_natural(a) and is_natural(b))
    return a if condition else b


def _reshape(op: Op) -> list[Content]:
    """Squeeze, Unsqueeze, Reshape and Flatten keep the order of elements: the new shape says it all."""
    from infconv.passes._symbolic import RULES

    content = op.content(0)
    (dims,) = RULES[op.node.op_type][0](op)
    if dims is None:
        raise Unknown
    return [content.reshape(op.ints_of(dims))]


def _transpose(op: Op) -> list[Content]:
    return [op.content(0).transpose(op.attr_ints("perm"))]


def _concat(op: Op) -> list[Content]:
    contents = [op.content_or_unknowns(index) for index in range(len(op.inputs))]
    _limited(sum(content.size for content in contents))
    return [np.concatenate(contents, axis=op.attr_int("axis", 1))]


def _gather(op: Op) -> list[Content]:
    source, axis = op.content(0), op.attr_int("axis", 0)
    indices = np.array(op.ints(1), dtype=np.int64).reshape(op.content(1).shape)
    return [np.asarray(np.take(source, indices, axis=axis), dtype=object)]  # numpy unpacks a lone element


def _slice(op: Op) -> list[Content]:
    source = op.content(0)
    index = [slice(None)] * source.ndim
    for axis, (start, end, step) in slice_ranges(op, source.ndim).items():
        if not (isinstance(start, int) and isinstance(end, int) and step):
            raise Unknown
        first, last, stride = slice(start, end, step).indices(source.shape[axis])
        index[axis] = slice(first, last if last >= 0 else None, stride)
    return [source[tuple(index)]]


def _split(op: Op) -> list[Content]:
    from infconv.passes._symbolic import RULES

    source = op.content(0)
    axis = axis_in(op.attr_int("axis", 0), source.ndim)
    sizes = [op.ints_of(dims)[axis] for dims in RULES["Split"][0](op) if dims is not None]
    return np.split(source, np.cumsum(sizes)[:-1], axis=axis)


def _expand(op: Op) -> list[Content]:
    source = op.content(0)
    shape = np.broadcast_shapes(source.shape, tuple(op.ints(1)))
    _limited(int(np.prod(shape)))
    return [np.broadcast_to(source, shape)]


def _tile(op: Op) -> list[Content]:
    source, repeats = op.content(0), op.ints(1)
    _limited(source.size * int(np.prod(repeats)))
    return [np.tile(source, repeats)]


def _constant_of_shape(op: Op) -> list[Content]:
    shape = op.ints(0)
    size = _limited(int(np.prod(shape)))
    value = op.required("value").as_tensor().numpy().ravel().tolist()[0]
    return [array([value] * size).reshape(shape)]


def _range(op: Op) -> list[Content]:
    start, limit, delta = (op.ints(index)[0] for index in range(3))
    if delta == 0:
        raise Unknown
    numbers = range(start, limit, delta)
    _limited(len(numbers))
    return [array(list(numbers))]


def _reduction(function: Callable[[Dim, Dim], Dim]) -> ContentRule:
    ufunc = np.frompyfunc(function, 2, 1)

    def rule(op: Op) -> list[Content]:
        source, axes = op.content(0), op.attr_or_input("axes", 1)
        if (not axes and op.attr_int("noop_with_empty_axes", 0)) or not source.size:
            raise Unknown
        keep = op.attr_int("keepdims", 1) == 1
        gone = sorted(axis_in(axis, source.ndim) for axis in axes) if axes else list(range(source.ndim))
        result = source
        for axis in reversed(gone):  # a custom ufunc reduces one axis at a time
            reduced = ufunc.reduce(result, axis=axis)
            result = array([reduced]).reshape(()) if not isinstance(reduced, np.ndarray) else reduced
            result = np.expand_dims(result, axis) if keep else result
        return [result]

    return rule


def _add(a: Dim, b: Dim) -> Dim:
    return a + b


def _multiply(a: Dim, b: Dim) -> Dim:
    return a * b


def _subtract(a: Dim, b: Dim) -> Dim:
    return a - b


RULES: dict[str, ContentRule] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Add": _elementwise(_add),
    "Sub": _elementwise(_subtract),
    "Mul": _elementwise(_multiply),
    "Div": _elementwise(_divide),
    "Mod": _mod,
    "Neg": _elementwise(lambda a: -a),
    "Abs": _elementwise(_absolute),
    "Sum": _folded(_add),
    "Max": _folded(_dims.maximum),
    "Min": _folded(_dims.minimum),
    "Equal": _elementwise(_equal),
    "Less": _elementwise(_dims.less),
    "Greater": _elementwise(lambda a, b: _dims.less(b, a)),
    "LessOrEqual": _elementwise(lambda a, b: _negate(_dims.less(b, a))),
    "GreaterOrEqual": _elementwise(lambda a, b: _negate(_dims.less(a, b))),
    "Not": _elementwise(_negate),
    "And": _elementwise(_and),
    "Or": _elementwise(_or),
    "Where": _where,
    "ReduceProd": _reduction(_multiply),
    "ReduceSum": _reduction(_add),
    "ReduceMax": _reduction(_dims.maximum),
    "ReduceMin": _reduction(_dims.minimum),
}
