"""`smooth-activations` (SmoothQuant): the model computes the same, and quantises better."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from infconv.errors import UsageError
from infconv.passes import Context
from infconv.quantize.quantize_static import QuantizeStatic
from infconv.quantize.smooth_activations import SmoothActivations
from tests.quantize.nets import Net, context, decibel, run, samples

STATIC = QuantizeStatic(trials=4, never_slower=False)


def transformer(*, shared: bool = False) -> ir.Model:
    """A LayerNormalization whose channels differ by a factor of 100, before two products."""
    net = Net()
    scale = np.where(np.arange(32) % 8 == 0, 50.0, 0.5).astype("f4")
    net.tensors += [numpy_helper.from_array(scale, "gamma"), numpy_helper.from_array(scale / 5, "beta")]
    normal = net.add("LayerNormalization", "x", "gamma", "beta", axis=-1)
    query = net.add("MatMul", normal, net.constant(32, 24, scale=0.2))
    gemm_like = net.add("MatMul", normal, net.constant(32, 24, scale=0.2))
    other = net.add("Tanh", normal) if shared else query
    net.add(
        "Add", net.add("Mul", query, gemm_like), net.add("MatMul", other, net.constant(32, 24)) if shared else query
    )
    return net.model({"x": ["n", 4, 32]}, "y", ["n", 4, 24])


def test_smoothing_keeps_the_result_and_quantises_better() -> None:
    plain, smooth = transformer(), transformer()
    ctx = context(plain, "openvino")
    assert SmoothActivations().run(smooth, ctx) == 1
    x = samples(plain, seed=2)
    assert decibel(run(transformer(), x), run(smooth, x)) > 100
    onnx.checker.check_model(ir.to_proto(smooth), full_check=True)
    for model in (plain, smooth):
        STATIC.run(model, context(model, "openvino"))
    assert decibel(run(transformer(), x), run(smooth, x)) > decibel(run(transformer(), x), run(plain, x)) + 1.5


def test_a_norm_that_something_else_reads_is_left_alone() -> None:
    model = transformer(shared=True)
    assert SmoothActivations().run(model, context(model, "openvino")) == 0


def test_smoothing_needs_calibration_data() -> None:
    with pytest.raises(UsageError, match="calibration"):
        SmoothActivations().run(transformer(), Context())
