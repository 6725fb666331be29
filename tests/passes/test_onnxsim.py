"""onnxsim as a step."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest

from infconv.errors import DependencyError, UnsupportedError
from infconv.passes import Context
from infconv.passes.onnxsim import Onnxsim
from tests.helpers import check_rewrite, check_same_outputs, parse, signature

CONSTANT_PART = """
    m (float[batch, 4] x) => (float[batch, 4] y)
    <float[4] c = {1, 2, 3, 4}>
    { e = Neg(c)
      i = Identity(x)
      s = Add(i, e)
      y = Relu(s) }
"""


def test_it_folds_and_removes_what_onnxsim_does() -> None:
    check_rewrite(
        Onnxsim(),
        CONSTANT_PART,
        "m (float[batch, 4] x) => (float[batch, 4] y) <float[4] e = {-1, -2, -3, -4}> { s = Add(x, e) y = Relu(s) }",
        changes=2,
    )


def test_a_model_that_it_leaves_alone_is_not_touched() -> None:
    model = parse("m (float[3] x) => (float[3] y) { y = Relu(x) }")
    graph = model.graph
    assert Onnxsim().run(model, Context()) == 0
    assert model.graph is graph


def test_unnamed_dimensions_of_outputs_stay_unnamed() -> None:
    model = parse("m (float[batch, 4] x) => (float[?, 4] y) { i = Identity(x) y = Relu(i) }")
    declared = signature(model)
    assert Onnxsim().run(model, Context()) > 0
    assert signature(model) == declared


def test_large_weights_that_stay_are_the_same_tensors() -> None:
    model = _model_with_weight()
    before = ir.to_proto(model)
    weight = model.graph.initializers["w"].const_value
    assert Onnxsim().run(model, Context()) > 0
    assert model.graph.initializers["w"].const_value is weight
    check_same_outputs(before, ir.to_proto(model))


def _model_with_weight() -> ir.Model:
    values = ", ".join(f"{v:.4f}" for v in np.linspace(-1, 1, 1024))
    return parse(f"""
        m (float[batch, 32] x) => (float[batch, 32] y) <float[32, 32] w = {{{values}}}>
        {{ i = Identity(x) y = MatMul(i, w) }}""")


def test_what_onnxsim_refuses_is_told_in_one_line() -> None:
    model = parse("m (float[3] x) => (float[3] y) { y = Relu(x) }")
    model.graph.node(0).attributes["axis"] = ir.AttrInt64("axis", 1)
    with pytest.raises(UnsupportedError, match="onnxsim failed"):
        Onnxsim().run(model, Context())


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(DependencyError, match="pip install 'infconv\\[peers\\]'"):
        Onnxsim().run(parse(CONSTANT_PART), Context())
