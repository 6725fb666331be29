"""`lower-precision` with samples: rules that are over-cautious for a model give way, those that are not stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml

from infconv.passes import Context
from infconv.quantize.lower_precision import LowerPrecision
from tests.helpers import parse, run
from tests.quantize.test_lower_precision import weight

RNG = np.random.default_rng(0)


def norm(eps: float = 1e-6, scale: float = 1.0) -> str:
    """An RMSNorm as exporters write it, between two products."""
    return f"""m (float[2, 8] x) => (float[2, 8] y)
        <float[8, 8] w = {{{weight(8, 8, scale=scale)}}}, float[8, 8] v = {{{weight(8, 8)}}},
         float two = {{2}}, float eps = {{{eps:.15f}}}, int64[1] last = {{-1}}>
        {{ h = MatMul(x, w)  square = Pow(h, two)  mean = ReduceMean(square, last)  shifted = Add(mean, eps)
           root = Sqrt(shifted)  inverse = Reciprocal(root)  normed = Mul(h, inverse)  y = MatMul(normed, v) }}"""


def samples(scale: float = 1.0) -> list[dict[str, Any]]:
    return [{"x": (RNG.normal(size=(2, 8)) * scale).astype(np.float32)}]


def lowered(text: str, given: list[dict[str, Any]]) -> tuple[dict[str, str], list[str], ir.Model]:
    """Return node -> type, what was told, and the model."""
    model, context = parse(text), Context(samples=given)
    LowerPrecision().run(model, context)
    entries = yaml.safe_load(context.documents["precision.yaml"])["nodes"]
    return {entry["node"]: entry["type"] for entry in entries}, context.notes, model


def wide(text: str, given: list[dict[str, Any]]) -> set[str]:
    return {node for node, kind in lowered(text, given)[0].items() if kind == "float32"}


def test_a_norm_of_ordinary_activations_computes_in_fp16_without_a_cast() -> None:
    given = samples()
    _, _, model = lowered(norm(), given)
    assert [node.op_type for node in model.graph].count("Cast") == 2, "in and out"
    expected = run(ir.to_proto(parse(norm())), given[0])["y"]
    np.testing.assert_allclose(run(ir.to_proto(model), given[0])["y"], expected, atol=5e-3)
    zero = {"x": np.zeros((2, 8), np.float32)}
    np.testing.assert_array_equal(run(ir.to_proto(model), zero)["y"], 0.0)


def test_without_samples_the_rules_hold() -> None:
    model = parse(norm())
    LowerPrecision().run(model, Context())
    assert [node.op_type for node in model.graph].count("Cast") == 4


def test_squares_near_the_limit_stay_fp32() -> None:
    assert {"square", "mean"} <= wide(norm(), samples(100.0))


@pytest.mark.parametrize("eps", [1e-12, 1e-8])
def test_a_divisor_that_can_vanish_on_other_inputs_stays_fp32(eps: float) -> None:
    """On the samples its reciprocal is small; for a row of zeros it is 1e4 or more."""
    given = samples()
    types, _, model = lowered(norm(eps), given)
    assert {types["inverse"], types["shifted"]} == {"float32"}
    zero = {"x": np.zeros((2, 8), np.float32)}
    np.testing.assert_array_equal(run(ir.to_proto(model), zero)["y"], 0.0)


def one(operators: str) -> str:
    return f"""m (float[2, 4] x) => (float[2, 4] y) <float[4, 4] w = {{{weight(4, 4)}}}, int64[1] last = {{-1}},
               float half = {{0.5}}>
               {{ h = MatMul(x, w)  {operators}  y = MatMul(z, w) }}"""


@pytest.mark.parametrize(
    ("operators", "kept"),
    [
        ("e = Exp(h)  s = ReduceSum(e, last)  z = Div(e, s)", {"e", "z"}),
        ("m = ReduceMax(h, last)  d = Sub(h, m)  e = Exp(d)  z = Mul(e, half)", set[str]()),
        ("a = Abs(h)  d = Add(a, half)  z = Div(h, d)", set[str]()),
        ("d = Add(h, half)  z = Div(h, d)", {"z"}),
        ("d = Max(h, half)  z = Div(h, d)", set[str]()),
        ("q = Mul(h, h)  d = Clip(q, half)  z = Log(d)", set[str]()),
        ("z = Sin(h)", {"z"}),
        ("c = CumSum(h, last)  z = Relu(c)", {"c"}),
    ],
)
def test_the_graph_has_to_bound_what_samples_do_not_show(operators: str, kept: set[str]) -> None:
    text = one(operators).replace(
        "int64[1] last = {-1}", "int64 last = {-1}" if "CumSum" in operators else "int64[1] last = {-1}"
    )
    assert kept <= wide(text, [{"x": RNG.normal(size=(2, 4)).astype(np.float32)}])
    if not kept:
        assert not wide(text, [{"x": RNG.normal(size=(2, 4)).astype(np.float32)}])


def test_a_small_constant_that_does_no_harm_is_lowered_and_told() -> None:
    """A factor of 1e-6, like the layer scale of a fresh ConvNeXt, beside the residual that it is added to."""
    text = f"""m (float[2, 4] x) => (float[2, 4] y)
               <float[4, 4] w = {{{weight(4, 4)}}}, float[4] gamma = {{1e-6, 1e-6, 1e-6, 1e-6}}>
               {{ h = MatMul(x, w)  g = Mul(h, gamma)  t = Tanh(g)  s = Add(t, h)  y = MatMul(s, w) }}"""
    types, notes, _ = lowered(text, [{"x": RNG.normal(size=(2, 4)).astype(np.float32)}])
    assert set(types.values()) == {"float16"}
    assert any(
        "'gamma' is too small for FP16, which loses 1.3% of its norm; on the samples that does" in n for n in notes
    )


def test_a_product_that_adds_nothing_may_vanish() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y)
               <float[4, 4] w = {{{weight(4, 4)}}}, float[4, 4] tiny = {{{weight(4, 4, scale=1e-9)}}}>
               {{ h = MatMul(x, w)  g = MatMul(h, tiny)  t = Tanh(g)  s = Add(t, h)  y = MatMul(s, w) }}"""
    assert not wide(text, [{"x": RNG.normal(size=(2, 4)).astype(np.float32)}])


def test_a_small_constant_that_matters_stays_fp32() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y)
               <float[4, 4] w = {{{weight(4, 4)}}}, float[4] gamma = {{1e-6, 1e-6, 1e-6, 1e-6}}, float gain = {{30000}}>
               {{ h = MatMul(x, w)  t = Tanh(h)  g = Mul(t, gamma)  s = Sigmoid(g)  n = Neg(s)  z = Mul(g, gain)
                  a = Mul(z, n)  y = MatMul(a, w) }}"""
    assert "g" in wide(text, [{"x": RNG.normal(size=(2, 4)).astype(np.float32)}])
