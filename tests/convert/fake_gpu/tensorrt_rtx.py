"""TensorRT's Python interface, as far as running an engine needs it, computed by ONNX Runtime.

An engine file is `vtrt` and an ONNX model. What lies on the "GPU" is reached through `cuda.bindings.runtime` beside
this alone, so that an address of the wrong side is an error. Values named `host_…` are read and written in host memory.
"""

from __future__ import annotations

import ctypes
import enum

import numpy as np
import onnxruntime
from cuda.bindings import runtime as gpu

TYPES = {"float": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
NUMPY = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
PROFILE = (1, 2, 4)


class ILogger:
    pass


class IOutputAllocator:
    pass


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    BOOL = 4
    INT64 = 8


TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
TensorFormat = enum.Enum("TensorFormat", ["LINEAR"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])


class Runtime:
    def __init__(self, log):
        self.log = log

    def deserialize_cuda_engine(self, content):
        try:
            return Engine(onnxruntime.InferenceSession(content[4:], providers=["CPUExecutionProvider"]))
        except Exception:
            self.log.log(1, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)")
            return None


class Engine:
    num_optimization_profiles = 1

    def __init__(self, session):
        self.session = session
        self.inputs = {i.name: i for i in session.get_inputs()}
        self.outputs = {o.name: o for o in session.get_outputs()}
        self.names = [*self.outputs, *self.inputs]  # in no order that could be relied on
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[TYPES[self.value(name).type[7:-1]]]

    def get_tensor_format(self, name):
        return TensorFormat.LINEAR

    def get_tensor_location(self, name):
        return TensorLocation.HOST if name.startswith("host_") else TensorLocation.DEVICE

    def get_tensor_shape(self, name):
        return tuple(d if isinstance(d, int) else -1 for d in self.value(name).shape)

    def get_tensor_profile_shape(self, name, profile):
        return [tuple(size if d == -1 else d for d in self.get_tensor_shape(name)) for size in PROFILE]

    def is_shape_inference_io(self, name):
        return name.startswith("host_")

    def value(self, name):
        return self.inputs.get(name) or self.outputs[name]

    def create_execution_context(self):
        return Context(self)

    def create_engine_inspector(self):
        return Inspector()


class Inspector:
    def get_engine_information(self, form):
        return "{}"


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.allocators = engine, {}, {}, {}

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if fits:
            self.shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def get_tensor_shape(self, name):
        return self.engine.get_tensor_shape(name)

    def infer_shapes(self):
        return [name for name in self.engine.inputs if name not in self.addresses]

    def execute_async_v3(self, stream):
        feeds = {name: self.read(name) for name in self.engine.inputs}
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, feeds), strict=True):
            if name in self.allocators:
                at = self.allocators[name].reallocate_output_async(name, 0, value.nbytes, 256, stream)
                if not at:
                    return False
                gpu.content(at)[: value.nbytes] = value.tobytes()
                self.allocators[name].notify_shape(name, value.shape)
            else:
                ctypes.memmove(self.addresses[name], value.tobytes(), value.nbytes)
        return True

    def read(self, name):
        dtype = np.dtype(NUMPY[self.engine.value(name).type[7:-1]])
        size = int(np.prod(self.shapes[name])) * dtype.itemsize
        on_host = name.startswith("host_")
        raw = ctypes.string_at(self.addresses[name], size) if on_host else gpu.content(self.addresses[name])[:size]
        return np.frombuffer(bytes(raw), dtype).reshape(self.shapes[name])
