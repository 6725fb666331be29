"""The largest magnitude of every FP32 value while the model runs on samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from infconv.quantize._schemas import FLOAT
from infconv.quantize._sessions import Clamps, Sample, in_child, open_session, run, skeleton

MASKED = 1e4
"""In the input of a softmax, magnitudes from here on are masks, not logits."""
FINITE = 3e38
"""Magnitudes from here on are infinite masks, which are infinite in any format."""

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
    return in_child(
        lambda: _measure(model, queries, samples, clamps), "Measuring the activations' ranges on the samples"
    )


def _measure(
    model: ir.Model, queries: Sequence[Query], samples: Sequence[Sample], clamps: Clamps
) -> dict[Query, float]:
    proto, weights = skeleton(model, clamps)
    stats = _instrument(proto, queries)
    session = open_session(proto, weights)
    maxima = dict.fromkeys(queries, 0.0)
    for sample in samples:
        results = run(session, sample, list(stats))
        for name, query in stats.items():
            maxima[query] = max(maxima[query], float(np.asarray(results[name])))
    return maxima


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
