"""INT8 without calibration data (`quantize-dynamic`) and weights in blocks of 4 or 8 bits (`quantize-weights`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from infconv.convert.to_openvino import ToOpenVINO
from infconv.errors import UnsupportedError
from infconv.model import save
from infconv.passes import Context
from infconv.quantize._blocks import gptq, round_to_nearest
from infconv.quantize.fuse_matmul_nbits import FuseMatmulNbits
from infconv.quantize.quantize_dynamic import QuantizeDynamic
from infconv.quantize.quantize_weights import QuantizeWeights
from tests.quantize.nets import Net, attention, context, decibel, kernels, residual, run, samples

RNG = np.random.default_rng(0)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def gemms() -> ir.Model:
    """Gemm as torch writes it (transB, a bias) and the other way round."""
    net = Net()
    hidden = net.add("Relu", net.add("Gemm", "x", net.constant(96, 64, scale=0.1), net.constant(96), transB=1))
    net.add("Gemm", hidden, net.constant(96, 80, scale=0.1))
    return net.model({"x": ["n", 64]}, "y", ["n", 80])


def checked(model: ir.Model) -> ir.Model:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


# --- dynamic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [attention, gemms])
def test_products_become_one_integer_kernel_each(build: Any, tmp_path: Path) -> None:
    model = build()
    x = samples(model)
    count = QuantizeDynamic().run(model, Context(target="onnxruntime"))
    found = kernels(checked(model), tmp_path)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == count >= 2
    assert found["MatMulInteger"] == 0
    assert decibel(run(build(), x), run(model, x)) > 30
    assert QuantizeDynamic().run(model, Context()) == 0


def test_readers_of_one_tensor_share_its_quantiser() -> None:
    model = attention()
    QuantizeDynamic().run(model, Context())
    assert operators(model)["DynamicQuantizeLinear"] == 3  # query and key read the same input


def test_convolutions_stay_float_and_it_is_said() -> None:
    model, ctx = residual(), Context()
    assert QuantizeDynamic().run(model, ctx) == 1
    assert operators(model)["Conv"] == 4
    assert "Convolutions stay float" in ctx.notes[0]


def test_seven_bits_keep_within_what_older_processors_add_up() -> None:
    model = gemms()
    QuantizeDynamic(reduce_range=True).run(model, Context())
    weights = [v.const_value.numpy() for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]  # type: ignore
    assert max(np.abs(w).max() for w in weights) == 63


def test_a_model_of_convolutions_alone_is_not_passed_off_as_int8(infconv: Any, tmp_path: Path) -> None:
    net = Net()
    net.conv("x", 3, 4)
    save(net.model({"x": ["n", 3, 8, 8]}, "y", ["n", 4, 8, 8]), tmp_path / "net.onnx")
    done = infconv("convert", "net.onnx", "--int8")
    assert (done.code, "int8 was asked for" in done.err) == (5, True)
    assert not (tmp_path / "net.int8.onnx").exists()


# --- blocks --------------------------------------------------------------------------------------------------------


def error(weight: np.ndarray, real: np.ndarray, x: np.ndarray) -> float:
    return decibel(x @ weight, x @ real)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_use_all_their_bits(bits: int, symmetric: bool) -> None:
    weight = RNG.normal(size=(100, 7)).astype("f4")  # 100 is no multiple of 32
    blocks = round_to_nearest(weight, 32, bits, symmetric)
    assert blocks.scales.shape == (4, 7)
    assert decibel(weight, blocks.real()) > {4: 20, 8: 44}[bits]
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric else (0, (1 << bits) - 1)
    assert least <= blocks.integers.min() < blocks.integers.max() <= most


def test_gptq_loses_less_than_rounding_where_inputs_are_correlated() -> None:
    mixing = RNG.normal(size=(8, 64))
    x = (RNG.normal(size=(400, 8)) @ mixing + 0.1 * RNG.normal(size=(400, 64))).astype("f4")
    weight = RNG.normal(size=(64, 16)).astype("f4")
    nearest = round_to_nearest(weight, 32, 4, symmetric=False)
    better = gptq(weight, x.T @ x, 32, 4, symmetric=False)
    assert error(weight, better.real(), x) > error(weight, nearest.real(), x) + 3


def test_gptq_takes_inputs_that_are_always_zero() -> None:
    x = np.concatenate([RNG.normal(size=(50, 20)), np.zeros((50, 12))], axis=1).astype("f4")
    assert np.isfinite(gptq(RNG.normal(size=(32, 4)), x.T @ x, 32, 4, symmetric=True).real()).all()


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits_computes_what_dequantise_linear_does(bits: Any, calibrated: bool, tmp_path: Path) -> None:
    model = attention()
    x = samples(model)
    ctx = context(model, "onnxruntime") if calibrated else Context(target="onnxruntime")
    assert QuantizeWeights(bits=bits).run(model, ctx) == 4
    standard = run(checked(model), x, optimise=False)  # optimised it rounds activations to 8 bits
    assert decibel(run(attention(), x), standard) > {4: 13, 8: 35}[bits]
    assert FuseMatmulNbits().run(model, ctx) == 4
    assert kernels(model, tmp_path)["MatMulNBits"] == 4
    assert decibel(standard, run(model, x)) > 80


def test_small_weights_and_those_to_keep_stay_float() -> None:
    model = attention()
    assert QuantizeWeights(least=6000, keep=("matmul9",)).run(model, Context()) == 1
    old = attention()
    old.graph.opset_imports[""] = 20
    with pytest.raises(UnsupportedError, match="opset 21"):
        QuantizeWeights().run(old, Context())


@pytest.mark.parametrize("step", [QuantizeDynamic(least_table=1), QuantizeWeights(least_table=1, least=10**6)])
def test_embeddings_have_a_scale_for_each_row(step: Any) -> None:
    def build() -> ir.Model:
        net = Net(21)
        table = RNG.normal(size=(50, 32)) * np.exp(RNG.normal(size=(50, 1)))
        net.tensors.append(numpy_helper.from_array(table.astype("f4"), "table"))
        net.tensors.append(numpy_helper.from_array(np.arange(0, 50, 7), "ids"))
        net.add("Add", net.add("Gather", "table", "ids"), "x")
        return net.model({"x": ["n", 8, 32]}, "y", ["n", 8, 32])

    model = build()
    table = model.graph.initializers["table"].const_value
    x = np.zeros((1, 8, 32), "f4")
    assert step.run(model, Context()) == 1
    assert table is not None
    actual = run(checked(model), x)[0]
    errors = [decibel(row, found) for row, found in zip(table.numpy()[::7], actual, strict=True)]
    assert min(errors) > 38  # the small rows too


def test_openvino_holds_weights_of_4_bits(tmp_path: Path) -> None:
    model = attention()
    x = samples(model)
    QuantizeWeights().run(model, Context(target="openvino"))
    exporter = ToOpenVINO()
    exported = exporter.export(model, tmp_path / "m.xml", {})
    assert exporter.delivered(exported).compute["int4"] == 4
    (outputs,) = exporter.execute(exported, [{"x": x}]).outputs
    assert decibel(run(model, x), outputs["y"]) > 60


def test_tensorrt_has_kernels_for_weights_of_4_bits(infconv: Any, tmp_path: Path) -> None:
    save(attention(128), tmp_path / "net.onnx")
    done = infconv("convert", "net.onnx", "-t", "trt", "--int4", "--json")
    assert done.code == 0, done.err
    assert done.json["artifacts"][0]["compute"]["int4"] >= 2  # 96 rows are no multiple of 64: those stay float


def test_int4_from_the_command_line(infconv: Any, tmp_path: Path) -> None:
    save(attention(), tmp_path / "net.onnx")
    done = infconv("convert", "net.onnx", "-t", "ort", "--int4", "--json")
    assert done.code == 0, done.err
    (artifact,) = done.json["artifacts"]
    assert artifact["compute"]["int4"] == 4
    assert artifact["bytes"] < 0.3 * (tmp_path / "net.onnx").stat().st_size
