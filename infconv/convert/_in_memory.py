"""Run a graph in ONNX Runtime without writing it to a file: large weights are fed from where they lie, never copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infconv import isolate
from infconv.errors import InfconvError, UnsupportedError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Outcome = "dict[str, Any] | InfconvError"
_FED = 1 << 16
"""Weights of at least this many bytes become inputs of the session; operators that want constants have small ones."""


def run_graph(
    model: ir.Model,
    samples: Sequence[Mapping[str, Any]],
    *,
    extra: Sequence[str] = (),
    isolated: bool = True,
) -> list[dict[str, Any] | InfconvError]:
    """Run `model` as it is written (no graph optimizations) on each sample, in a child process if `isolated`.

    `extra` names inner values to be returned with the outputs. A sample that the model does not accept has its error
    in the list. Raises UnsupportedError when nothing here can run the model, ResourceError, or Crashed.
    """
    if not isolated:
        return _run(model, samples, extra)
    return isolate.call(lambda: _run(model, samples, extra), what="Running the model")


def _run(
    model: ir.Model, samples: Sequence[Mapping[str, Any]], extra: Sequence[str]
) -> list[dict[str, Any] | InfconvError]:
    from infconv.convert._onnxruntime import run_session

    proto, fed = _with_weights_as_inputs(model)
    add_outputs(proto, extra)
    try:
        session = open_proto(proto)
        if not samples:
            return []
        outcomes = [_or_error(lambda s=s: run_session(session, {**s, **fed})) for s in samples]
    except Exception:  # ONNX Runtime's exceptions share no base class; the file route tells what is wrong
        return _run_file(model, samples, extra)
    if all(isinstance(outcome, InfconvError) for outcome in outcomes):
        return _run_file(model, samples, extra)
    return outcomes


def _or_error(run: Any) -> dict[str, Any] | InfconvError:
    try:
        return run()
    except InfconvError as error:
        return error


def _run_file(
    model: ir.Model, samples: Sequence[Mapping[str, Any]], extra: Sequence[str]
) -> list[dict[str, Any] | InfconvError]:
    """Run by way of a file, which onnx's reference evaluator reads too where ONNX Runtime has no kernel."""
    import tempfile
    from pathlib import Path

    from infconv.convert._onnxruntime import run_here
    from infconv.model import load, save

    with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        if extra:
            with_extra = load(path)
            known = {v.name: v for node in with_extra.graph for v in node.outputs}
            with_extra.graph.outputs.extend(known[name] for name in extra)
            save(with_extra, path.with_name("extra.onnx"))
            path = path.with_name("extra.onnx")
        return run_here(path, samples, optimize=False)[1]


def add_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make inner values outputs of the graph as well; ONNX Runtime works out their types."""
    for name in names:
        proto.graph.output.add(name=name)


def open_proto(proto: onnx.ModelProto) -> Any:
    """Return an InferenceSession on the CPU for a model in memory, its graph optimizations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Packing weights pays after many runs; here each session runs a few times.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _with_weights_as_inputs(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the model as a proto whose large weights are inputs, and what to feed these."""
    import onnx

    from infconv.model import skeleton, tensor_bytes

    parts = skeleton(model)
    graph = parts.proto.graph
    declared = {value.name for value in graph.input}
    kept: list[onnx.TensorProto] = []
    fed: dict[str, Any] = {}
    for tensor in graph.initializer:
        weight = parts.weights.get(tensor.name)
        if weight is None:
            kept.append(tensor)
        elif _can_be_fed(weight) and weight.nbytes >= _FED:
            fed[tensor.name] = weight.numpy()
            if tensor.name not in declared:
                graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            inline = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            inline.raw_data = bytes(tensor_bytes(weight))
            kept.append(inline)
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    if parts.proto.ByteSize() >= 1 << 31:
        raise UnsupportedError("The model's small weights exceed the 2 GiB that a message may hold.")
    return parts.proto, fed


def _can_be_fed(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.bitwidth >= 8 and tensor.dtype.numpy().kind in "biuf"
