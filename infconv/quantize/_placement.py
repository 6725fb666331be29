"""Where a target wants QuantizeLinear and DequantizeLinear: a table, and the tensors that it means in a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from infconv.passes._values import dims, dtype_of, known_shape, tensor

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
    """Operators that run in 8 bits where everything that they read is in 8 bits already."""
    residual: bool = False
    """Whether an Add reads the 8-bit form of a tensor that has one: the kernel before it then adds in one go."""
    carries: bool = False
    """Whether a DequantizeLinear may stand in front of a chain of TRANSPARENT operators and Concat, not behind it."""
    between: frozenset[str] = frozenset()
    """Operators between 8-bit kernels that have one too: they read 8 bits where their result is wanted so."""


TRANSPARENT = frozenset(
    {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "ReduceMax", "Reshape"}
) | {*("Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")}
"""Operators that only move or select elements (Resize: as `nearest`): 8 bits go through with the same scale."""
_BROADCAST = frozenset({"Add", "Mul"})
"""Followers of which one operand, much smaller than the other, may be float: to quantise it costs next to nothing."""
_SMALL = 16
"""How many times smaller that one is at least."""

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
    # A QuantizeLinear is part of the kernel that computes its input; behind pooling or a Concat it is one of its own.
    "openvino": Placement(
        activation="uint8",
        symmetric=False,
        bias=False,
        compute=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
        residual=True,
        carries=True,
        between=frozenset({"AveragePool"}),
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

_ONNXRUNTIME_16 = "ONNX Runtime 1.32 has no kernels for 16-bit activations: it dequantises and computes in float32."
WITHOUT_16_BITS: Mapping[str, str] = {
    "onnx": _ONNXRUNTIME_16,
    "onnxruntime": _ONNXRUNTIME_16,
    "openvino": "OpenVINO 2026.4 has no kernels for 16-bit activations on CPU: convolutions run in float32.",
    "tensorrt": "TensorRT has no 16-bit integers: its parser refuses INT16 and UINT16 scales' zero points.",
}
"""Target -> why activations of 16 bits gain nothing there; a test holds it against the compilers."""

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
    """Tensor -> the uses (node, input) that read its dequantised form; none: it needs no pair of its own."""
    folded: dict[ir.Value, ir.Node]
    """Tensor -> the Relu or Clip that makes it, which saturation replaces where the range allows."""

    def groups(self) -> dict[int, list[ir.Value]]:
        """Return group -> its tensors."""
        found: dict[int, list[ir.Value]] = {}
        for value, group in self.tensors.items():
            found.setdefault(group, []).append(value)
        return found


def is_kept(node: ir.Node, patterns: Sequence[str]) -> bool:
    """Whether one of `patterns` means `node`: its name, an fnmatch pattern of it, or `op:Gemm`."""
    name = node.name or node.outputs[0].name or ""
    return any(p == f"op:{node.op_type}" or fnmatchcase(name, p) for p in patterns)


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
        self._carried: set[ir.Value] = set()

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
        if self._placement.carries:
            for node in reversed(list(self._model.graph)):
                self._carry(node)
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
        if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
            return False
        single = len(node.outputs) == 1 or node.op_type == "Split"  # not the indices of a MaxPool
        return node.op_type in TRANSPARENT and node.domain == "" and single

    def _follow(self, node: ir.Node, wanted: set[ir.Value]) -> None:
        if self._moves(node):
            self._pass_on(node, wanted)
        elif self._is_follower(node) and self._is_ready(node):
            tail = self._tail(node)
            # Without an 8-bit reader one DequantizeLinear behind still costs less than one for each input.
            if (tail in wanted or len(node.inputs) > 1) and not tail.is_graph_output():
                for value in node.inputs:
                    if value is not None:
                        self._mark(value)
                self._mark_output(node)
                if node.op_type == "Concat" and len({self._cut(value) for value in node.inputs}) == 1:
                    for value in node.inputs:
                        if value is not None:
                            self._join(value, tail)

    def _is_ready(self, node: ir.Node) -> bool:
        """Whether everything that a follower reads is in 8 bits, or small enough to be brought there for it."""
        missing = [value for value in node.inputs if value not in self._tensors]
        if not missing:
            return True
        large = _elements(node.outputs[0])
        return (
            node.op_type in _BROADCAST
            and len(missing) == 1
            and missing[0] is not None
            and tensor(missing[0]) is None
            and dtype_of(missing[0]) == ir.DataType.FLOAT
            and (small := _elements(missing[0])) is not None
            and large is not None
            and small * _SMALL <= large
        )

    def _cut(self, value: ir.Value | None) -> str:
        """Return the activation that saturation at `value` stands for; with a wider range it would have to stay."""
        activation = None if value is None else self._folded.get(value)
        return "" if activation is None else activation.op_type

    def _pass_on(self, node: ir.Node, wanted: set[ir.Value]) -> None:
        source = node.inputs[0]
        if source is None or source not in self._tensors:
            return
        goes_on = bool(self._placement.outputs) and any(result in wanted for result in node.outputs)
        for result in node.outputs:
            if result in self._tensors or (goes_on and not any(value.is_graph_output() for value in node.outputs)):
                self._mark(result)
                self._join(source, result)

    def _carry(self, node: ir.Node) -> None:
        """Quantise what a chain of operators that only move elements starts with, instead of its end."""
        result = node.outputs[0] if len(node.outputs) == 1 else None
        if node.op_type == "Split":
            result = next((value for value in node.outputs if value in self._tensors), None)
        if result is None or result not in self._tensors or any(value.is_graph_output() for value in node.outputs):
            return
        joined = node.op_type == "Concat" and node.domain == ""
        if node.op_type in self._placement.between and node.domain == "" and node.inputs[0] is not None:
            self._mark(node.inputs[0])
            return
        sources = node.inputs if joined else node.inputs[:1] if self._moves(node) else []
        if not sources or any(value is None or tensor(value) is not None for value in sources):
            return
        for value in sources:
            assert value is not None
            self._mark(value)
            for moved in node.outputs:
                if moved in self._tensors:
                    self._join(value, moved)
                    self._carried.add(moved)

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
        if value in self._carried:
            return
        for use in value.uses():
            layer = self._by_node.get(use.node)
            is_data = layer is not None and use.idx == 0
            goes_on = any(result in self._tensors for result in use.node.outputs)
            moved = goes_on and (self._moves(use.node) or any(v in self._carried for v in use.node.outputs))
            added = self._placement.residual and use.node.op_type == "Add"
            between = goes_on and use.node.op_type in self._placement.between
            if is_data or moved or added or between or self._placement.outputs:
                yield use.node, use.idx


def _elements(value: ir.Value) -> int | None:
    """Return how many elements a value has for each sample, which is what its first dimension counts; None: unknown."""
    sizes = dims(value)
    if sizes is None or not all(isinstance(size, int) for size in sizes[1:]):
        return None
    return math.prod(size for size in sizes[1:] if isinstance(size, int))
