"""`quantize-dynamic`: INT8 products without calibration data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.model import save
from infconv.passes import Context
from infconv.quantize.quantize_dynamic import QuantizeDynamic
from tests.quantize.nets import Net, attention, decibel, kernels, residual, run, samples


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
