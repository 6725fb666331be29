"""Where a target wants QuantizeLinear and DequantizeLinear: a table, and the tensors that it means in a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import onnx_ir as ir

from infconv.passes._values import dtype_of, known_shape, tensor

ActivationType = Literal["uint8", "int8"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """What a target's compiler turns into integer kernels."""

    activation: ActivationType
    symmetric: bool
    """Whether zero points must be 0."""
    bias: bool
    """Whether integer kernels take an INT32 bias behind a DequantizeLinear; False: they want it in float."""
    compute: frozenset[str]
    """Operators with a weight that get an integer kernel."""
    outputs: frozenset[str] = frozenset()
    """Those of `compute` whose kernel writes 8 bits only: without a QuantizeLinear behind they stay float."""
    followers: frozenset[str] = frozenset()
    """Operators that run in 8 bits where everything that they read is in 8 bits already and an 8-bit reader follows."""
    residual: bool = False
    """Whether an Add reads the 8-bit form of a tensor that has one: the kernel before it then adds in one go."""


TRANSPARENT = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Gather",
        "Identity",
        "DepthToSpace",
    }
    | {"SpaceToDepth", "Split", "Expand"}
)
"""Operators that only move elements: 8 bits go through with the same scale."""

_TABLE: Mapping[str, Placement] = {
    # QLinearConv needs a QuantizeLinear behind it and an INT32 bias; QGemm and MatMulIntegerToFloat write float too.
    # QLinearAdd, QLinearConcat … make whole residual blocks integer. Measured: without the bias no gain at all.
    "onnxruntime": Placement(
        activation="uint8",
        symmetric=False,
        bias=True,
        compute=frozenset({"Conv", "MatMul", "Gemm"}),
        outputs=frozenset({"Conv"}),
        followers=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}),
    ),
    # LPT folds what stands before convolutions and products into their kernels, and fuses Add and activations itself.
    "openvino": Placement(
        activation="uint8",
        symmetric=False,
        bias=False,
        compute=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
    ),
    # Strongly typed: INT8 with zero point 0, and no INT32 behind a DequantizeLinear.
    "tensorrt": Placement(
        activation="int8",
        symmetric=True,
        bias=False,
        compute=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
        residual=True,
    ),
}
PLACEMENTS: Mapping[str, Placement] = {**_TABLE, "onnx": _TABLE["onnxruntime"]}
"""Target -> placement. A plain ONNX file is made for ONNX Runtime, the only one that wants Q/DQ behind layers too."""

_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""What an 8-bit kernel does by saturating, when the scale's range ends where the activation cuts."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """An operator with a constant weight."""

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    axis: int
    """The weight's axis of output channels."""
    bias: ir.Value | None
    """A constant bias of one element for each output channel."""

    @property
    def name(self) -> str:
        """Return the name of its output, which no other layer has."""
        return self.node.outputs[0].name or ""

    @property
    def label(self) -> str:
        """Return what users call it."""
        return self.node.name or self.name


@dataclasses.dataclass
class Placed:
    """The tensors of a model that get Q/DQ."""

    layers: list[Layer]
    tensors: dict[ir.Value, int]
    """Tensor -> its group; the tensors of a group share scale and zero point."""
    readers: dict[ir.Value, list[tuple[ir.Node, int]]]
    """Tensor -> the uses (node, input) that read its dequantised form."""
    folded: dict[ir.Value, ir.Node]
    """Tensor -> the Relu or Clip that makes it, which saturation replaces where the range allows."""

    def groups(self) -> dict[int, list[ir.Value]]:
        """Return group -> its tensors."""
        found: dict[int, list[ir.Value]] = {}
        for value, group in self.tensors.items():
            found.setdefault(group, []).append(value)
        return found


def layers_of(model: ir.Model, compute: Collection[str]) -> list[Layer]:
    """Return the layers of the main graph, in its order; those that read or hold Q/DQ already are left out."""
    found = (_layer(node) for node in model.graph if node.op_type in compute and node.domain == "")
    return [layer for layer in found if layer is not None]


def _layer(node: ir.Node) -> Layer | None:
    data, weight = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    constant = tensor(weight)
    if data is None or weight is None or constant is None or constant.dtype != ir.DataType.FLOAT:
        return None
    if tensor(data) is not None or dtype_of(data) not in (ir.DataType.FLOAT, None):
        return None
    producer = data.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return None
    axis = _channel_axis(node, len(constant.shape))
    if axis is None:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shape = known_shape(bias) if tensor(bias) is not None else None
    if bias is not None and shape != (int(constant.shape.numpy()[axis]),):
        return None if node.op_type == "Conv" else Layer(node, data, weight, axis, None)
    return Layer(node, data, weight, axis, bias)


def _channel_axis(node: ir.Node, rank: int) -> int | None:
    """Return the weight's axis of output channels; None for a form that has none, or that no kernel takes."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "MatMul":
        return 1 if rank == 2 else None
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if not plain or node.attributes.get_int("transA", 0):
        return None
    return 0 if node.attributes.get_int("transB", 0) else 1


def place(model: ir.Model, placement: Placement, excluded: Collection[str] = ()) -> Placed:
    """Return where Q/DQ go when every layer but those named in `excluded` is quantised."""
    return _Placing(model, placement, excluded).run()


class _Placing:
    def __init__(self, model: ir.Model, placement: Placement, excluded: Collection[str]) -> None:
        self._model, self._placement = model, placement
        self._layers = [layer for layer in layers_of(model, placement.compute) if layer.name not in excluded]
        self._layers = [layer for layer in self._layers if self._writes_8_bits(layer)]
        self._by_node = {layer.node: layer for layer in self._layers}
        self._tensors: dict[ir.Value, None] = {}
        self._parent: dict[ir.Value, ir.Value] = {}
        self._folded: dict[ir.Value, ir.Node] = {}

    def _writes_8_bits(self, layer: Layer) -> bool:
        """Whether the layer's output may be quantised, where its kernel demands that: the model's own may not."""
        return layer.node.op_type not in self._placement.outputs or not self._tail(layer.node).is_graph_output()

    def run(self) -> Placed:
        for layer in self._layers:
            self._mark(layer.data)
            if layer.node.op_type in self._placement.outputs:
                self._mark_output(layer.node)
        wanted = self._wanted()
        for node in self._model.graph:
            self._follow(node, wanted)
        roots = {value: self._root(value) for value in self._tensors}
        numbers = {root: number for number, root in enumerate(dict.fromkeys(roots.values()))}
        tensors = {value: numbers[root] for value, root in roots.items()}
        readers = {value: list(self._readers(value)) for value in tensors}
        return Placed(self._layers, tensors, readers, self._folded)

    def _mark(self, value: ir.Value) -> None:
        self._tensors[value] = None

    def _tail(self, node: ir.Node) -> ir.Value:
        """Return the output of the Relu or Clip that alone reads the node's output, or else that output."""
        output = node.outputs[0]
        uses = list(output.uses())
        if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type in _ACTIVATIONS:
            follower = uses[0].node
            if follower.graph is self._model.graph and follower.domain == "" and uses[0].idx == 0:
                return follower.outputs[0]
        return output

    def _mark_output(self, node: ir.Node) -> None:
        tail = self._tail(node)
        self._mark(tail)
        if tail is not node.outputs[0]:
            producer = tail.producer()
            assert producer is not None
            self._folded[tail] = producer

    def _wanted(self) -> set[ir.Value]:
        """Return the tensors that something reads in 8 bits if it gets them so."""
        found = {layer.data for layer in self._layers}
        for node in reversed(list(self._model.graph)):
            goes_on = self._moves(node) or self._is_follower(node)
            if goes_on and any(value in found for value in (*node.outputs, self._tail(node))):
                found |= {value for value in node.inputs if value is not None and tensor(value) is None}
        return found

    def _is_follower(self, node: ir.Node) -> bool:
        return node.op_type in self._placement.followers and node.domain == "" and len(node.outputs) == 1

    @staticmethod
    def _moves(node: ir.Node) -> bool:
        return node.op_type in TRANSPARENT and node.domain == "" and len(node.outputs) == 1

    def _follow(self, node: ir.Node, wanted: set[ir.Value]) -> None:
        if self._moves(node):
            self._pass_on(node, wanted)
        elif self._is_follower(node) and all(value in self._tensors for value in node.inputs):
            tail = self._tail(node)
            if tail in wanted and not tail.is_graph_output():
                self._mark_output(node)
                if node.op_type == "Concat" and len({self._cut(value) for value in node.inputs}) == 1:
                    for value in node.inputs:
                        if value is not None:
                            self._join(value, tail)

    def _cut(self, value: ir.Value | None) -> str:
        """Return the activation that saturation at `value` stands for; with a wider range it would have to stay."""
        activation = None if value is None else self._folded.get(value)
        return "" if activation is None else activation.op_type

    def _pass_on(self, node: ir.Node, wanted: set[ir.Value]) -> None:
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source not in self._tensors:
            return
        if result in self._tensors or (self._placement.outputs and result in wanted and not result.is_graph_output()):
            self._mark(result)
            self._join(source, result)

    def _root(self, value: ir.Value) -> ir.Value:
        while value in self._parent:
            value = self._parent[value]
        return value

    def _join(self, a: ir.Value, b: ir.Value) -> None:
        a, b = self._root(a), self._root(b)
        if a is not b:
            self._parent[b] = a

    def _readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Yield the uses of `value` that read 8 bits: all of them where kernels write 8 bits only."""
        for use in value.uses():
            layer = self._by_node.get(use.node)
            is_data = layer is not None and use.idx == 0
            moved = self._moves(use.node) and use.node.outputs[0] in self._tensors
            added = self._placement.residual and use.node.op_type == "Add"
            if is_data or moved or added or self._placement.outputs:
                yield use.node, use.idx
