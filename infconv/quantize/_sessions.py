"""Run graphs that are in memory, on samples, in a child process: weights are handed over without a copy or a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import onnx
import onnx_ir as ir

from infconv import isolate
from infconv.errors import InfconvError, UnsupportedError
from infconv.model import subgraphs

Clamps: TypeAlias = Mapping[str, ir.TensorProtocol]
"""Value name -> the tensor that replaces the constant."""
Array: TypeAlias = np.ndarray[Any, Any]
Sample: TypeAlias = Mapping[str, Array]
T = TypeVar("T")

_INLINE_BYTES = 1024


def in_child(function: Callable[[], T], what: str) -> T:
    """Return `function()`, run in a child process, where ONNX Runtime's refusals become UnsupportedError.

    Raises Crashed and OutOfMemory too.
    """

    def attempt() -> T:
        try:
            return function()
        except InfconvError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnsupportedError(f"the model did not run on the samples ({reason})") from error

    return isolate.call(attempt, what=what)


def open_session(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Any:
    """Return an InferenceSession of `proto`, as it is written, with `weights` for its external initializers."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed copies would double a large model
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    options.add_external_initializers(list(values), list(values.values()))
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: Any, sample: Sample, outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """Run `session`; float32 arrays are given to float16 inputs as such. Return the outputs by name."""
    feeds: dict[str, Array] = {}
    for item in session.get_inputs():
        if item.name in sample:
            value = sample[item.name]
            half = item.type == "tensor(float16)" and value.dtype == np.float32
            feeds[item.name] = value.astype(np.float16) if half else value
    names = list(outputs) if outputs is not None else [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def skeleton(model: ir.Model, clamps: Clamps) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return the model as a message without the large weights of its main graph, and these."""
    clone = model.clone()
    weights: dict[str, Array] = {}
    for name, value in list(clone.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del clone.graph.initializers[
                name
            ]  # the runtime would drop it, and then not find what is handed over for it
            continue
        tensor = clamps.get(name) or value.const_value
        assert tensor is not None
        value.const_value = tensor
        if tensor.nbytes > _INLINE_BYTES and tensor.dtype.numpy().kind in "fiub":
            weights[name] = np.ascontiguousarray(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    _clamp_nodes(clone.graph, clamps)
    return ir.to_proto(clone), weights


def _clamp_nodes(graph: ir.Graph, clamps: Clamps) -> None:
    for node in graph:
        tensor = clamps.get(node.outputs[0].name or "") if len(node.outputs) == 1 else None
        if tensor is not None:
            node.attributes.clear()
            node.attributes.add(ir.AttrTensor("value", tensor))
        for body in subgraphs(node):
            _clamp_nodes(body, clamps)
