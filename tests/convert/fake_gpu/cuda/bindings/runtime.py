"""The CUDA runtime's Python interface on a GPU of 1 MiB whose memory lies in this process, at addresses of its own."""

from __future__ import annotations

import ctypes
import enum

MEMORY = 1 << 20
_blocks: dict[int, bytearray] = {}


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


def cudaStreamCreate():
    return cudaError_t.cudaSuccess, 7


def cudaStreamSynchronize(stream):
    return (cudaError_t.cudaSuccess if stream == 7 else cudaError_t.cudaErrorInvalidValue,)


def cudaMalloc(size):
    if size + sum(map(len, _blocks.values())) > MEMORY:
        return cudaError_t.cudaErrorMemoryAllocation, None
    address = (1 << 50) + 256 * len(_blocks) * MEMORY
    _blocks[address] = bytearray(size)
    return cudaError_t.cudaSuccess, address


def cudaFree(address):
    _blocks[address] = bytearray()
    return (cudaError_t.cudaSuccess,)


def cudaMemcpy(target, source, size, kind):
    to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
    block = _blocks.get(target if to_device else source)
    if block is None or size > len(block):
        return (cudaError_t.cudaErrorInvalidValue,)
    if to_device:
        block[:size] = ctypes.string_at(source, size)
    else:
        ctypes.memmove(target, bytes(block[:size]), size)
    return (cudaError_t.cudaSuccess,)


def content(address):
    """Return the memory at `address`, for what computes on the GPU."""
    return _blocks[address]
