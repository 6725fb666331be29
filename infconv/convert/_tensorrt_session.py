"""An engine on this machine's GPU: loaded, described and run.

Used in the TensorRT worker, and in a process of `infconv bench`. Both TensorRT packages have the same Python API; `trt`
is whichever module is meant, `cuda` is `cuda.bindings.runtime` of the package cuda-bindings. Depends on NumPy and
ml_dtypes beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
"""TensorRT's types of inputs and outputs that whole bytes hold."""
SMALLEST = 16
"""Bytes. An empty tensor needs an address as well."""


class NotRun(Exception):
    """Why an engine is not loaded or run: `kind` is usage, unsupported or memory."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


def load(runtime: Any, path: str) -> Any:
    """Return the deserialized engine at `path`. Raises NotRun: no GPU, or not the one that it is for."""
    engine = runtime.deserialize_cuda_engine(Path(path).read_bytes())
    if engine is None:
        raise NotRun("unsupported", f"{path} cannot be loaded on this machine.")
    return engine


def names(trt: Any, engine: Any, *, inputs: bool) -> list[str]:
    """Return the names of the engine's inputs, or of its outputs, in order."""
    every = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [name for name in every if (engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT) == inputs]


class Session:
    """An engine that is ready to be run, with the memory that its inputs and outputs needed so far."""

    def __init__(self, trt: Any, cuda: Any, log: Any, path: str) -> None:
        """Load the engine at `path`. Raises NotRun."""
        self._cuda = cuda
        self._runtime = trt.Runtime(log)
        self._engine = load(self._runtime, path)
        self.inputs, self.outputs = names(trt, self._engine, inputs=True), names(trt, self._engine, inputs=False)
        self._types = {name: self._type(trt, name) for name in (*self.inputs, *self.outputs)}
        every = self._types
        self._on_host = {n for n in every if self._engine.get_tensor_location(n) == trt.TensorLocation.HOST}
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise NotRun("memory", "The GPU has too little memory free for the engine.", "Free some, or use a larger.")
        self._memory: dict[str, tuple[int, int]] = {}
        self._host: dict[str, Array] = {}
        self._stream = self._done(cuda.cudaStreamCreate())
        self._allocators = {name: self._allocator(trt) for name in self.outputs if name not in self._on_host}
        for name, allocator in self._allocators.items():
            self._context.set_output_allocator(name, allocator)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs, by name, for `inputs`; one without an input of its name is refused, others are ignored.

        Numbers are cast to the engine's type where that keeps their kind. Raises NotRun.
        """
        for name in self.inputs:
            if name not in inputs:
                raise NotRun("usage", f"The engine's input '{name}' is not given.", f"Its inputs: {self._listed()}.")
            self._feed(name, np.asarray(inputs[name]))
        if missing := self._context.infer_shapes():
            raise NotRun("usage", f"The engine still lacks the shapes or values of {', '.join(missing)}.")
        for name in self._on_host.intersection(self.outputs):
            self._host[name] = np.zeros(tuple(self._context.get_tensor_shape(name)), self._types[name])
            self._context.set_tensor_address(name, self._host[name].ctypes.data)
        if not self._context.execute_async_v3(int(self._stream)):
            raise NotRun("unsupported", "TensorRT could not run the engine.")
        self._done(self._cuda.cudaStreamSynchronize(self._stream))
        return {name: self._fetch(name) for name in self.outputs}

    def reserve(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes on the GPU for the tensor `name`. Raises NotRun."""
        address, have = self._memory.get(name, (0, 0))
        if have < max(size, SMALLEST):
            if address:
                del self._memory[name]
                self._done(self._cuda.cudaFree(address))
            address = int(self._done(self._cuda.cudaMalloc(max(size, SMALLEST))))
            self._memory[name] = address, max(size, SMALLEST)
        return address

    def _listed(self) -> str:
        return ", ".join(self.inputs)

    def _type(self, trt: Any, name: str) -> np.dtype[Any]:
        word = self._engine.get_tensor_dtype(name).name
        if word not in DTYPES or self._engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise NotRun("unsupported", f"'{name}' is {word} in a packed layout, which is not read or written here.")
        return DTYPES[word]

    def _feed(self, name: str, given: Array) -> None:
        """Give the engine an input: its shape, and its content in the memory that it is read from."""
        dtype = self._types[name]
        if not np.can_cast(given.dtype, dtype, "same_kind"):
            raise NotRun("usage", f"The engine's input '{name}' is {dtype}, not {given.dtype}.")
        content = np.ascontiguousarray(given, dtype).reshape(given.shape)
        if not self._context.set_input_shape(name, content.shape):
            raise NotRun("usage", self._misfit(name, content.shape), "Give --inputs of such shapes, or build it anew.")
        if name in self._on_host:
            self._host[name] = content if content.size else np.zeros(SMALLEST, dtype)
            self._context.set_tensor_address(name, self._host[name].ctypes.data)
            return
        address = self.reserve(name, content.nbytes)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._done(self._cuda.cudaMemcpy(address, content.ctypes.data, content.nbytes, kind))
        self._context.set_tensor_address(name, address)

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str:
        declared = tuple(self._engine.get_tensor_shape(name))
        words = f"The engine's input '{name}' is {list(declared)}, not {list(shape)}"
        if -1 in declared and self._engine.num_optimization_profiles:
            low, _, high = (list(bound) for bound in self._engine.get_tensor_profile_shape(name, 0))
            words = f"The engine takes '{name}' from {low} to {high}, not {list(shape)}"
        return f"{words}."

    def _fetch(self, name: str) -> Array:
        if name in self._on_host:
            return self._host[name].copy()
        shape = tuple(self._allocators[name].shape)
        content = np.empty(shape, self._types[name])
        if content.size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._done(self._cuda.cudaMemcpy(content.ctypes.data, self._memory[name][0], content.nbytes, kind))
        return content

    def _allocator(self, trt: Any) -> Any:
        """Return what gives TensorRT the memory of an output whose size shows only when it is computed."""
        reserve = self.reserve

        class Allocator(trt.IOutputAllocator):
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)
                self.shape: tuple[int, ...] = ()

            def reallocate_output_async(
                self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
            ) -> int:
                del memory, alignment, stream  # cudaMalloc aligns to 256 bytes, and what it gives is kept here
                try:
                    return reserve(tensor_name, size)
                except NotRun:  # cannot pass through C++: TensorRT then says that it could not run
                    return 0

            def notify_shape(self, tensor_name: str, shape: Any) -> None:
                del tensor_name
                self.shape = tuple(shape)

        return Allocator()

    def _done(self, answer: tuple[Any, ...]) -> Any:
        """Return what a call of the CUDA runtime returned beside its status. Raises NotRun when that is an error."""
        status, *rest = answer
        if int(status) == 0:
            return rest[0] if rest else None
        words = f"CUDA: {getattr(status, 'name', status)}."
        if int(status) == int(self._cuda.cudaError_t.cudaErrorMemoryAllocation):
            raise NotRun("memory", f"The GPU has too little memory free. {words}", "Free some, or give smaller inputs.")
        raise NotRun("unsupported", words, "See infconv doctor, and nvidia-smi.")


def describe(trt: Any, engine: Any) -> dict[str, Any]:
    """Return the engine's `inputs` and `outputs`, each {name, dtype, shape, is_shape, profile}."""
    return {
        "inputs": [_tensor(engine, name, profile=True) for name in names(trt, engine, inputs=True)],
        "outputs": [_tensor(engine, name, profile=False) for name in names(trt, engine, inputs=False)],
    }


def _tensor(engine: Any, name: str, *, profile: bool) -> dict[str, Any]:
    ranges = None
    if profile and engine.num_optimization_profiles:
        ranges = [list(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
    return {
        "name": name,
        "dtype": engine.get_tensor_dtype(name).name,
        "shape": list(engine.get_tensor_shape(name)),
        "is_shape": bool(engine.is_shape_inference_io(name)),
        "profile": ranges,
    }
