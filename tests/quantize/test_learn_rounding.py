"""`learn-rounding` (AdaRound): the outputs of each layer change less, on data that it did not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from infconv.errors import UsageError
from infconv.passes import Context
from infconv.quantize._calibration import Calibration
from infconv.quantize._descent import descend
from infconv.quantize._patches import matrices, rows_of
from infconv.quantize._placement import layers_of
from infconv.quantize._readers import Data, Input
from infconv.quantize._schemes import quantise_weight
from infconv.quantize.learn_rounding import LearnRounding
from tests.quantize.nets import decibel, inverted, residual, run, samples

RNG = np.random.default_rng(0)


def smooth(model: ir.Model, seed: int) -> np.ndarray:
    """Return images whose neighbouring pixels and channels are alike, as in photographs."""
    images = samples(model, 64, seed)
    for axis in (2, 3):
        images = images + np.roll(images, 1, axis) + np.roll(images, 2, axis)
    return (images + images.mean(1, keepdims=True)).astype("f4")


def context(model: ir.Model, size: int = 8) -> Context:
    rows = smooth(model, 1)
    data = Data("memory", lambda: iter({"x": rows[i : i + size]} for i in range(0, len(rows), size)))
    return Context(
        target="onnxruntime", calibration=Calibration(data, [Input("x", np.dtype("f4"), ("n", *rows.shape[1:]))])
    )


def rounded(model: ir.Model) -> ir.Model:
    """Return a copy whose weights are those that kernels would compute with."""
    copy = model.clone()
    for layer in layers_of(copy, {"Conv", "MatMul", "Gemm"}):
        assert layer.weight.const_value is not None
        weights = quantise_weight(layer.weight.const_value.numpy(), layer.axis)
        layer.weight.const_value = ir.tensor(weights.real(), name=layer.weight.name)
    return copy


@pytest.mark.parametrize("build", [residual, inverted])
def test_rounded_weights_change_the_outputs_less(build: Any) -> None:
    model, learned = build(), build()
    ctx = context(learned)
    assert LearnRounding().run(learned, ctx) >= 4
    x = smooth(model, 2)
    exact = run(model, x, optimise=False)
    assert decibel(exact, run(rounded(learned), x)) > decibel(exact, run(rounded(model), x)) + 2
    assert "on batches held out" in ctx.notes[0]


def test_weights_are_on_the_grid_that_the_quantising_step_finds() -> None:
    model = residual()
    changed = LearnRounding().run(model, context(model))
    on_grid = 0
    for layer in layers_of(model, {"Conv", "Gemm"}):
        assert layer.weight.const_value is not None
        weight = layer.weight.const_value.numpy()
        on_grid += np.allclose(quantise_weight(weight, layer.axis).real(), weight, rtol=1e-6, atol=1e-9)
    assert on_grid == changed >= 4


def test_the_same_data_gives_the_same_weights() -> None:
    first, second = residual(), residual()
    for model in (first, second):
        LearnRounding(rows=64).run(model, context(model))
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()


def test_a_layer_keeps_its_weights_where_batches_held_out_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual()
    before = ir.to_proto(model).SerializeToString()
    monkeypatch.setattr("infconv.quantize.learn_rounding.descend", lambda nearest, *_: nearest + 3)
    assert LearnRounding().run(model, context(model)) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_layers_can_be_kept_and_data_must_be_there() -> None:
    model = residual()
    assert LearnRounding(keep=("op:Conv", "op:Gemm")).run(model, context(model)) == 0
    with pytest.raises(UsageError, match="calibration"):
        LearnRounding().run(model, Context())
    with pytest.raises(UsageError, match="two batches"):
        LearnRounding().run(model, context(model, 64))


def test_descent_finds_the_best_of_all_roundings_of_a_small_weight() -> None:
    wins = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 6))
        moments, weight, scale = x.T @ x / 50, rng.normal(size=(6, 1)), np.float32(0.4)
        lowest = np.floor(weight / scale)

        def error(integers: np.ndarray, moments: Any = moments, weight: Any = weight, scale: Any = scale) -> float:
            off = integers * scale - weight
            return float((off.T @ moments @ off)[0, 0])

        nearest = np.rint(weight / scale)
        found = descend(nearest, scale, weight, moments, lowest, lowest + 1)
        every = [lowest + np.array(list(f"{n:06b}"), int)[:, None] for n in range(64)]
        assert error(found) <= error(nearest) + 1e-6
        wins += error(found) <= 1.5 * min(map(error, every)) + 1e-6
    assert wins >= 8


CONVS: list[tuple[list[int], list[int], dict[str, Any]]] = [
    ([2, 4, 9], [6, 4, 3], {"pads": [2, 0], "strides": [2]}),
    ([2, 4, 8, 7], [6, 4, 3, 2], {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ([2, 4, 8, 8], [8, 1, 3, 3], {"group": 4, "pads": [1] * 4}),
    ([2, 4, 9, 8], [6, 2, 3, 4], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ([2, 4, 9, 8], [6, 4, 2, 2], {"auto_pad": "SAME_LOWER"}),
    ([2, 4, 9, 8], [6, 4, 2, 2], {"auto_pad": "VALID"}),
    ([1, 2, 5, 5, 5], [3, 2, 3, 3, 3], {"pads": [1] * 6}),
]


@pytest.mark.parametrize(("data", "weight", "attributes"), CONVS)
def test_rows_times_matrix_is_the_convolution(data: list[int], weight: list[int], attributes: dict[str, Any]) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", data), ("y", None))]
    kernel = numpy_helper.from_array(RNG.normal(size=weight).astype("f4"), "w")
    proto = helper.make_model(
        helper.make_graph([node], "conv", info[:1], info[1:], [kernel]), opset_imports=[helper.make_opsetid("", 17)]
    )
    proto.ir_version = 8
    model = ir.from_proto(proto)
    x = RNG.normal(size=data).astype("f4")
    (layer,) = layers_of(model, {"Conv"})
    products = np.matmul(rows_of(layer, x, 10**6, RNG), matrices(layer))  # [groups, places, outputs of a group]
    y = np.moveaxis(run(model, x), 1, -1)
    np.testing.assert_allclose(np.concatenate(list(products), -1), y.reshape(-1, y.shape[-1]), rtol=1e-4, atol=1e-5)
    assert rows_of(layer, x, 5, RNG).shape[1] == 5
