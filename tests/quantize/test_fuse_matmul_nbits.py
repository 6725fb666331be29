"""`fuse-matmul-nbits`: MatMulNBits computes what DequantizeLinear and MatMul do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from infconv.passes import Context
from infconv.quantize.fuse_matmul_nbits import FuseMatmulNbits
from infconv.quantize.quantize_weights import QuantizeWeights
from tests.quantize.nets import attention, context, decibel, kernels, run, samples


def checked(model: ir.Model) -> ir.Model:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


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


def test_a_product_of_plain_weights_is_left_alone() -> None:
    model = attention()
    assert FuseMatmulNbits().run(model, Context(target="onnxruntime")) == 0
