"""Constant nodes become initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from infconv.passes.lift_constants import LiftConstants
from tests.helpers import apply, check_rewrite, parse


@pytest.mark.parametrize(
    ("attribute", "kind", "value"),
    [
        ("value = float[2] {1, 2}", "float[2]", np.array([1, 2], np.float32)),
        ("value_float = 1.5", "float", np.array(1.5, np.float32)),
        ("value_floats = [1.0, 2.0]", "float[2]", np.array([1, 2], np.float32)),
        ("value_int = 3", "int64", np.array(3, np.int64)),
        ("value_ints = [3, 4]", "int64[2]", np.array([3, 4], np.int64)),
        ('value_string = "a"', "string", np.array(b"a", object)),
        ('value_strings = ["a", "b"]', "string[2]", np.array([b"a", b"b"], object)),
    ],
)
def test_every_form_of_value(attribute: str, kind: str, value: np.ndarray) -> None:
    model = parse(f"m (float[2] x) => ({kind} y) {{ c = Constant <{attribute}> () y = Identity(c) }}")
    assert apply(LiftConstants(), model) == 1
    lifted = model.graph.initializers["c"]
    assert lifted.const_value is not None
    assert lifted.dtype == lifted.const_value.dtype
    assert lifted.const_value.numpy().tolist() == value.tolist()
    assert tuple(lifted.const_value.shape.numpy()) == value.shape
    assert apply(LiftConstants(), model) == 0


def test_the_result_computes_the_same() -> None:
    model = check_rewrite(
        LiftConstants(),
        "m (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> () y = Add(x, c) }",
        "m (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Add(x, c) }",
        changes=1,
    )
    assert [node.op_type for node in model.graph] == ["Add"]


def test_a_branch_gets_an_initializer_of_its_own() -> None:
    model = check_rewrite(
        LiftConstants(),
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) { k = Constant <value_float = 2.0> () o = Mul(x, k) },
                      else_branch = e () => (float[2] o) { k = Constant <value_float = 3.0> () o = Mul(x, k) }> }""",
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) <float k = {2}> { o = Mul(x, k) },
                      else_branch = e () => (float[2] o) <float k = {3}> { o = Mul(x, k) }> }""",
        changes=2,
    )
    assert not model.graph.initializers
    assert all(list(graph.initializers) == ["k"] for graph in model.graph.subgraphs())


def test_an_output_stays_a_node() -> None:
    text = """m (bool c) => (float y, float k)
    { k = Constant <value_float = 1.0> ()
      y = If (c) <then_branch = t () => (float o) { o = Constant <value_float = 2.0> () },
                  else_branch = e () => (float o) { o = Constant <value_float = 3.0> () }> }"""
    assert apply(LiftConstants(), parse(text)) == 0


def test_functions_and_models_before_initializers_were_no_inputs_are_left_alone() -> None:
    function = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    m (float[2] x) => (float[2] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 20]> f (a) => (b) { c = Constant <value_float = 1.0> () b = Add(a, c) }"""
    old = """<ir_version: 3, opset_import: ["" : 8]>
    m (float[2] x) => (float[2] y) { c = Constant <value = float {1}> () y = Add(x, c) }"""
    assert apply(LiftConstants(), parse(function, infer=False)) == 0
    assert apply(LiftConstants(), parse(old)) == 0


def test_the_weights_are_not_copied() -> None:
    weights = ir.tensor(np.zeros(1000, np.float32))
    constant = ir.node("Constant", [], {"value": weights})
    relu = ir.node("Relu", constant.outputs)
    graph = ir.Graph([], relu.outputs, nodes=[constant, relu], opset_imports={"": 20}, name="m")
    assert apply(LiftConstants(), ir.Model(graph, ir_version=10)) == 1
    assert next(iter(graph.initializers.values())).const_value is weights
