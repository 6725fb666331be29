"""`equalize-channels`: the model computes the same, and its channels have similar ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper

from infconv.passes import Context
from infconv.quantize.equalize_channels import EqualizeChannels
from tests.quantize.nets import Net, decibel, residual, run, samples


def chain() -> ir.Model:
    """Convolutions whose channels differ much, with Relu, nothing and a depthwise one between."""
    net = Net()
    first = net.add("Relu", net.conv("x", 3, 8))
    spread = np.exp(np.linspace(-3, 3, 8)).astype("f4")
    net.tensors[0] = numpy_helper.from_array(numpy_helper.to_array(net.tensors[0]) * spread[:, None, None, None], "w0")
    deep = net.conv(first, 8, 8, group=8)
    net.conv(net.add("Relu", net.conv(deep, 8, 8)), 8, 4)
    return net.model({"x": ["n", 3, 8, 8]}, "y", ["n", 4, 8, 8])


def test_equalising_keeps_the_result_and_evens_out_the_channels() -> None:
    model = chain()
    x = samples(model, seed=2)
    assert EqualizeChannels().run(model, Context()) == 3
    assert decibel(run(chain(), x), run(model, x)) > 100

    def spread(of: ir.Model) -> float:
        weight = of.graph.initializers["w0"].const_value
        assert weight is not None
        largest = np.abs(weight.numpy()).reshape(8, -1).max(1)
        return float(largest.max() / largest.min())

    assert spread(model) < spread(chain()) / 5
    assert EqualizeChannels().run(model, Context()) <= 3


def test_weights_that_two_nodes_read_stay() -> None:
    model = residual()  # both readers of the stem, and an Add behind the second convolution
    assert EqualizeChannels().run(model, Context()) == 1
