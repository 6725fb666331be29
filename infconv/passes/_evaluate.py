"""Evaluate constant nodes in one ONNX Runtime session (several for large weights), in a child, its optimizer off.

Large constants are fed from where they lie (a mapped file), and large results are written into memory that the two
processes share, so that a weight is neither serialized nor sent through a pipe.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import onnx_ir as ir

from infconv import isolate
from infconv.errors import InfconvError
from infconv.model import release_pages
from infconv.passes._op import constant_tensor

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_FED = 4096
"""Constants of at least this many bytes are fed, smaller ones are written into the model."""
_SHARED = 1 << 16
"""Results of at least this many bytes come back through shared memory, if their size is known beforehand."""
_HELD = 64 << 20
"""About so many bytes of constants are read at a time."""
_SECONDS, _SECONDS_PER_BYTE, _SECONDS_PER_NODE = 30.0, 1e-7, 1e-3
Sizes: TypeAlias = "Mapping[ir.Value, tuple[ir.DataType, list[int]]]"
"""Types and shapes that are known before anything is computed."""
_STORAGE = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class EvaluationError(InfconvError):
    """The constants could not be computed. `node` is the one to blame, if the runtime named it."""

    def __init__(self, message: str, node: ir.Node | None = None) -> None:
        super().__init__(message)
        self.node = node


@dataclasses.dataclass
class _Result:
    """One output as the child sends it; `data` is None when it lies in shared memory."""

    dtype: int
    shape: list[int]
    data: bytes | list[str] | None


@dataclasses.dataclass
class _Failure:
    text: str


@dataclasses.dataclass
class _Work:
    """A model of the nodes, what to feed it, and where large results go."""

    proto: onnx.ModelProto
    feeds: dict[str, tuple[np.ndarray, int]]
    outputs: list[str]
    shared: dict[str, tuple[mmap.mmap, ir.DataType, list[int]]]


def evaluate(
    nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], opset: int, sizes: Sizes
) -> dict[ir.Value, ir.TensorProtocol]:
    """Return the tensors of the `wanted` outputs of `nodes`, which are in order and depend on constants alone.

    `sizes` are the types and shapes that are known beforehand. Raises EvaluationError.
    """
    importlib.import_module("onnxruntime")  # before the fork, so that each child need not
    parts = _parts(nodes)
    part_of = {node: index for index, part in enumerate(parts) for node in part}
    asked: list[list[ir.Value]] = [[] for _ in parts]
    for value in wanted:
        asked[part_of[cast(ir.Node, value.producer())]].append(value)
    works = [_prepare(part, values, opset, sizes) for part, values in zip(parts, asked, strict=True)]
    timeout = _SECONDS + sum(map(_moved, works)) * _SECONDS_PER_BYTE + len(nodes) * _SECONDS_PER_NODE
    try:
        outcome = isolate.call(lambda: _run_all(works), what="Evaluating constants", timeout=timeout)
    except InfconvError as error:
        raise EvaluationError(error.message) from error
    found: dict[ir.Value, ir.TensorProtocol] = {}
    for part, values, work, results in zip(parts, asked, works, outcome, strict=False):
        if isinstance(results, _Failure):
            raise EvaluationError(_first_line(results.text), _blamed(results.text, part))
        for value, name, result in zip(values, work.outputs, results, strict=True):
            found[value] = _tensor(result, work.shared.get(name))
    return found


def _moved(work: _Work) -> int:
    """Return the bytes that are read and written in large tensors."""
    fed = sum(array.nbytes for array, _ in work.feeds.values())
    return fed + sum(len(room) for room, _, _ in work.shared.values())


def _parts(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Return `nodes` in parts that do not depend on each other: one, unless much is read; then less is held at once."""
    sizes = {node: _bytes_read(node) for node in nodes}
    if sum(sizes.values()) <= _HELD:
        return [list(nodes)]
    group_of: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        found = [group_of[p] for value in node.inputs if value is not None and (p := value.producer()) in group_of]
        group = max(found, key=len, default=[])
        for other in found:
            if other is not group and other and group_of[other[0]] is other:
                group += other
                group_of.update(dict.fromkeys(other, group))
        group.append(node)
        group_of[node] = group
    parts: list[list[ir.Node]] = [[]]
    held = 0
    order = {node: position for position, node in enumerate(nodes)}
    for group in {id(group): group for group in group_of.values()}.values():
        size = sum(sizes[node] for node in group)
        if parts[-1] and held + size > _HELD:
            parts.append([])
            held = 0
        parts[-1] += group
        held += size
    return [sorted(part, key=order.__getitem__) for part in parts]


def _bytes_read(node: ir.Node) -> int:
    tensors = [constant_tensor(value) for value in node.inputs if value is not None]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _prepare(nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], opset: int, sizes: Sizes) -> _Work:
    import onnx

    proto = onnx.ModelProto(ir_version=10)
    proto.opset_import.add(domain="", version=opset)
    proto.graph.name = "constants"
    names: dict[ir.Value, str] = {}
    feeds: dict[str, tuple[np.ndarray, int]] = {}
    for position, node in enumerate(nodes):
        target = proto.graph.node.add(op_type=node.op_type, name=f"n{position}")
        for value in node.inputs:
            if value is not None and value not in names:
                names[value] = f"v{len(names)}"
                _add_source(proto.graph, names[value], value, feeds)
            target.input.append("" if value is None else names[value])
        for value in node.outputs:
            names[value] = f"v{len(names)}" if value.name else ""
            target.output.append(names[value])
        for attribute in node.attributes.values():
            ir.serde.serialize_attribute_into(target.attribute.add(), attribute)
    outputs = [names[value] for value in wanted]
    for name in outputs:
        proto.graph.output.add(name=name)
    return _Work(proto, feeds, outputs, _share(dict(zip(outputs, wanted, strict=True)), sizes))


def _share(outputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, tuple[mmap.mmap, ir.DataType, list[int]]]:
    """Make room for the large results whose size is known."""
    shared: dict[str, tuple[mmap.mmap, ir.DataType, list[int]]] = {}
    for name, value in outputs.items():
        if value in sizes and sizes[value][0] != ir.DataType.STRING and sizes[value][0].bitwidth in _STORAGE:
            dtype, shape = sizes[value]
            size = math.prod(shape) * int(dtype.bitwidth) // 8
            if size >= _SHARED:
                shared[name] = (mmap.mmap(-1, size), dtype, shape)
    return shared


def _add_source(graph: onnx.GraphProto, name: str, value: ir.Value, feeds: dict[str, tuple[np.ndarray, int]]) -> None:
    """Make a constant an input of the session if it is large, an initializer otherwise."""
    tensor = constant_tensor(value)
    if tensor is None:
        raise ValueError(f"{value.name} is not a constant.")
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes < _FED or tensor.dtype.bitwidth not in _STORAGE:
        ir.serde.serialize_tensor_into(graph.initializer.add(), tensor)
        graph.initializer[-1].name = name
        return
    array = np.ascontiguousarray(tensor.numpy())
    if tensor.dtype.numpy().isbuiltin != 1:  # bfloat16, float8: the runtime takes the bits
        array = array.view(_STORAGE[int(tensor.dtype.bitwidth)])
    feeds[name] = (array, int(tensor.dtype))
    info = graph.input.add(name=name)
    info.type.tensor_type.elem_type = int(tensor.dtype)
    for dim in array.shape:
        info.type.tensor_type.shape.dim.add(dim_value=dim)


def _run_all(works: Sequence[_Work]) -> list[list[_Result] | _Failure]:
    """Run each in turn, up to the first failure; mapped memory is given back as soon as it was used."""
    outcomes: list[list[_Result] | _Failure] = []
    for work in works:
        outcomes.append(_run(work))
        if isinstance(outcomes[-1], _Failure):
            break
        for array, _ in work.feeds.values():
            release_pages(array)
        for memory, _, _ in work.shared.values():
            release_pages(memoryview(memory))
    return outcomes


def _run(work: _Work) -> list[_Result] | _Failure:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = 0 if work.shared else 1
    try:
        model = work.proto.SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, (array, dtype) in work.feeds.items():
            fed = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, dtype)
            binding.bind_ortvalue_input(name, fed)
        for name in work.outputs:
            if name in work.shared:
                memory, dtype, shape = work.shared[name]
                binding.bind_output(name, "cpu", 0, int(dtype), shape, np.frombuffer(memory, np.uint8).ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return [_result(name, value, work) for name, value in zip(work.outputs, binding.get_outputs(), strict=True)]
    except Exception as error:  # the runtime's exceptions have no common base; the text is told to the user
        return _Failure(str(error))


def _result(name: str, value: onnxruntime.OrtValue, work: _Work) -> _Result:
    if not value.is_tensor():
        raise TypeError(f"The result is {value.data_type()}, not a tensor.")
    shape, dtype = [int(dim) for dim in value.shape()], int(value.element_type())
    if name in work.shared:
        return _Result(dtype, shape, None)
    if dtype == ir.DataType.STRING:
        return _Result(dtype, shape, [str(text) for text in value.numpy().ravel()])
    size = value.tensor_size_in_bytes()
    return _Result(dtype, shape, ctypes.string_at(value.data_ptr(), size) if size else b"")


def _tensor(result: _Result, shared: tuple[mmap.mmap, Any, Any] | None) -> ir.TensorProtocol:
    dtype, shape = ir.DataType(result.dtype), ir.Shape(result.shape)
    if isinstance(result.data, list):
        return ir.StringTensor([text.encode() for text in result.data], shape=shape)
    buffer = result.data if shared is None else shared[0]
    if buffer is None:
        raise ValueError("A result has no data.")
    if dtype.bitwidth not in _STORAGE:
        return ir.PackedTensor(np.frombuffer(buffer, np.uint8), dtype, shape=shape)
    array = np.frombuffer(buffer, dtype.numpy()).reshape(result.shape)
    return ir.Tensor(array, dtype=dtype, shape=shape)


def _blamed(text: str, nodes: Sequence[ir.Node]) -> ir.Node | None:
    """Return the node that an error of the runtime names. They are called n0, n1 and so on."""
    found = re.search(r"""['"(]n(\d+)['")]""", text)
    return nodes[int(found.group(1))] if found and int(found.group(1)) < len(nodes) else None


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "unknown error"
    return re.sub(r"/\S*/onnxruntime/", "", line)[:200]
