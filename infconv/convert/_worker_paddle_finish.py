"""From what paddle2onnx returns to the file that infconv reads: dimensions by the user's names, and a checked model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from ._worker import WorkerError
from ._worker_checker import check
from ._worker_paddle_program import Tensor

MODEL = "model.onnx"


def finish(
    model: onnx.ModelProto,
    inputs: list[Tensor],
    outputs: list[Tensor],
    asked: Mapping[str, Any],
    *,
    batch: bool,
    workdir: Path,
) -> None:
    """Name the dimensions of the inputs, forget the exporter's own names, and write the model to `workdir`.

    `asked` is what the user said of the inputs; `batch`: the first dynamic dimension of all of them is one.
    """
    _separate_scopes(model.graph)
    _keep_scalars(model, outputs)
    for value in (v for graph in _graphs(model.graph) for v in (*graph.input, *graph.output)):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # DynamicDimension.7: a new name at each value
                dim.Clear()
    described = {tensor.name: tensor for tensor in inputs}
    ordered = sorted(model.graph.input, key=lambda value: list(described).index(value.name))
    del model.graph.input[:]
    model.graph.input.extend(ordered)
    for value in model.graph.input:
        names = _dim_names(described[value.name], asked.get(value.name, {}).get("dims", []), batch)
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name:
                dim.dim_param = name
    del model.graph.value_info[:]
    model.producer_name, model.doc_string, model.graph.doc_string = "paddle2onnx", "", ""
    model.graph.name = "main"
    path = str(workdir / MODEL)
    onnx.save(model, path)
    check(path, "paddle2onnx")


def _separate_scopes(graph: onnx.GraphProto) -> None:
    """Give what a branch or a loop defines names of its own: ONNX forbids those of values outside."""
    taken = {value.name for group in (graph.input, graph.initializer) for value in group}
    taken |= {name for node in graph.node for name in node.output}
    for inner in (a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
        _rename_inner(inner, {}, taken)


def _rename_inner(graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str]) -> None:
    """Rename what `graph` defines. `outer`: new names that it may read; `taken`: all names given so far."""
    names = dict(outer)
    for defined in (value for group in (graph.input, graph.initializer) for value in group):
        names[defined.name] = defined.name = _free(defined.name, taken)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename_inner(attribute.g, names, taken)
        for index, name in enumerate(node.output):
            names[name] = node.output[index] = _free(name, taken)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _free(name: str, taken: set[str]) -> str:
    """Return `name`, with a number where it is taken; "" stands for no value."""
    found, number = name, 0
    while found and found in taken:
        number += 1
        found = f"{name}.inner.{number}"
    taken.add(found)
    return found


def _keep_scalars(model: onnx.ModelProto, outputs: list[Tensor]) -> None:
    """Remove the reshape to one element that paddle2onnx puts after each reduction to a scalar; Paddle has none.

    Raises WorkerError (unsupported) when an output has another rank than in Paddle.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    for graph, typed in zip(_graphs(model.graph), _graphs(inferred.graph), strict=True):
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in typed.value_info}
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            maker = makers.get(node.input[0]) if node.op_type == "Reshape" else None
            if maker is not None and maker.op_type.startswith("Reduce") and ranks.get(node.input[0]) == 0:
                node.op_type = "Identity"
                del node.input[1:]
                del node.attribute[:]
    _check_ranks(model, outputs)


def _check_ranks(model: onnx.ModelProto, outputs: list[Tensor]) -> None:
    """Make one element a scalar where Paddle has one: its scalars meet one-element constants in paddle2onnx."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for value in plain.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = {value.name: value.type.tensor_type for value in onnx.shape_inference.infer_shapes(plain).graph.output}
    for value, tensor in zip(model.graph.output, outputs, strict=True):
        inferred = found[value.name]
        rank = len(inferred.shape.dim) if inferred.HasField("shape") else len(tensor.dims)
        if rank == 1 and inferred.shape.dim[0].dim_value == 1 and not tensor.dims:
            _make_scalar(model.graph, value)
        elif rank != len(tensor.dims):
            raise WorkerError(
                "unsupported",
                f"paddle2onnx gives output '{value.name}' {rank} dimensions, the model has {len(tensor.dims)}.",
                "It gets scalars and norms over all axes wrong: name the axes in the model, or reshape to [1] there.",
            )


def _make_scalar(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> None:
    inner = f"{value.name}.infconv.vector"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == value.name:
                    names[index] = inner
    shape = onnx.helper.make_tensor(f"{inner}.shape", onnx.TensorProto.INT64, [0], [])
    graph.initializer.append(shape)
    graph.node.append(onnx.helper.make_node("Reshape", [inner, shape.name], [value.name]))
    del value.type.tensor_type.shape.dim[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _dim_names(tensor: Tensor, asked: list[int | str], batch: bool) -> list[str]:
    """Return a name for each dynamic dimension, "" for a fixed one."""
    names: list[str] = []
    for axis, size in enumerate(tensor.dims):
        wanted = asked[axis] if len(asked) == len(tensor.dims) else None
        own = "batch" if axis == 0 and batch else f"{re.sub(r'[^A-Za-z0-9_]', '_', tensor.name)}_{axis}"
        names.append("" if size >= 0 else wanted if isinstance(wanted, str) else own)
    return names
