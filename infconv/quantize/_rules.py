"""Which operators stay FP32 whatever the values are, and why; which ones do not care."""

from __future__ import annotations

import onnx_ir as ir

from infconv.quantize._schemas import first_opset, names
from infconv.quantize._wires import Wiring, constant_tensor, is_constant

MOVEMENT = names(
    "Reshape Transpose Slice Concat Gather GatherElements GatherND Identity Squeeze Unsqueeze Expand Tile Split Where",
    "Pad Flatten Max Min Relu Clip ScatterElements ScatterND Scatter DepthToSpace SpaceToDepth ReverseSequence Trilu",
    "Compress CenterCropPad Col2Im Abs Neg Sign MaxPool GlobalMaxPool ReduceMax ReduceMin ArgMax ArgMin TopK NonZero",
    "Unique Shape Size Equal Greater GreaterOrEqual Less LessOrEqual IsNaN IsInf Cast CastLike OneHot ConstantOfShape",
    "EyeLike If Loop Scan Upsample MaxUnpool TensorScatter Dropout LeakyRelu PRelu Round Floor Ceil",
)
"""They round nothing: each takes the type that costs the fewest casts."""

COMPUTE = names(
    "MatMul Gemm Conv ConvTranspose Einsum LSTM GRU RNN Attention DeformConv LinearAttention FlexAttention",
    "CausalConvWithState FusedMatMul FusedGemm FusedConv MultiHeadAttention MatMulNBits",
)
"""What the narrow type is for: lowered whatever the casts cost."""

_ACCUMULATES = "it adds up many elements, and the sum loses bits or overflows in {label}"
_GROWS = "its result grows faster than its argument and leaves the range of {label}"
_DIVIDES = "its divisor can become zero in {label}"
_COORDINATES = "it computes with coordinates, which need more bits than {label} has"
_NORM = "it squares and averages its input, for which {label} has neither range nor bits"
_ANGLE = "the error of its argument in {label} is an error of phase"

_REDUCTIONS = names(
    "ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp ReduceProd CumSum CumProd Sum",
    "Mean NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss Det DFT STFT MelWeightMatrix LogSoftmax",
)
_NORMS = names("InstanceNormalization LpNormalization MeanVarianceNormalization LpPool GlobalLpPool LRN")

_KINDS = {
    **dict.fromkeys((_ACCUMULATES, _NORM), "reduction"),
    **dict.fromkeys((_GROWS, _DIVIDES), "range"),
    **dict.fromkeys((_COORDINATES, _ANGLE), "sensitivity"),
}
"""Reason -> its kind in the plan file."""

SENSITIVE: dict[str, str] = {
    **dict.fromkeys(_REDUCTIONS, _ACCUMULATES),
    **dict.fromkeys(_NORMS, _NORM),
    **dict.fromkeys(names("Exp Pow Tan Sinh Cosh Acosh Atanh Log"), _GROWS),
    **dict.fromkeys(names("Reciprocal Mod"), _DIVIDES),
    **dict.fromkeys(names("GridSample RoiAlign MaxRoiPool AffineGrid NonMaxSuppression Range"), _COORDINATES),
    **dict.fromkeys(names("Sin Cos"), _ANGLE),
}
"""Operator -> the reason for which it stays FP32 on every target."""

TARGET_SENSITIVE: dict[str, dict[str, str]] = {"onnx": {}, "onnxruntime": {}, "openvino": {}, "tensorrt": {}}
"""Target -> operator -> the reason for which it stays FP32 there."""

NO_KERNEL: dict[tuple[str, str], frozenset[str]] = {
    ("onnx", "float16"): frozenset({"EyeLike"}),
    ("onnxruntime", "float16"): frozenset({"EyeLike"}),
}
"""(target, format) -> operators that the target has no kernel for in the format.

Tried with ONNX Runtime 1.32 (CPU) on every operator of onnx's backend suite: it computes FP16 operators without a
kernel in FP32 by casts of its own, these aside. BF16 it computes nowhere, so there is no table for it:
a BF16 model is for other providers and targets.
"""

_SCATTERS = frozenset({"ScatterElements", "ScatterND"})
"""ONNX Runtime (CPU) has no FP16 kernel for their reductions."""

_STASHED = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization"})
"""They compute in the type that `stash_type` names; FP32 unless said otherwise."""


def fixed_reason(wiring: Wiring, node: ir.Node, target: str) -> str | None:
    """Return why `node` cannot be lowered for `target` at all; None if it can."""
    label = wiring.narrow.label
    found = wiring.schemas.of(node)
    if found is None:
        return f"{node.domain or 'function'}::{node.op_type} is not a standard operator"
    if wiring.has_containers(node):
        return "it handles sequences or optionals"
    if wiring.has_unknown_types(node):
        return "the types around it are not known"
    if not wiring.is_lowerable(node):
        first = first_opset(node.op_type, wiring.narrow.type_string) or 0
        later = f" (opset {first} has)" if first > wiring.schemas.opset() else ""
        return f"{node.op_type} of opset {wiring.schemas.opset()} has no {label} form{later}"
    if node.op_type == "BitCast":
        return "it reads the bits of its input"
    if node.op_type in NO_KERNEL.get((target, wiring.narrow.name), frozenset()) or _is_reducing_scatter(node, target):
        return f"{target} has no {label} kernel for {node.op_type}"
    return None


def sensitive_reason(wiring: Wiring, node: ir.Node, target: str) -> tuple[str | None, str]:
    """Return why the operator is better left in FP32 on `target` (None if it is not), and the kind of that reason."""
    reason = _sensitive_reason(wiring, node, target)
    return (reason.format(label=wiring.narrow.label) if reason else None), _KINDS.get(reason or "", "range")


def _sensitive_reason(wiring: Wiring, node: ir.Node, target: str) -> str | None:
    reason = SENSITIVE.get(node.op_type) or TARGET_SENSITIVE.get(target, {}).get(node.op_type)
    if reason is None and node.op_type in _STASHED and node.attributes.get_int("stash_type", 1) != 1:
        reason = _NORM
    if reason is None and node.op_type == "Div" and not _is_constant(node.inputs[1]):
        reason = _DIVIDES
    if reason is None and node.op_type == "Mul" and any(_is_reciprocal(value) for value in node.inputs):
        # A row of zeros times the reciprocal of its norm: 0 * inf once the reciprocal has overflowed.
        reason = "one factor is a reciprocal, which can overflow in {label}"
    if reason is None and node.op_type == "BatchNormalization" and _has_tiny_variance(wiring, node):
        reason = "some of its variances are too small for {label}"
    return reason


def _has_tiny_variance(wiring: Wiring, node: ir.Node) -> bool:
    """Whether a BatchNormalization of an opset that has one type for everything divides by what would be zero."""
    variance = node.inputs[4]
    if not wiring.schemas.input_follows(node, 4, wiring.narrow):
        return False
    if variance is None or not _is_constant(variance):
        return True
    return bool((constant_tensor(variance).numpy() < wiring.narrow.smallest_normal).any())


def _is_reducing_scatter(node: ir.Node, target: str) -> bool:
    if node.op_type not in _SCATTERS or target not in {"onnx", "onnxruntime"}:
        return False
    return node.attributes.get_string("reduction", "none") != "none"


def _is_constant(value: ir.Value | None) -> bool:
    if value is None:
        return False
    node = value.producer()
    if node is None:
        return value.const_value is not None and not value.is_graph_input()
    return is_constant(node)


def _is_reciprocal(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "Pow" and _is_constant(node.inputs[1]):
        return bool((constant_tensor(node.inputs[1]).numpy() < 0).any())  # type: ignore[arg-type]
    return node.op_type == "Reciprocal"
