"""Powers of two in the weights: what does not fit FP16 is made to, without changing what is computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.passes import Context
from infconv.quantize._emulate import emulated
from infconv.quantize._formats import FORMATS
from infconv.quantize._rescale import rescale
from infconv.quantize._trial import outputs
from infconv.quantize._wires import Wiring
from infconv.quantize.lower_precision import LowerPrecision
from tests.helpers import parse, random_inputs, run
from tests.quantize.test_lower_precision import W, types, weight

BIG = f"float[4, 4] big = {{{weight(4, 4, scale=1e5)}}}"


def scaled(text: str, maxima: dict[str, float]) -> tuple[ir.Model, dict[str, int]]:
    """Rescale a model of which these magnitudes were seen; check that it computes the very same, bit for bit."""
    model = parse(text)
    before = ir.to_proto(model)
    wiring = Wiring(model, FORMATS["float16"])
    seen = {value: maxima.get(value.name or "", 1.0) for value, wire in wiring.wires.items() if wire.source is not None}
    exponents = rescale(wiring, seen)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    inputs = random_inputs(before)
    for name, value in run(before, inputs).items():
        np.testing.assert_array_equal(run(after, inputs)[name], value)
    return model, {str(node.outputs[0].name): exponent for node, exponent in exponents.items()}


def test_a_layer_norm_does_not_see_a_scale() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}, {BIG}, float[4] one = {{1, 1, 1, 1}}>
        {{ h = MatMul(x, big)  r = Relu(h)  n = LayerNormalization<epsilon = 0.5>(r, one)  y = MatMul(n, w) }}"""
    model, exponents = scaled(text, {"h": 1e5, "r": 1e5})
    assert exponents == {"h": -4, "r": -4}
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    assert norm.attributes.get_float("epsilon") == 0.5 / 256
    assert "Mul" not in [node.op_type for node in model.graph]


def test_the_next_product_takes_the_scale_back() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{BIG}, float[4, 4] small = {{{weight(4, 4, scale=1e-5)}}}>
        {{ h = MatMul(x, big)  r = Relu(h)  y = MatMul(r, small) }}"""
    model, exponents = scaled(text, {"h": 2e5, "r": 2e5})
    assert exponents == {"h": -5, "r": -5}
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "MatMul"]


def test_biases_and_factors_take_it_too() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y)
        <{BIG}, float[4] c = {{1, 2, 3, 4}}, float k = {{0.00001}}, float e = {{7}}>
        {{ g = Gemm(x, big, c)  a = Add(g, e)  p = Mul(a, k)  y = Relu(p) }}"""
    _, exponents = scaled(text, {"g": 2e5, "a": 2e5})
    assert exponents == {"g": -5, "a": -5}


def test_a_residual_stream_has_one_scale() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}, {BIG}, float[4] one = {{1, 1, 1, 1}}>
        {{ a = MatMul(x, w)  n = LayerNormalization(a, one)  b = MatMul(n, big)  s = Add(a, b)
           o = LayerNormalization(s, one)  y = MatMul(o, w) }}"""
    _, exponents = scaled(text, {"b": 2e5, "s": 2e5})
    assert exponents == {"a": -5, "b": -5, "s": -5}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("h = MatMul(x, big)  t = Tanh(h)  y = MatMul(t, w)", "Tanh sees a scale, and a Mul in its place overflows"),
        ("h = MatMul(x, big)  e = Exp(h)  y = MatMul(e, w)", "Exp sees a scale"),
    ],
)
def test_what_is_not_linear_is_left_alone(nodes: str, reason: str) -> None:
    text = f"m (float[2, 4] x) => (float[2, 4] y) <{W}, {BIG}> {{ {nodes} }}"
    context = Context(samples=[random_inputs(ir.to_proto(parse(text)))])
    model = parse(text)
    LowerPrecision().run(model, context)
    assert types(model)["h"] == "FLOAT", reason


def test_a_mean_that_is_an_output_shows_the_scale_so_there_is_none() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y, float[2, 1] mean) <{W}, {BIG}, float[4] one = {{1, 1, 1, 1}}>
        {{ h = MatMul(x, big)  n, mean = LayerNormalization(h, one)  y = MatMul(n, w) }}"""
    scaled(text, {"h": 1e5})


def test_the_ends_of_the_model_get_a_mul() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}, {BIG}, float[4] one = {{1, 1, 1, 1}}>
        {{ a = Relu(x)  b = Abs(a)  n = LayerNormalization(b, one)  c = MatMul(n, big)  d = Add(b, c)  e = Relu(d)
           f = Add(e, b)  o = LayerNormalization(f, one)  y = MatMul(o, w) }}"""
    model, _ = scaled(text, dict.fromkeys("cdef", 2e5))
    first = model.graph[0]
    assert (first.op_type, [v and v.name for v in first.inputs[:1]]) == ("Mul", ["x"])


def test_with_samples_weights_beyond_the_range_are_computed_in_fp16_and_stay_right() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}, {BIG}, float[4] one = {{1, 1, 1, 1}}>
        {{ h = MatMul(x, big)  n = LayerNormalization(h, one)  y = MatMul(n, w) }}"""
    model = parse(text)
    before = ir.to_proto(model)
    inputs = random_inputs(before)
    context = Context(samples=[inputs])
    LowerPrecision().run(model, context)
    assert {types(model)[name] for name in ("h", "n")} == {"FLOAT16"}
    assert "scaled by 2^-" in context.notes[0]
    assert "scale: -" in context.documents["precision.yaml"]
    actual = outputs([emulated(model, ir.DataType.FLOAT16)], [inputs])[0][0]["y"]
    np.testing.assert_allclose(actual, run(before, inputs)["y"], atol=5e-3)


def test_a_plan_is_followed_where_the_scales_are_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}, {BIG}, float[4] one = {{1, 1, 1, 1}}>
        {{ h = MatMul(x, big)  n = LayerNormalization(h, one)  y = MatMul(n, w) }}"""
    context = Context(samples=[random_inputs(ir.to_proto(parse(text)))])
    LowerPrecision().run(parse(text), context)
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(context.documents["precision.yaml"])
    again, without = parse(text), parse(text)
    LowerPrecision(precision_plan=str(path)).run(again, Context(samples=context.samples))
    LowerPrecision(precision_plan=str(path)).run(without, Context())
    assert types(again)["h"] == "FLOAT16"
    assert types(without)["h"] == "FLOAT", "without samples nothing is scaled, and FP16 would overflow"
