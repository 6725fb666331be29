"""`lower-precision` with samples: the error is measured, and the nodes that make it stay FP32, no more than needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml

from infconv.compare import Tolerance
from infconv.convert._rounded import run_rounded_here
from infconv.passes import Context
from infconv.quantize import _trial
from infconv.quantize._blame import blamed
from infconv.quantize._emulate import emulated
from infconv.quantize._formats import FORMATS
from infconv.quantize._plan import Planner
from infconv.quantize._wires import Wiring
from infconv.quantize.lower_precision import LowerPrecision
from tests.helpers import parse, run
from tests.quantize.test_lower_precision import W, at_opset, types

OFFSET = f"""m (float[4, 4] x) => (float[4, 4] y) <{W}, float k = {{1000}}>
    {{ a = MatMul(x, w)  b = Relu(a)  c = Tanh(b)
       d = Add(c, k)  e = Sub(d, k)
       f = MatMul(e, w)  y = MatMul(f, w) }}"""
X = {"x": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)}


def lower(
    text: str, step: LowerPrecision | None = None, context: Context | None = None
) -> tuple[ir.Model, onnx.ModelProto]:
    """Lower a model and check that the result is valid."""
    model = parse(text, infer=False)
    (step or LowerPrecision()).run(model, context or Context())
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return model, proto


def test_only_the_nodes_that_make_the_error_stay_fp32() -> None:
    context = Context(samples=[X])
    model, after = lower(OFFSET, context=context)
    assert {name for name, kind in types(model).items() if kind == "FLOAT" and "float" not in name} == {"d", "e", "y"}
    facts = yaml.safe_load(context.documents["precision.yaml"])["facts"]
    assert facts["kept_by_measurement"] == 2
    assert facts["error"] < 0.8
    assert "off by 20.9 times the tolerance; with 2 more nodes in FP32 by" in context.notes[0]
    np.testing.assert_allclose(run(after, X)["y"], run(ir.to_proto(parse(OFFSET)), X)["y"], atol=1e-2)


def test_the_reason_says_what_was_measured() -> None:
    context = Context(samples=[X])
    LowerPrecision().run(parse(OFFSET), context)
    entries = {e["node"]: e["reason"] for e in yaml.safe_load(context.documents["precision.yaml"])["nodes"]}
    assert entries["d"] == "sensitivity: rounding 'd' makes 100.0% of the outputs' squared error on the samples"


def test_without_time_the_rules_decide_alone() -> None:
    model, _ = lower(OFFSET, LowerPrecision(search_seconds=0), Context(samples=[X]))
    assert types(model)["d"] == "FLOAT16"


def test_the_users_tolerance_decides_what_is_an_error() -> None:
    wide = Context(samples=[X], tolerance=Tolerance(rtol=0, atol=10.0, scaled=0))
    model, _ = lower(OFFSET, context=wide)
    assert types(model)["d"] == "FLOAT16"
    assert not wide.notes


@pytest.mark.parametrize("decibel", [20.0, 1e6])
def test_a_signal_to_noise_ratio_may_be_asked_for_however_large(decibel: float) -> None:
    context = Context(samples=[X], tolerance=Tolerance(rtol=0, atol=0, scaled=0, min_sqnr=decibel))
    lower(OFFSET, context=context)
    assert ("by an infinite multiple of" in context.notes[-1]) == (decibel > 1000)


def test_what_a_plan_lowers_is_not_taken_back_and_the_user_is_told(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("{version: 1, precision: fp16, nodes: [{node: d, type: float16}, {node: e, type: float16}]}")
    context = Context(samples=[X])
    model, _ = lower(OFFSET, LowerPrecision(precision_plan=str(path)), context)
    assert types(model)["d"] == types(model)["e"] == "FLOAT16"
    assert "and still by" in context.notes[-1]


def test_progress_is_told() -> None:
    told: list[str] = []
    LowerPrecision().run(parse(OFFSET), Context(samples=[X], progress=told.append))
    assert told[0] == "lower-precision: round 1, error 20.9 of the tolerance, 0 nodes kept"


def test_the_same_input_gives_the_same_plan() -> None:
    documents: list[str] = []
    for _ in range(2):
        context = Context(samples=[X])
        LowerPrecision().run(parse(OFFSET), context)
        documents.append(context.documents["precision.yaml"])
    assert documents[0] == documents[1]


def test_a_model_that_does_not_run_is_lowered_by_the_rules() -> None:
    context = Context(samples=[{"x": np.ones((4, 5), np.float32)}])
    model, _ = lower(OFFSET, context=context)
    assert types(model)["d"] == "FLOAT16"
    assert "the plan is not measured: the model did not run on the samples" in context.notes[-1]


def test_bfloat16_is_searched_too() -> None:
    text = at_opset(22, OFFSET.replace("1000", "200"))
    context = Context(samples=[X])
    model, _ = lower(text, LowerPrecision(dtype="bfloat16"), context)
    assert types(model)["d"] == types(model)["e"] == "FLOAT"
    assert types(model)["f"] == "BFLOAT16"


# --- blame -----------------------------------------------------------------------------------------------------------


def shares(text: str, inputs: dict[str, np.ndarray]) -> dict[str, float]:
    wiring = Wiring(parse(text), FORMATS["float16"])
    plan = Planner(wiring, Context()).plan(())
    blame = blamed(wiring, plan, _trial.taps(wiring, plan, [inputs]))
    return {str(value.name): share for value, share in blame.shares.items() if share > 1e-4}


def test_the_shares_add_up_to_the_whole_error() -> None:
    found = shares(OFFSET, X)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-3)
    assert max(found, key=lambda name: found[name]) == "d"


def test_in_a_sum_the_large_operand_has_the_blame_although_the_small_one_is_further_off() -> None:
    text = f"""m (float[4, 4] x) => (float[4, 4] y) <{W}, float k = {{1000}}, float h = {{0.01}}>
        {{ a = MatMul(x, w)  s = Mul(a, h)  t = Tanh(s)  b = Mul(a, k)  y = Add(b, t) }}"""
    found = shares(text, X)
    assert found.get("t", 0.0) < 1e-3
    assert found["b"] > 0.1


# --- the graph that rounds as hardware does --------------------------------------------------------------------------


def test_onnx_runtime_hides_the_rounding_that_the_emulation_shows() -> None:
    model, _ = lower(OFFSET, LowerPrecision(search_seconds=0))
    exact = run(ir.to_proto(parse(OFFSET)), X)["y"]
    as_it_is = np.abs(run(ir.to_proto(model), X)["y"] - exact).max()
    rounded = np.abs(run(ir.to_proto(emulated(model, ir.DataType.FLOAT16)), X)["y"] - exact).max()
    assert as_it_is < 0.01
    assert rounded > 0.1


NETWORK = at_opset(
    22,
    f"""m (float[2, 4] x, bool c) => (float[2, 4] y, bfloat16[2, 4] z, int64[2, 1] i)
        <{W}, float[4] one = {{1, 1, 1, 1}}, int64[2] s = {{2, 4}}>
        {{ a = MatMul(x, w)  n = LayerNormalization(a, one)  r = Reshape(n, s)  g = Gelu(r)
           t = If (c) <then_branch = t () => (float[2, 4] p) {{ p = MatMul(g, w) }},
                       else_branch = e () => (float[2, 4] q) {{ q = Exp(g) }}>
           u = Softmax(t)  v = Add(u, a)  z = Cast<to = 16>(v)  i = ArgMax<axis = 1>(v)  y = MatMul(v, w) }}""",
)


@pytest.mark.parametrize("condition", [True, False])
def test_the_emulation_agrees_with_the_reference_evaluator(condition: bool, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    model, proto = lower(NETWORK, LowerPrecision(dtype="bfloat16"))
    feed = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32), "c": np.array(condition)}
    clone = emulated(model, ir.DataType.BFLOAT16)
    fast = ir.to_proto(clone)
    onnx.checker.check_model(fast, full_check=True)
    assert [(v.name, v.dtype) for v in clone.graph.outputs] == [(v.name, v.dtype) for v in model.graph.outputs]
    names = [output.name for output in proto.graph.output]
    expected = dict(zip(names, ReferenceEvaluator(proto).run(None, feed), strict=True))
    onnx.save(proto, tmp_path / "m.onnx")
    outcome = run_rounded_here(tmp_path / "m.onnx", [feed])
    assert outcome is not None
    by, (actual,) = outcome
    assert "rounding float32 to bfloat16" in by
    assert isinstance(actual, dict)
    for name in names:
        wide, other = np.asarray(expected[name]).astype(np.float64), np.asarray(actual[name]).astype(np.float64)
        np.testing.assert_allclose(other, wide, rtol=2e-2, atol=2e-2)
    assert np.asarray(actual["z"]).dtype.name == "bfloat16"


def test_nodes_inside_a_branch_are_kept_when_what_it_hands_out_is_wrong() -> None:
    text = f"""m (float[4, 4] x, bool p) => (float[4, 4] y) <{W}, float k = {{1000}}>
        {{ a = MatMul(x, w)  t = Tanh(a)
           i = If (p) <then_branch = g () => (float[4, 4] o) {{ b = Add(t, k)  o = Sub(b, k) }},
                       else_branch = e () => (float[4, 4] q) {{ q = Relu(t) }}>
           f = MatMul(i, w)  y = MatMul(f, w) }}"""
    inputs = {**X, "p": np.array(True)}
    context = Context(samples=[inputs])
    model, _ = lower(text, context=context)
    assert types(model)["b"] == "FLOAT"
    assert types(model)["f"] == "FLOAT16"
    assert "more nodes in FP32 by" in context.notes[0]
