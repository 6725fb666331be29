"""`scale-salient-weights` (AWQ): the model computes the same, and weights of 4 bits cost its outputs less."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from infconv.errors import UsageError
from infconv.passes import Context
from infconv.quantize.quantize_weights import QuantizeWeights
from infconv.quantize.scale_salient_weights import ScaleSalientWeights
from tests.quantize.nets import Net, context, decibel, run, samples


def block(*, constants: bool = False) -> ir.Model:
    """Return the feed-forward half of a decoder, some of whose channels carry most of the signal."""
    net = Net(21)
    gain = np.where(np.arange(64) % 16 == 0, 20.0, 0.3).astype("f4")
    mean = net.add("ReduceMean", net.add("Mul", "x", "x"), "axes")
    net.tensors += [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(np.array([-1]), "axes")]
    normal = net.add("Mul", net.add("Div", "x", net.add("Sqrt", mean)), "gain")
    gate, up = (net.add("MatMul", normal, net.constant(64, 128, scale=0.1)) for _ in range(2))
    hidden = net.add("Mul", net.add("Mul", gate, net.add("Sigmoid", gate)), up)
    net.add("MatMul", hidden, net.constant(128, 64, scale=0.1))
    if constants:
        as_nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in net.tensors]
        net.nodes, net.tensors = [*as_nodes, *net.nodes], []
    return net.model({"x": ["n", 8, 64]}, "y", ["n", 8, 64])


@pytest.mark.parametrize("constants", [False, True])
def test_scaling_keeps_the_result(constants: bool) -> None:
    model = block(constants=constants)
    x = samples(model, seed=2)
    assert ScaleSalientWeights().run(model, context(model, "onnxruntime")) >= 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert decibel(run(block(), x), run(model, x)) > 100


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_weights_of_4_bits_cost_less(method: Any) -> None:
    plain, scaled = block(), block()
    x = samples(plain, seed=2)
    exact = run(plain, x)
    ScaleSalientWeights().run(scaled, context(scaled, "onnxruntime"))
    for model in (plain, scaled):
        QuantizeWeights(method=method).run(model, context(model, "onnxruntime"))
    found = [decibel(exact, run(model, x, optimise=False)) for model in (plain, scaled)]
    assert found[1] > found[0] + {"nearest": 2, "gptq": -1}[method]


def test_what_something_else_reads_is_left_alone() -> None:
    net = Net(21)
    normal = net.add("LayerNormalization", "x", net.constant(64), axis=-1)
    net.add("Add", net.add("MatMul", normal, net.constant(64, 64)), normal)
    model = net.model({"x": ["n", 8, 64]}, "y", ["n", 8, 64])
    assert ScaleSalientWeights().run(model, context(model, "onnxruntime")) == 0


def test_it_needs_calibration_data() -> None:
    with pytest.raises(UsageError, match="calibration"):
        ScaleSalientWeights().run(block(), Context())
