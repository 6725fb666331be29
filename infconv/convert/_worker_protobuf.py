"""The wire format of protocol buffers, for the few fields that are read without the schema; standard library only.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at`, base 128 with the least significant group first, and where it ends.

    Raises IndexError when `data` ends before it, or it has more than 64 bits.
    """
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
    raise IndexError(at)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a message: a number, or bytes. Raises IndexError when it is cut short."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = varint(data, at)
            yield number, value
        elif wire == _BYTES:
            size, at = varint(data, at)
            if at + size > len(data):
                raise IndexError(at)
            yield number, data[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise IndexError(at)
