"""Where Q/DQ go, held against the compilers: every pair is part of an integer kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from infconv.errors import UnsupportedError
from infconv.quantize.quantize_static import QuantizeStatic
from infconv.quantize.replace_mean_by_pool import ReplaceMeanByPool
from tests.quantize.nets import IMAGES, Net, context, decibel, inverted, kernels, residual, run, samples

FAST = QuantizeStatic(trials=4, never_slower=False)
Build = Callable[[], ir.Model]


def constant(net: Net, name: str, *values: float, dtype: str = "i8") -> str:
    net.tensors.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def pooled(net: Net, value: str, width: int) -> ir.Model:
    net.add("GlobalAveragePool", net.add("Relu", net.conv(value, width, 8)))
    return net.model(IMAGES, "y", ["n", 8, 1, 1])


def squeeze_excite() -> ir.Model:
    """Return a MobileNetV3's gate: a small float tensor multiplies a large one in 8 bits."""
    net = Net()
    stem = net.add("Relu", net.conv("x", 3, 8))
    inner = net.add("Relu", net.conv(net.add("GlobalAveragePool", stem), 8, 4, 1))
    gate = net.add("HardSigmoid", net.conv(inner, 4, 8, 1), alpha=1 / 6, beta=0.5)
    return pooled(net, net.add("Mul", stem, gate), 8)


def shuffled() -> ir.Model:
    """Return a ShuffleNetV2's unit: shuffled channels, half of which take a convolution."""
    net = Net()
    parts = net.add("Reshape", net.add("Relu", net.conv("x", 3, 8)), constant(net, "apart", -1, 2, 4, 8, 8))
    mixed = net.add("Reshape", net.add("Transpose", parts, perm=[0, 2, 1, 3, 4]), constant(net, "back", -1, 8, 8, 8))
    net.nodes.append(helper.make_node("Split", [mixed, constant(net, "halves", 4, 4)], ["p", "q"], "split", axis=1))
    return pooled(net, net.add("Concat", "p", net.add("Relu", net.conv("q", 4, 4)), axis=1), 8)


def pyramid() -> ir.Model:
    """Return a feature pyramid's step: nearest neighbours, and a Concat."""
    net = Net()
    scales = constant(net, "scales", 1, 1, 2, 2, dtype="f4")
    large = net.add("Resize", net.add("Relu", net.conv("x", 3, 8)), "", scales, mode="nearest")
    return pooled(net, net.add("Concat", net.add("Relu", net.conv(large, 8, 8)), large, axis=1), 16)


def averaged() -> ir.Model:
    net = Net()
    return pooled(net, net.add("AveragePool", net.add("Relu", net.conv("x", 3, 8)), kernel_shape=[2, 2]), 8)


def ends_in_a_sum() -> ir.Model:
    """Return a ResNet's end as exporters write it: an addition, and a mean that drops its axes."""
    net = Net()
    stem = net.add("Relu", net.conv("x", 3, 8))
    last = net.add("Relu", net.add("Add", net.conv(stem, 8, 8), stem))
    mean = net.add("ReduceMean", last, axes=[2, 3], keepdims=0)
    net.add("Gemm", mean, net.constant(8, 4))
    return net.model(IMAGES, "y", ["n", 4])


def quantised(build: Build, target: str) -> ir.Model:
    model = build()
    ctx = context(model, target)
    if target == "onnxruntime":
        ReplaceMeanByPool().run(model, ctx)
    assert FAST.run(model, ctx) > 0
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = samples(model, seed=2)
    assert decibel(run(build(), x), run(model, x)) > 30
    return model


ONNXRUNTIME: list[tuple[Build, int, dict[str, int]]] = [
    (squeeze_excite, 3, {"QLinearMul": 1, "QLinearGlobalAveragePool": 1, "Mul": 0}),
    (shuffled, 1, {"QLinearConcat": 1, "Split": 1, "Concat": 0}),
    (pyramid, 1, {"Resize": 1, "QLinearConcat": 1, "Concat": 0}),
    (averaged, 1, {"QLinearAveragePool": 1, "AveragePool": 0}),
    (ends_in_a_sum, 0, {"QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1, "ReduceMean": 0, "Relu": 0}),
]


@pytest.mark.parametrize(("build", "dequantised", "expected"), ONNXRUNTIME)
def test_onnx_runtime_has_an_integer_kernel_for_every_pair(
    build: Build, dequantised: int, expected: dict[str, int], tmp_path: Path
) -> None:
    """What is left: the input's QuantizeLinear, and what the last pooling (or HardSigmoid) reads in float."""
    found = kernels(quantised(build, "onnxruntime"), tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert found["Conv"] + found["FusedConv"] == 0
    assert found["DequantizeLinear"] + found["QuantizeLinear"] - 1 == dequantised


@pytest.mark.parametrize("build", [residual, inverted, shuffled, pyramid, averaged, ends_in_a_sum])
def test_openvino_quantises_on_its_own_at_the_input_alone(build: Build, tmp_path: Path) -> None:
    """Everywhere else quantising is the end of the kernel before: pooling, Concat and Split run in 8 bits."""
    import openvino

    onnx.save(ir.to_proto(quantised(build, "openvino")), tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ordered_ops()]
    found = Counter((f["layerType"].astype(str), f["runtimePrecision"].astype(str)) for f in facts)
    kinds = Counter(kind for kind, _ in found.elements())
    assert kinds["FakeQuantize"] == 1
    for kind in ("Convolution", "Pooling", "Concatenation", "Split", "Interpolate", "ShuffleChannels"):
        assert found[kind, "u8"] == kinds[kind]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_activations_of_16_bits_are_refused(target: str) -> None:
    with pytest.raises(UnsupportedError, match="16"):
        QuantizeStatic(activation_bits=16).run(residual(), context(residual(), target))


def test_no_compiler_here_has_kernels_for_16_bits(tmp_path: Path) -> None:
    """The day that this fails the refusal has to go."""
    import openvino

    model = quantised(residual, "onnxruntime")
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.UINT8:
            value.const_value = ir.tensor(np.array(1 << 15, np.uint16), name=value.name)
            value.type = ir.TensorType(ir.DataType.UINT16)
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT16)
    model.graph.opset_imports[""] = 21
    found = kernels(model, tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (0, 4)
    onnx.save(ir.to_proto(model), tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {f["runtimePrecision"].astype(str) for f in facts if f["layerType"].astype(str) == "Convolution"}
    assert kinds == {"f32"}
