"""The .pdiparams file: its records, and ONNX initializers that take their bytes from it without loading them.

A record is: version (uint32), level of detail (uint64, then as many sized lists), version (uint32), length (int32) and
TensorDesc (protobuf: type 1, dims 2), and the elements. Records stand in the order of the parameters' sorted names.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from ._worker import WorkerError
from ._worker_paddle_program import Tensor
from ._worker_protobuf import varint

ALIGNMENT = 4096
"""Of external data, so that it can be mapped."""
INLINE_BYTES = 256
"""Smaller tensors stay in the model file."""

_KINDS: dict[int, tuple[str, int, int]] = {
    0: ("bool", onnx.TensorProto.BOOL, 1),
    1: ("int16", onnx.TensorProto.INT16, 2),
    2: ("int32", onnx.TensorProto.INT32, 4),
    3: ("int64", onnx.TensorProto.INT64, 8),
    4: ("float16", onnx.TensorProto.FLOAT16, 2),
    5: ("float32", onnx.TensorProto.FLOAT, 4),
    6: ("float64", onnx.TensorProto.DOUBLE, 8),
    20: ("uint8", onnx.TensorProto.UINT8, 1),
    21: ("int8", onnx.TensorProto.INT8, 1),
    22: ("bfloat16", onnx.TensorProto.BFLOAT16, 2),
    23: ("complex64", onnx.TensorProto.COMPLEX64, 8),
    24: ("complex128", onnx.TensorProto.COMPLEX128, 16),
}
"""VarType of framework.proto -> name, ONNX type, bytes of an element."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A stored tensor: where its elements are."""

    dtype: str
    onnx_type: int
    dims: tuple[int, ...]
    offset: int
    length: int


def attach(model: onnx.ModelProto, tensors: list[Tensor], parameters: str, folder: Path, data_name: str) -> None:
    """Add the parameters that the graph reads as initializers, their bytes in `folder / data_name`.

    Raises WorkerError (source) when the file does not hold `tensors`.
    """
    wanted = free_names(model.graph)
    with open(parameters, "rb") as stream, (folder / data_name).open("wb") as data:
        for tensor, record in zip(tensors, check_parameters(tensors, parameters), strict=True):
            if tensor.name in wanted:
                model.graph.initializer.append(_initializer(tensor.name, record, stream, data, data_name))
        written = data.tell()
    if not written:
        (folder / data_name).unlink()


def free_names(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> set[str]:
    """Return the values that `graph` and its subgraphs read and nothing gives."""
    given = outer | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {name for node in graph.node for name in node.output}
    free = {name for node in graph.node for name in node.input if name} | {value.name for value in graph.output}
    free -= given
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                free |= free_names(attribute.g, frozenset(given))
    return free


def _initializer(name: str, record: Record, stream: BinaryIO, data: BinaryIO, location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=record.onnx_type, dims=record.dims)
    stream.seek(record.offset)
    if record.length <= INLINE_BYTES:
        tensor.raw_data = stream.read(record.length)
        return tensor
    data.seek(math.ceil(data.tell() / ALIGNMENT) * ALIGNMENT)
    start = data.tell()
    _copy(stream, data, record.length)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", start), ("length", record.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _copy(stream: BinaryIO, data: BinaryIO, length: int) -> None:
    remaining = length
    while remaining:
        chunk = stream.read(min(remaining, 16 << 20))
        data.write(chunk)
        remaining -= len(chunk)


def check_parameters(tensors: list[Tensor], path: str) -> list[Record]:
    """Return the record of each of `tensors`. Raises WorkerError (source) when the file at `path` holds others."""
    records = read_records(path)
    if len(records) != len(tensors):
        raise _other_model(path, f"it holds {len(records)} tensors, the program has {len(tensors)} parameters")
    for tensor, record in zip(tensors, records, strict=True):
        if tensor.dims != record.dims or tensor.dtype != record.dtype:
            found = f"{record.dtype}{list(record.dims)}"
            raise _other_model(
                path, f"parameter '{tensor.name}' is {found} there, {tensor.dtype}{list(tensor.dims)} here"
            )
    return records


def _other_model(path: str, fact: str) -> WorkerError:
    return WorkerError(
        "source",
        f"'{path}' does not belong to this program: {fact}.",
        "Put both files of one paddle.jit.save side by side.",
    )


def read_records(path: str) -> list[Record]:
    """Return what a .pdiparams file holds. Raises WorkerError (source) when it is damaged or cut short."""
    try:
        with open(path, "rb") as stream:
            return list(_records(stream, os.fstat(stream.fileno()).st_size))
    except (struct.error, IndexError, EOFError, KeyError) as error:
        raise WorkerError(
            "source", f"'{path}' is damaged or cut short.", "Copy the file again, or save the model again."
        ) from error


def _records(stream: BinaryIO, size: int) -> Iterator[Record]:
    while stream.tell() < size:
        levels = _unpack(stream, "<IQ")[1]
        for _ in range(levels):
            stream.seek(_unpack(stream, "<Q")[0], os.SEEK_CUR)
        described = stream.read(_unpack(stream, "<Ii")[1])
        kind, dims = _tensor_desc(described)
        name, onnx_type, width = _KINDS[kind]
        offset, length = stream.tell(), math.prod(dims) * width
        if offset + length > size:
            raise EOFError
        yield Record(name, onnx_type, dims, offset, length)
        stream.seek(offset + length)


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _tensor_desc(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Return type and sizes from a TensorDesc; its sizes are packed or not."""
    kind, dims, at = -1, list[int](), 0
    while at < len(data):
        key, at = varint(data, at)
        value, at = varint(data, at)
        if key >> 3 == 1:
            kind = value
        elif key & 7 == 0:
            dims.append(value)
        else:
            end = at + value
            while at < end:
                value, at = varint(data, at)
                dims.append(value)
    return kind, tuple(dims)
