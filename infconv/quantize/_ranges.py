"""The largest magnitude of every FP32 value while the model runs on samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from infconv import isolate
from infconv.errors import UnsupportedError
from infconv.quantize._schemas import FLOAT, subgraphs

MASKED = 1e4
"""In the input of a softmax, magnitudes from here on are masks, not logits."""
FINITE = 3e38
"""Magnitudes from here on are infinite masks, which are infinite in any format."""

Clamps: TypeAlias = Mapping[str, ir.TensorProtocol]
"""Value name -> the tensor that replaces the constant."""
Sample: TypeAlias = Mapping[str, np.ndarray[Any, Any]]

_INLINE_BYTES = 1024
_STAT = "infconv_absmax_"


class Query(NamedTuple):
    """The largest magnitude below `limit` that the value `name` takes is asked for."""

    name: str
    limit: float = FINITE


def measure(model: ir.Model, queries: Sequence[Query], samples: Sequence[Sample], clamps: Clamps) -> dict[Query, float]:
    """Return the answers to `queries` about values of the main graph, over all samples.

    The model runs in ONNX Runtime, in a child process, without optimization, with a scalar output added for each
    query: the memory needed is that of the plain run. `clamps` replaces constants, by name, for the run. Raises
    UnsupportedError when the runtime refuses the model or the samples, Crashed or OutOfMemory.
    """
    return isolate.call(
        lambda: _run_or_refuse(model, queries, samples, clamps), what="Measuring the activations' ranges on the samples"
    )


def _run_or_refuse(
    model: ir.Model, queries: Sequence[Query], samples: Sequence[Sample], clamps: Clamps
) -> dict[Query, float]:
    try:
        return _run(model, queries, samples, clamps)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedError(f"the model did not run on the samples ({reason})") from error


def _run(model: ir.Model, queries: Sequence[Query], samples: Sequence[Sample], clamps: Clamps) -> dict[Query, float]:
    import onnxruntime as ort

    proto, weights = _skeleton(model, clamps)
    stats = _instrument(proto, queries)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    options.add_external_initializers(list(values), list(values.values()))
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    maxima = dict.fromkeys(queries, 0.0)
    for sample in samples:
        wanted = {item.name for item in session.get_inputs()}
        results = session.run(list(stats), {name: value for name, value in sample.items() if name in wanted})
        for query, result in zip(stats.values(), results, strict=True):
            maxima[query] = max(maxima[query], float(np.asarray(result)))
    return maxima


def _skeleton(model: ir.Model, clamps: Clamps) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """Return the model as a message without the large weights of its main graph, and these."""
    clone = model.clone()
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in clone.graph.initializers.items():
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


def _instrument(proto: onnx.ModelProto, queries: Sequence[Query]) -> dict[str, Query]:
    """Replace the outputs by one answer for each query; return output -> query."""
    opset = next((item.version for item in proto.opset_import if item.domain in {"", "ai.onnx"}), 1)
    graph = proto.graph
    del graph.output[:]
    stats = {f"{_STAT}{position}": query for position, query in enumerate(queries)}
    limits = {limit: f"{_STAT}limit_{limit:g}" for limit in {0.0, *(query.limit for query in queries)}}
    graph.initializer.extend(onnx.helper.make_tensor(name, int(FLOAT), [], [limit]) for limit, name in limits.items())
    for result, (name, limit) in stats.items():
        graph.node.append(onnx.helper.make_node("Abs", [name], [f"{result}_all"]))
        magnitude = f"{result}_all"
        if opset >= 9:
            graph.node.append(onnx.helper.make_node("Less", [magnitude, limits[limit]], [f"{result}_inside"]))
            inside = [f"{result}_inside", magnitude, limits[0.0]]
            graph.node.append(onnx.helper.make_node("Where", inside, [f"{result}_finite"]))
            magnitude = f"{result}_finite"
        graph.node.append(onnx.helper.make_node("ReduceMax", [magnitude], [result], keepdims=0))
        graph.output.append(onnx.helper.make_tensor_value_info(result, int(FLOAT), []))
    return stats
