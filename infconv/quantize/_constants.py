"""What becomes of constants in a narrow format: what they lose, and the cast tensors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.model import mapping_of, release_pages
from infconv.quantize._formats import Format

_CHUNK = 1 << 20
"""Elements looked at in one go, so that a large weight costs no more memory than its own pages."""
_LAZY_BYTES = 1 << 20
"""File-backed tensors above this are cast when they are read (at save), not now."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """What casting a constant costs."""

    largest: float
    """Largest finite magnitude."""
    relative: float
    """L2 norm of the rounding error over that of the tensor, overflow aside."""

    def overflows(self, narrow: Format) -> bool:
        """Whether a finite element would become infinite (or saturate)."""
        return self.largest > narrow.largest


@contextlib.contextmanager
def reading(tensor: ir.TensorProtocol) -> Generator[np.ndarray[Any, np.dtype[Any]]]:
    """Give the tensor's elements; the pages of a mapped file that were read for it are given back afterwards."""
    array = tensor.numpy()
    try:
        yield array
    finally:
        release_pages(array)


def examine(tensor: ir.TensorProtocol, narrow: Format) -> Loss:
    """Return what `tensor` (FP32) loses in `narrow`, in one pass over its elements, or two when tiny ones dominate."""
    with reading(tensor) as array:
        flat = array.reshape(-1)
        largest, squares = 0.0, 0.0
        for chunk in _chunks(flat):
            largest = max(largest, float(np.max(np.abs(chunk), initial=0.0)))
            with np.errstate(over="ignore", invalid="ignore"):
                squares += float(np.dot(chunk, chunk))
        if not np.isfinite(largest) or not np.isfinite(squares):
            return _exact_loss(flat, narrow)
        # Beyond the rounding of normal numbers (a few 1e-4 in FP16), half a quantum is lost for each tiny element.
        bound = 0.0 if squares == 0.0 else np.sqrt(flat.size / squares) * narrow.quantum / 2
        if largest > narrow.largest or bound > 1e-3 or (squares == 0.0 and largest > 0.0):
            return _exact_loss(flat, narrow)
        return Loss(largest, float(bound))


def _exact_loss(flat: np.ndarray[Any, np.dtype[Any]], narrow: Format) -> Loss:
    largest, squares, errors = 0.0, 0.0, 0.0
    for chunk in _chunks(flat):
        finite = chunk[np.isfinite(chunk)].astype(np.float64)
        largest = max(largest, float(np.max(np.abs(finite), initial=0.0)))
        inside = finite[np.abs(finite) <= narrow.largest]
        error = inside - round_to(inside, narrow).astype(np.float64)
        squares += float(np.dot(inside, inside))
        errors += float(np.dot(error, error))
    return Loss(largest, float(np.sqrt(errors / squares)) if squares else 0.0)


def _chunks(flat: np.ndarray[Any, np.dtype[Any]]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]


def round_to(array: np.ndarray[Any, np.dtype[Any]], narrow: Format) -> np.ndarray[Any, np.dtype[Any]]:
    """Round to nearest even; finite values beyond the range saturate, infinities and NaN stay."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = array.astype(narrow.numpy)
        if not np.isinf(rounded).any():
            return rounded
        inside = np.clip(array, -narrow.largest, narrow.largest).astype(narrow.numpy)
        return np.where(np.isinf(array), rounded, inside)


def narrowed(tensor: ir.TensorProtocol, narrow: Format, name: str) -> ir.TensorProtocol:
    """Return `tensor` in the narrow format. A large one that lies in a file is read and cast at each access."""

    def cast() -> ir.Tensor[Any]:
        with reading(tensor) as array:
            rounded = round_to(array, narrow)
        return ir.Tensor(rounded, dtype=narrow.dtype, name=name)

    if tensor.nbytes > _LAZY_BYTES and (isinstance(tensor, ir.LazyTensor) or mapping_of(tensor.numpy()) is not None):
        return ir.LazyTensor(cast, narrow.dtype, ir.Shape(tensor.shape.numpy()), name=name)
    return cast()


def clamped(tensor: ir.TensorProtocol, narrow: Format) -> ir.TensorProtocol:
    """Return `tensor` with its finite values limited to the magnitude of the narrow format's mask."""
    array = tensor.numpy()
    limit = abs(narrow.mask)
    with np.errstate(invalid="ignore"):
        values = np.where(np.isinf(array), array, np.clip(array, -limit, limit)).astype(array.dtype)
    return ir.Tensor(values, dtype=tensor.dtype, name=tensor.name)


def set_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Replace the content of an initializer, a Constant or a ConstantOfShape."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
        return
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", tensor))
