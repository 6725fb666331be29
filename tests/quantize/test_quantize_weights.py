"""`quantize-weights`: blocks of 4 or 8 bits, rounding and GPTQ, and embeddings."""

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
from infconv.quantize._hessians import shrunk
from infconv.quantize.quantize_dynamic import QuantizeDynamic
from infconv.quantize.quantize_weights import QuantizeWeights
from tests.quantize.nets import Net, attention, decibel, residual, run, samples

RNG = np.random.default_rng(0)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def checked(model: ir.Model) -> ir.Model:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


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


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_gptq_is_better_with_every_size_of_block_and_number_of_rows(size: int) -> None:
    mixing = RNG.normal(size=(8, 100))
    x = (RNG.normal(size=(400, 8)) @ mixing + 0.1 * RNG.normal(size=(400, 100))).astype("f4")
    weight = RNG.normal(size=(100, 12)).astype("f4")  # the last block is a part of one
    nearest = round_to_nearest(weight, size, 4, symmetric=False)
    better = gptq(weight, x.T @ x / 400, size, 4, symmetric=False)
    assert better.scales.shape == nearest.scales.shape
    assert error(weight, better.real(), x) > error(weight, nearest.real(), x) + 2


def test_gptq_does_not_trust_few_rows() -> None:
    """48 rows of 96 numbers without any relation: what looks like one must not be made use of."""
    x, fresh = RNG.normal(size=(48, 96)).astype("f4"), RNG.normal(size=(4000, 96)).astype("f4")
    weight = RNG.normal(size=(96, 16)).astype("f4")
    moments = shrunk(x.T @ x / 48, 48, float(np.sum(np.sum(x**2, 1) ** 2)))
    nearest, better = round_to_nearest(weight, 32, 4, symmetric=False), gptq(weight, moments, 32, 4, symmetric=False)
    assert error(weight, better.real(), fresh) > error(weight, nearest.real(), fresh) - 0.5
    blind = gptq(weight, x.T @ x / 48, 32, 4, symmetric=False)
    assert error(weight, blind.real(), fresh) < error(weight, nearest.real(), fresh) - 1


def test_many_rows_are_trusted() -> None:
    x = (RNG.normal(size=(4000, 8)) @ RNG.normal(size=(8, 32)) + 0.1 * RNG.normal(size=(4000, 32))).astype("f4")
    moments = x.T @ x / 4000
    kept = shrunk(moments, 4000, float(np.sum(np.sum(x**2, 1) ** 2)))
    np.testing.assert_allclose(kept, moments, rtol=0.01, atol=0.01 * float(np.abs(moments).max()))


def test_a_model_without_products_says_so() -> None:
    ctx = Context(target="onnxruntime")
    assert QuantizeWeights().run(residual(), ctx) == 0
    assert "no MatMul or Gemm has a constant" in ctx.notes[0]


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
