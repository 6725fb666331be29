"""From what an exporter returns to the file that infconv reads: names, dimensions, and nothing of this machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from ._worker_torch_subject import PREFIX, Subject

MODEL = "model.onnx"
DATA = "model.onnx.data"
INLINE_BYTES = 256
"""Smaller tensors stay in the model file."""

_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def finish(model: ir.Model, subject: Subject, workdir: str) -> str:
    """Write `model` to workdir as model.onnx with external data, and return its path."""
    if model.functions:
        common.InlinePass()(model)
    common.OutputFixPass()(model)
    _tidy_metadata(model)
    _drop_unused_initializers(model.graph)
    _name_initializers(model.graph)
    _name_inputs(model.graph, subject)
    _name_outputs(model.graph, subject)
    _name_dims(model, subject.symbols)
    folder = Path(workdir)
    path = folder / MODEL
    for old in (path, folder / DATA):
        old.unlink(missing_ok=True)
    ir.save(model, path, external_data=DATA, size_threshold_bytes=INLINE_BYTES)
    shutil.rmtree(folder / "torchscript", ignore_errors=True)
    return str(path)


def _tidy_metadata(model: ir.Model) -> None:
    """Keep, of each node, the module and the source line that it came from; drop stack traces and machine paths."""
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values(), *graph.outputs):
            value.metadata_props.clear()
            value.doc_string = None
        for node in graph:
            origin = dict(_origin(node.metadata_props))
            node.metadata_props.clear()
            node.metadata_props.update(origin)
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()


def _origin(metadata: Any) -> Iterator[tuple[str, str]]:
    scopes = metadata.get("pkg.torch.onnx.name_scopes")
    if scopes:
        module = ast.literal_eval(scopes)[-2:-1]
        if module and module[0].startswith(PREFIX):
            yield "infconv.module", module[0][len(PREFIX) :]
    frames = _FRAME.findall(metadata.get("pkg.torch.onnx.stack_trace", ""))
    if frames:
        path, line, _ = frames[-1]
        yield "infconv.source", f"{_portable(path)}:{line}"


def _portable(path: str) -> str:
    """Return the part of a source path that is the same on every machine."""
    head, found, tail = path.rpartition(f"site-packages{os.sep}")
    return tail if found else Path(head or path).name


def _drop_unused_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def _name_initializers(graph: ir.Graph) -> None:
    """Give parameters their names in the user's module, and store tied ones once."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        same = kept.setdefault(_storage(value), value)
        if same is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, same)
            del graph.initializers[name]
        elif name.startswith(PREFIX) and name[len(PREFIX) :] not in graph.initializers:
            value.name = name[len(PREFIX) :]


def _storage(value: ir.Value) -> tuple[object, ...]:
    """Return a key that is the same for tensors that share their bytes: one torch storage seen the same way."""
    raw: Any = getattr(value.const_value, "raw", None)
    if raw is None or not hasattr(raw, "data_ptr") or raw.numel() == 0:
        return (id(value),)
    return raw.data_ptr(), tuple(raw.shape), tuple(raw.stride()), raw.dtype


def _name_inputs(graph: ir.Graph, subject: Subject) -> None:
    """Name the inputs by position, and bring back those that an exporter dropped because nothing reads them."""
    wanted = [each.name for each in subject.inputs]
    if len(graph.inputs) != len(wanted):
        _restore_inputs(graph, subject)
    _rename(graph, dict(zip(graph.inputs, wanted, strict=True)))


def _restore_inputs(graph: ir.Graph, subject: Subject) -> None:
    present = {value.name: value for value in graph.inputs}
    graph.inputs.clear()
    for each in subject.inputs:
        value = present.get(each.name)
        if value is None:
            kind = ir.TensorType(_onnx_type(each.dtype))
            value = ir.Value(name=each.name, type=kind, shape=ir.Shape(each.dims))
        graph.inputs.append(value)


def _onnx_type(dtype: Any) -> ir.DataType:
    from torch.onnx._internal.exporter._core import torch_dtype_to_onnx_dtype

    return torch_dtype_to_onnx_dtype(dtype)


def _name_outputs(graph: ir.Graph, subject: Subject) -> None:
    if len(graph.outputs) != len(subject.output_names):
        raise ValueError(f"the export has {len(graph.outputs)} outputs, the model {len(subject.output_names)}")
    _rename(graph, dict(zip(graph.outputs, subject.output_names, strict=True)))


def _rename(graph: ir.Graph, wanted: dict[ir.Value, str]) -> None:
    """Rename values; whatever else has one of the names steps aside."""
    names = set(wanted.values())
    values = list(_values(graph))
    taken = {value.name for value in values} | names
    for value in values:
        if value.name in names and wanted.get(value) != value.name:
            value.name = _free(value.name or "value", taken)
    for value, name in wanted.items():
        value.name = name


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = attribute.as_graph()
                yield from inner.inputs
                yield from inner.initializers.values()


def _free(name: str, taken: set[str | None]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _name_dims(model: ir.Model, symbols: dict[str, str]) -> None:
    if not symbols:
        return
    for graph in model.graphs():
        for value in {id(v): v for v in (*_values(graph), *graph.outputs)}.values():
            if value.shape is None:
                continue
            for axis, dim in enumerate(value.shape):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    value.shape[axis] = _dim_name(dim.value, symbols)


def _dim_name(text: str, symbols: dict[str, str]) -> str:
    if text in symbols:
        return symbols[text]
    return _SYMBOL.sub(lambda found: symbols.get(found.group(), found.group()), text)
