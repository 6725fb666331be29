"""Read an ONNX file without its weights, and write one around weights that stay where they are.

Parsing a model with the protobuf library costs its size twice over in memory and stops at 2 GB. Here the file is
mapped, the bytes of large tensors are stepped over, and the small rest is parsed. Writing is the same in reverse:
the small rest is serialised, and the weights are copied from wherever they are mapped straight into the file.

Field numbers are those of onnx.proto; the wire format is https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from infconv.errors import SourceError

MAPPED = "\0mapped"
"""Location of a tensor whose bytes were left in the model file itself; no real file name has a NUL."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> field number -> message of that field: where large tensors may sit.
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_DATA_TYPE, _FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA = 2, 4, 9, 10
_FLOAT, _DOUBLE = 1, 11


def varint(value: int) -> bytes:
    """Return `value` >= 0 in base-128, least significant group first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload_length: int) -> bytes:
    """Return the header of a length-delimited field."""
    return varint(number << 3 | _BYTES) + varint(payload_length)


def _read_varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise SourceError("The file ends in the middle of a number: it is truncated or not an ONNX model.")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, where its header starts, where its payload ends) for one message.

    For length-delimited fields the payload's start is not yielded: it is read again where it is needed.
    """
    at = start
    while at < end:
        header = at
        key, at = _read_varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, at = _read_varint(data, at, end)
        elif wire == _BYTES:
            length, at = _read_varint(data, at, end)
            at += length
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        else:
            raise SourceError(f"The file is not an ONNX model (protobuf wire type {wire} at byte {header}).")
        if at > end or number == 0:
            raise SourceError("The file is truncated or not an ONNX model: a field runs past the end.")
        yield number, wire, header, at


def _payload(data: mmap.mmap, header: int, end: int) -> int:
    """Return where the payload of the length-delimited field at `header` starts."""
    _, at = _read_varint(data, header, end)
    _, at = _read_varint(data, at, end)
    return at


def without_weights(data: mmap.mmap, threshold: int) -> bytes:
    """Return the serialised ModelProto in `data` with every tensor payload of at least `threshold` bytes left out.

    Such a tensor gets `data_location = EXTERNAL` with location MAPPED and its offset and length in `data`.
    Raises SourceError when `data` is not a well-formed message.
    """
    return b"".join(_strip(data, 0, len(data), "model", threshold))


def _strip(data: mmap.mmap, start: int, end: int, message: str, threshold: int) -> list[bytes]:
    nested = _NESTED[message]
    parts: list[bytes] = []
    copied = start
    for number, wire, header, stop in _fields(data, start, end):
        inner = nested.get(number)
        if inner is None or wire != _BYTES or stop - header < threshold:
            continue
        begin = _payload(data, header, stop)
        strip = _strip_tensor if inner == "tensor" else _strip
        replaced = strip(data, begin, stop, inner, threshold)
        parts += (data[copied:header], field(number, sum(map(len, replaced))), *replaced)
        copied = stop
    parts.append(data[copied:end])
    return parts


def _strip_tensor(data: mmap.mmap, start: int, end: int, _message: str, threshold: int) -> list[bytes]:
    """Return the TensorProto in `data` with its one large payload replaced by where that payload is."""
    fields = list(_fields(data, start, end))
    data_type = next((_payload_varint(data, f) for f in fields if f[0] == _DATA_TYPE and f[1] == _VARINT), 0)
    # Packed float_data and double_data are little-endian words one after the other, just as raw_data is.
    payload_fields = {_RAW_DATA} | {_FLOAT: {_FLOAT_DATA}, _DOUBLE: {_DOUBLE_DATA}}.get(data_type, set())
    large = [f for f in fields if f[0] in payload_fields and f[1] == _BYTES and f[3] - f[2] >= threshold]
    if len(large) != 1 or sum(f[0] in payload_fields for f in fields) != 1:
        return [data[start:end]]
    _, _, header, stop = large[0]
    begin = _payload(data, header, stop)
    return [data[start:header], external_reference(MAPPED, begin, stop - begin), data[stop:end]]


def _payload_varint(data: mmap.mmap, entry: tuple[int, int, int, int]) -> int:
    _, at = _read_varint(data, entry[2], entry[3])
    return _read_varint(data, at, entry[3])[0]


def external_reference(location: str, offset: int, length: int) -> bytes:
    """Return the TensorProto fields that say where a tensor's bytes are (external_data = 13, data_location = 14)."""
    entries = b""
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        key_bytes, value_bytes = key.encode(), value.encode()
        entry = field(1, len(key_bytes)) + key_bytes + field(2, len(value_bytes)) + value_bytes
        entries += field(13, len(entry)) + entry
    return entries + varint(14 << 3 | _VARINT) + b"\x01"


def initializer_header(tensor: bytes, payload_length: int) -> bytes:
    """Return what precedes `payload_length` raw bytes of a graph initializer whose other fields are `tensor`."""
    raw = field(_RAW_DATA, payload_length)
    return field(5, len(tensor) + len(raw) + payload_length) + tensor + raw


def graph_header(graph_length: int) -> bytes:
    """Return the header of ModelProto.graph."""
    return field(7, graph_length)
