"""Graphs in the cache: a file of the graph and one of new weights; weights of the source are named, not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH, WEIGHTS = "graph.onnx", "weights.bin"
_LARGEST_GRAPH = 1_000_000_000
"""Bytes beside the weights: what is inside nodes cannot be mapped, and a protobuf ends at 2 GiB."""


def save_graph(model: ir.Model, known: Sequence[ir.TensorProtocol], folder: Path) -> dict[str, int]:
    """Write `model`; return weight name -> its number in `known`, or the complement of its place in the file.

    Raises ValueError for a graph that is too large.
    """
    from infconv.model import skeleton, tensor_bytes

    numbers = {id(tensor): number for number, tensor in enumerate(known)}
    parts = skeleton(model)
    if parts.proto.ByteSize() > _LARGEST_GRAPH:
        raise ValueError("the graph is too large beside its weights")
    places: dict[str, int] = {}
    with (folder / WEIGHTS).open("wb") as stream:
        stream.write(b"\0" * 64)  # a file of no bytes cannot be mapped
        for name, tensor in parts.weights.items():
            stream.write(b"\0" * (-stream.tell() % 64))
            places[name] = numbers[id(tensor)] if id(tensor) in numbers else ~stream.tell()
            if places[name] < 0:
                stream.write(tensor_bytes(tensor))
    (folder / GRAPH).write_bytes(parts.proto.SerializeToString(deterministic=True))
    return places


def load_graph(folder: Path, places: Mapping[str, int], known: Sequence[ir.TensorProtocol]) -> ir.Model:
    """Return what `save_graph` wrote; `known` are the same tensors in the same order."""
    import mmap

    import onnx
    import onnx_ir as ir

    from infconv.model import from_proto, view

    with (folder / WEIGHTS).open("rb") as stream:
        new = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    model = from_proto(onnx.ModelProto.FromString((folder / GRAPH).read_bytes()))
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            place = places[name]
            value.const_value = known[place] if place >= 0 else view(value.const_value, new, ~place)
    return model


def weights_of(model: ir.Model) -> list[Any]:
    """Return the tensors of a source that steps may keep, in an order that depends on the source alone."""
    found: list[Any] = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return found + [
        node.attributes["value"].as_tensor()
        for node in model.graph
        if node.op_type == "Constant" and "value" in node.attributes
    ]
