"""One session that computes a model with any choice of quantised tensors and layers: how much is lost by which."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.model import save
from infconv.passes._values import constant
from infconv.quantize._collect import main_values, open_for_calibration
from infconv.quantize._placement import Placed
from infconv.quantize._schemes import Grid, Params, Weights

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = list[list[Array]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is quantised, and how."""

    params: Mapping[int, Params]
    """Of each group of tensors."""
    layers: frozenset[str]
    """Layers with quantised weights."""
    tensors: frozenset[str]
    """Tensors in 8 bits."""
    biases: Mapping[str, Array] = dataclasses.field(default_factory=dict[str, Array])
    """Layer -> bias in place of its own."""


class Simulator:
    """A model with Q/DQ at each tensor of a placement, their parameters and the biases being inputs.

    With `switches` each tensor, and each layer's weight, can be real or quantised, at a price: more is computed.
    The integers are rounded as kernels round them, and multiplied in float32, which is exact to about 2**-24.
    """

    def __init__(
        self,
        model: ir.Model,
        placed: Placed,
        weights: Mapping[str, Weights],
        batches: Sequence[Mapping[str, Array]],
        grid: Grid,
        *,
        switches: bool = False,
    ) -> None:
        self._groups = {value.name or "": group for value, group in placed.tensors.items()}
        self._biases: dict[str, Array] = {}
        """Own bias of each layer that has one."""
        self._layers = [layer.name for layer in placed.layers] if switches else []
        self._batches, self._grid, self._switches = batches, grid, switches
        clone = model.clone()
        twins = dict(zip(model.graph.all_nodes(), clone.graph.all_nodes(), strict=True))
        _Insertion(clone, twins, placed, weights, self._biases, grid, switches).insert()
        self._outputs = [value.name for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
        with tempfile.TemporaryDirectory(prefix="infconv-simulate-") as folder:
            self._session = open_for_calibration(save(clone, Path(folder) / "model.onnx")[0])
        self.runs = 0

    def run(self, setting: Setting) -> Outputs:
        """Return the float outputs for each batch."""
        self.runs += 1
        return _run(self._session, self._outputs, self._batches, self._feed(setting))

    def own_bias(self, layer: str) -> Array | None:
        """Return the bias that a layer has, zeros for a convolution without; None where it takes none."""
        return self._biases.get(layer)

    def _feed(self, setting: Setting) -> dict[str, Array]:
        feed: dict[str, Any] = {}
        for name, group in self._groups.items():
            params = setting.params[group]
            feed[f"{name}:scale"] = np.float32(params.scale)
            feed[f"{name}:zero"] = np.dtype(self._grid.dtype).type(params.zero)
            if self._switches:
                feed[f"{name}:on"] = name in setting.tensors
        for name in self._layers:
            feed[f"{name}:layer"] = name in setting.layers
        for name, bias in self._biases.items():
            feed[f"{name}:bias"] = setting.biases.get(name, bias)
        return {name: np.asarray(value) for name, value in feed.items()}


def run_float(model: ir.Model, batches: Sequence[Mapping[str, Array]]) -> Outputs:
    """Return the float outputs of `model` itself for each batch."""
    outputs = [value.name for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
    with tempfile.TemporaryDirectory(prefix="infconv-simulate-") as folder:
        return _run(open_for_calibration(save(model, Path(folder) / "model.onnx")[0]), outputs, batches, {})


def _run(
    session: Any, outputs: Sequence[str | None], batches: Sequence[Mapping[str, Array]], feed: Mapping[str, Array]
) -> Outputs:
    names = {value.name for value in session.get_inputs()}
    return [session.run(list(outputs), {k: v for k, v in {**batch, **feed}.items() if k in names}) for batch in batches]


def sqnr(reference: Outputs, actual: Outputs) -> float:
    """Return 10 log10(sum r^2 / sum (a - r)^2) over all batches, of the output where it is least."""
    worst = math.inf
    for index in range(len(reference[0])):
        signal = noise = 0.0
        for real, rounded in zip(reference, actual, strict=True):
            r, a = real[index].astype(np.float64), rounded[index].astype(np.float64)
            kept = np.isfinite(r)
            signal += float(np.sum(r[kept] ** 2))
            noise += float(np.sum((a[kept] - r[kept]) ** 2))
        if not math.isfinite(noise):
            return -math.inf
        if noise and signal:
            worst = min(worst, 10 * math.log10(signal / noise))
    return worst


class _Insertion:
    """Puts Q/DQ at each tensor and rounded weights at each layer, behind `Where(on, quantised, real)` if asked."""

    def __init__(
        self,
        model: ir.Model,
        twins: Mapping[ir.Node, ir.Node],
        placed: Placed,
        weights: Mapping[str, Weights],
        biases: dict[str, Array],
        grid: Grid,
        switches: bool,
    ) -> None:
        """`twins`: node that `placed` is about -> the one in `model`; readers may lie in a subgraph."""
        self._switches, self._dtype = switches, ir.DataType[grid.dtype.upper()]
        self._graph, self._placed, self._weights, self._biases = model.graph, placed, weights, biases
        self._values = {value.name: value for value in main_values(model)}
        self._twins = twins

    def insert(self) -> None:
        for value, readers in self._placed.readers.items():
            if readers:
                self._switch_tensor(value)
        for layer in self._placed.layers:
            node = self._twins[layer.node]
            self._switch_weight(layer.name, node, self._weights[layer.name])
            bias = constant(layer.bias)
            if layer.bias is not None and bias is not None:
                self._biases[layer.name] = bias
            elif layer.node.op_type in {"Conv", "ConvTranspose"} and len(node.inputs) < 3:
                self._biases[layer.name] = np.zeros(len(self._weights[layer.name].scales), np.float32)
            else:
                continue
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            shape = [len(self._biases[layer.name])]
            node.replace_input_with(2, self._input(f"{layer.name}:bias", ir.DataType.FLOAT, shape))

    def _switch_tensor(self, original: ir.Value) -> None:
        name = original.name or ""
        value = self._values[name]
        scale, zero = self._input(f"{name}:scale", ir.DataType.FLOAT, []), self._input(f"{name}:zero", self._dtype, [])
        nodes = [ir.Node("", "QuantizeLinear", [value, scale, zero])]
        nodes.append(ir.Node("", "DequantizeLinear", [nodes[-1].outputs[0], scale, zero]))
        if self._switches:
            on = self._input(f"{name}:on", ir.DataType.BOOL, [])
            nodes.append(ir.Node("", "Where", [on, nodes[-1].outputs[0], value]))
        for node, index in self._placed.readers[original]:
            self._twins[node].replace_input_with(index, nodes[-1].outputs[0])
        self._place(value.producer(), nodes)

    def _switch_weight(self, name: str, node: ir.Node, weights: Weights) -> None:
        tensor = ir.tensor(weights.real(), name=f"{name}:weight")
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(weights.integers.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        if not self._switches:
            node.replace_input_with(1, value)
            return
        on = self._input(f"{name}:layer", ir.DataType.BOOL, [])
        chosen = ir.Node("", "Where", [on, value, node.inputs[1]])
        node.replace_input_with(1, chosen.outputs[0])
        self._graph.insert_before(node, [chosen])

    def _place(self, producer: ir.Node | None, nodes: list[ir.Node]) -> None:
        if producer is not None:
            self._graph.insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)

    def _input(self, name: str, dtype: ir.DataType, shape: list[int]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value
