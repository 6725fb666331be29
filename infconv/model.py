"""Load and save ONNX models: weights stay mapped, files over 2 GB work, external data cannot leave its folder."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import infconv._onnx_ir  # pyright: ignore[reportUnusedImport]  (must come before the first import of onnx_ir)
from infconv import _protobuf
from infconv._normalise import inner_tensors, normalise, restore_types
from infconv.errors import ResourceError, SourceError
from infconv.garbage import rare_collections

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from onnx_ir import serde

MAP_THRESHOLD = 1024
"""Tensors of at least this many bytes stay in the file until they are needed."""
_PIECE = 16 << 20
"""Bytes of a weight that are read at a time."""
EMBED_LIMIT = 1_500_000_000
"""Weights beyond this many bytes go to `<name>.onnx.data`: protobuf itself stops at 2 GiB."""
_TYPES_ASIDE = "infconv.types_aside"
_GRAPH, _GRAPH_TYPES = 5, frozenset({5, 10})
"""onnx_ir.AttributeType.GRAPH, and that with GRAPHS: numbers, so that onnx_ir is imported only when it is needed."""
ALIGNMENT = 64
"""Where a tensor may start in an external file; runtimes map it and want aligned words."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Load an ONNX file, its external data included, without reading the weights.

    Raises SourceError when the file is missing, is not an ONNX model, or names external data that is absent, too
    short or outside the model's folder; UnsupportedError for what the graph representation cannot hold.
    """
    proto, mapping = read_proto(path)
    try:
        model = from_proto(proto)
    except SourceError as error:
        raise SourceError(f"'{path}': {error.message}") from error
    _map_tensors(model, Path(path), mapping)
    return model


def to_ir(model: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """Return a graph that the caller may change: loaded, converted, or a copy that shares the weights."""
    import onnx

    if isinstance(model, str | os.PathLike):
        return load(model)
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return from_proto(copy)
    return model.clone()


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Return the graph of `proto`, which is changed on the way; external tensors stay references.

    Raises SourceError for an invalid graph, UnsupportedError for what the representation cannot hold.
    """
    from onnx_ir import serde

    aside = normalise(proto)
    try:
        with rare_collections():
            model = serde.deserialize_model(proto)
    except Exception as error:  # onnx_ir raises what it meets: a ValueError, a KeyError, its own SerdeError
        raise SourceError(f"The model is not valid ONNX: {_first_line(error)}") from error
    model.meta[_TYPES_ASIDE] = aside
    return model


def read_proto(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, mmap.mmap]:
    """Return the ModelProto at `path` without its large tensors, and the mapped file that holds them."""
    import onnx

    mapping = _map_file(Path(path))
    try:
        stripped = _protobuf.without_weights(mapping, MAP_THRESHOLD)
        proto = onnx.ModelProto.FromString(stripped)
    except SourceError as error:
        raise SourceError(f"'{path}': {error.message}", "Export the model again, or check the download.") from error
    except Exception as error:  # protobuf's DecodeError lives in a different module for each implementation
        raise SourceError(f"'{path}' is not an ONNX model: {_first_line(error)}") from error
    if not proto.HasField("graph"):
        raise SourceError(f"'{path}' is not an ONNX model: it has no graph.")
    return proto, mapping


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].rstrip().endswith(":") else lines[0]


def _map_file(path: Path) -> mmap.mmap:
    if path.is_dir():
        raise SourceError(f"'{path}' is a folder, not an ONNX file.")
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise SourceError(f"'{path}' does not exist.", "Check the path.") from None
    except ValueError:
        raise SourceError(f"'{path}' is empty.", "Export the model again, or check the download.") from None
    except OSError as error:
        raise SourceError(f"'{path}' cannot be read: {error.strerror}.") from error


# --- weights ---------------------------------------------------------------------------------------------------


def _map_tensors(model: ir.Model, path: Path, mapping: mmap.mmap) -> None:
    """Replace every external tensor by a view of the mapped file that holds it, and small ones by arrays."""
    import onnx_ir as ir
    from onnx_ir import serde

    files: dict[str, mmap.mmap] = {_protobuf.MAPPED: mapping}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _mapped(value.const_value, path, files)
            elif isinstance(value.const_value, serde.TensorProtoTensor):
                value.const_value = _read(value.const_value)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    tensor = attribute.as_tensor()
                    if isinstance(tensor, ir.ExternalTensor):
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _mapped(tensor, path, files))


def _read(tensor: serde.TensorProtoTensor) -> ir.TensorProtocol:
    """Return `tensor` as an array: a protobuf message works out its shape and type anew whenever it is asked."""
    import onnx_ir as ir

    proto = tensor.raw
    if proto.doc_string or proto.metadata_props or tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return tensor
    try:
        return ir.Tensor(tensor.numpy(), tensor.dtype, name=proto.name)
    except (TypeError, ValueError):  # it does not have as many elements as it says; the checker says so
        return tensor


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, its subgraphs and the graphs of functions, each once."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from with_subgraphs(graph)


def with_subgraphs(graph: ir.Graph) -> list[ir.Graph]:
    """Return `graph` and the graphs in its nodes, at every depth; outer ones first."""
    found = [graph]
    for current in found:  # the list grows while it is walked
        for node in current:
            for attribute in node.attributes.data.values():  # most nodes have none, or none that is a graph
                if attribute.type in _GRAPH_TYPES:
                    found += subgraphs(node)
                    break
    return found


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs in the attributes of `node` itself, e.g. the branches of an If."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.data.values():  # .data: a UserDict's own iteration is several times slower
        if attribute.type in _GRAPH_TYPES and not attribute.is_ref():
            found += [attribute.as_graph()] if attribute.type == _GRAPH else attribute.as_graphs()
    return found


def _mapped(tensor: ir.ExternalTensor, path: Path, files: dict[str, mmap.mmap]) -> ir.TensorProtocol:
    """Return `tensor` as a read-only view of its file."""
    location = os.fspath(tensor.location)
    if location not in files:
        files[location] = _map_file(_contained(path, location))
    data = files[location]
    offset = tensor.offset or 0
    length = tensor.length if tensor.length is not None else tensor.nbytes
    if length != tensor.nbytes:
        raise SourceError(
            f"Tensor '{tensor.name}' of {tensor.dtype.name} {list(tensor.shape.numpy())} needs {tensor.nbytes} bytes, "
            f"but the model holds {length}."
        )
    if offset + length > len(data):
        raise SourceError(
            f"Tensor '{tensor.name}' lies at bytes {offset} to {offset + length} of '{location}', "
            f"which has only {len(data)}.",
            "The file is truncated, or belongs to another model: copy it again.",
        )
    return view(tensor, data, offset)


def view(tensor: ir.ExternalTensor, data: mmap.mmap, offset: int) -> ir.TensorProtocol:
    """Return the tensor that `tensor` describes as a read-only view of `data` at `offset`."""
    import numpy as np
    import onnx_ir as ir

    shape = tensor.shape.numpy()
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(data, np.uint8, tensor.nbytes, offset)
        return ir.PackedTensor(packed, tensor.dtype, shape=shape, name=tensor.name)
    dtype = tensor.dtype.numpy()
    count = tensor.nbytes // dtype.itemsize
    array = np.frombuffer(data, dtype, count, offset).reshape(shape)
    return ir.Tensor(array, tensor.dtype, name=tensor.name)


def _contained(model_path: Path, location: str) -> Path:
    """Return the external file that `location` names. Raises SourceError when it is outside the model's folder.

    The rules are those of the ONNX checker: relative, no `..`, no link that leads out, no hard link.
    """
    folder = model_path.parent.resolve()
    hint = "A model may only name files in its own folder. Copy the data there and correct the location."
    candidate = folder / location
    if Path(location).is_absolute() or ".." in Path(location).parts or "\0" in location:
        raise SourceError(f"'{model_path}' names external data outside its folder: '{location}'.", hint)
    resolved = candidate.resolve()
    if not resolved.is_relative_to(folder):
        raise SourceError(f"External data '{location}' is a link that leads out of the model's folder.", hint)
    if not resolved.is_file():
        raise SourceError(f"External data '{location}' of '{model_path}' is missing.", "Copy it beside the model.")
    if resolved.stat().st_nlink > 1:
        raise SourceError(f"External data '{location}' is a hard link to a file elsewhere.", hint)
    return resolved


def tensor_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """Return the bytes of `tensor` as ONNX stores them, without a copy where its memory is already in that form."""
    import numpy as np
    import onnx_ir as ir

    if isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
        if array.flags.c_contiguous and array.dtype.byteorder != ">":
            return array.reshape(-1).view(np.uint8).data
    return memoryview(tensor.tobytes())


# --- saving ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Skeleton:
    """A model without its large weights, and the weights that belong to it."""

    proto: onnx.ModelProto
    weights: dict[str, ir.TensorProtocol]
    """Initializer name -> tensor. The initializers in `proto` of these names have no data."""


def skeleton(model: ir.Model, threshold: int = MAP_THRESHOLD) -> Skeleton:
    """Return `model` as a proto whose main-graph initializers of at least `threshold` bytes have no data."""
    import onnx_ir as ir
    from onnx_ir import serde

    weights: dict[str, ir.TensorProtocol] = {}
    try:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= threshold:
                weights[name] = tensor
                value.const_value = ir.ExternalTensor(
                    _protobuf.MAPPED, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
                )
        proto = serde.serialize_model(model)
    finally:
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = tensor
    restore_types(proto, model.meta.get(_TYPES_ASIDE) or {})
    return Skeleton(proto, weights)


def save(model: ir.Model, path: str | os.PathLike[str], *, external: bool | None = None) -> list[Path]:
    """Write `model` to `path`, and to `<path>.data` its weights when `external`; return the files written.

    `external` None: when the weights are larger than EMBED_LIMIT. The same model gives the same bytes. The caller
    stages the write (see infconv.publish): this function writes in place. Raises ResourceError on a full disk.
    """
    path = Path(path)
    with rare_collections():
        parts = skeleton(model)
    if external is None:
        external = sum(t.nbytes for t in parts.weights.values()) > EMBED_LIMIT
    try:
        if external:
            return _save_external(parts, path)
        with path.open("wb") as stream:
            _write_embedded(parts, stream)
        return [path]
    except OSError as error:
        raise ResourceError(f"Cannot write '{path}': {error.strerror}.", "Choose another --output.") from error


def _write_embedded(parts: Skeleton, stream: BinaryIO) -> None:
    graph = parts.proto.graph
    tensors = [(t.name, _described(t)) for t in graph.initializer]
    graph.ClearField("initializer")
    rest = graph.SerializeToString(deterministic=True)
    headers: list[bytes] = []
    for name, tensor in tensors:
        weight = parts.weights.get(name)
        if weight is None:
            headers.append(_protobuf.field(5, len(tensor)) + tensor)
        else:
            headers.append(_protobuf.initializer_header(tensor, weight.nbytes))
    length = len(rest) + sum(map(len, headers)) + sum(t.nbytes for t in parts.weights.values())
    parts.proto.ClearField("graph")
    stream.write(parts.proto.SerializeToString(deterministic=True))
    stream.write(_protobuf.graph_header(length))
    stream.write(rest)
    for (name, _), header in zip(tensors, headers, strict=True):
        stream.write(header)
        if name in parts.weights:
            _write_weight(parts.weights[name], stream)


def _write_weight(tensor: ir.TensorProtocol, stream: BinaryIO) -> None:
    """Write the bytes of `tensor`."""
    for piece in pieces(tensor_bytes(tensor)):
        stream.write(piece)


def pieces(data: memoryview) -> Iterator[memoryview]:
    """Yield `data` piece by piece. What is mapped from a file leaves memory again once it was used."""
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        yield piece
        if len(data) > _PIECE:
            release_pages(piece)


def release_pages(data: memoryview | np.ndarray) -> None:
    """Let the system drop the pages of mapped `data`, which is contiguous; they come back when they are read again."""
    import numpy as np

    array = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else data
    owner = mapping_of(array)
    if owner is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    offset = array.ctypes.data - np.frombuffer(owner, np.uint8, 1).ctypes.data
    first, last = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, (offset + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)


def mapping_of(array: np.ndarray) -> mmap.mmap | None:
    """Return the file mapping that `array` is a view of, if it is one."""
    import numpy as np

    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = cast("Any", owner).base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, mmap.mmap) else None


def _described(tensor: onnx.TensorProto) -> bytes:
    """Return the serialised tensor without the stand-in for its data."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return tensor.SerializeToString(deterministic=True)


def _save_external(parts: Skeleton, path: Path) -> list[Path]:
    data_path = path.with_name(path.name + ".data")
    with data_path.open("wb") as stream:
        for tensor in parts.proto.graph.initializer:
            if tensor.name in parts.weights:
                stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                _refer(tensor, data_path.name, stream.tell(), parts.weights[tensor.name].nbytes)
                _write_weight(parts.weights[tensor.name], stream)
    path.write_bytes(parts.proto.SerializeToString(deterministic=True))
    return [path, data_path]


def _refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    values: dict[str, Any] = {"location": location, "offset": offset, "length": length}
    for entry in tensor.external_data:
        entry.value = str(values[entry.key])


def _is_mapped(tensor: onnx.TensorProto) -> bool:
    return any(entry.key == "location" and entry.value == _protobuf.MAPPED for entry in tensor.external_data)


def _empty(tensor: onnx.TensorProto) -> None:
    """Make a stand-in a tensor of no elements, which needs no data; the checker does not look at sizes."""
    for name in ("data_location", "external_data", "dims"):
        tensor.ClearField(name)
    tensor.dims.append(0)


def check(model: ir.Model) -> None:
    """Raise SourceError with the checker's words when `model` is not valid ONNX. Weights are not copied."""
    check_proto(skeleton(model).proto)


def _describe_outputs(graph: onnx.GraphProto) -> None:
    """Complete types that the checker insists on, though runtimes and shape inference find them by themselves."""
    import onnx

    for info in graph.output:
        if info.type.WhichOneof("value") is None:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for info in (*graph.input, *graph.output):
        if info.type.WhichOneof("value") == "tensor_type" and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()


def check_proto(proto: onnx.ModelProto) -> None:
    """Check `proto`, whose large tensors are stand-ins; they are made graph inputs, of which nothing is stored."""
    import onnx

    checkable = onnx.ModelProto()
    checkable.CopyFrom(proto)
    inputs = {i.name for i in checkable.graph.input}
    kept = [t for t in checkable.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    for tensor in checkable.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in inputs:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            checkable.graph.input.append(info)
    del checkable.graph.initializer[:]
    checkable.graph.initializer.extend(kept)
    for tensor in inner_tensors(checkable):
        if _is_mapped(tensor):
            _empty(tensor)
    _describe_outputs(checkable.graph)
    try:
        onnx.checker.check_model(checkable)
    except onnx.checker.ValidationError as error:
        raise SourceError(
            f"The model is not valid ONNX: {_first_line(error)}",
            "Export it again with a current exporter; `infconv inspect` shows what can be read of it.",
        ) from error
