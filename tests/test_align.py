"""Inner values of two graphs are brought together by name, by structure, by their numbers."""

from __future__ import annotations

import numpy as np

from infconv.align import align, first_divergence, record
from infconv.compare import TOLERANCES
from tests.helpers import parse

A = """
    m (float[2, 4] x) => (float[2, 4] y)
    <float[4] c = {1, 2, 3, 4}>
    { a = Add(x, c)
      b = Sigmoid(a)
      d = Mul(b, a)
      y = Tanh(d) }
"""
X = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype("f4")}


def layers(other: str):
    a, b = parse(A), parse(other)
    found = align(a, b, record(a, X), record(b, X), TOLERANCES["fp32"])
    return found, first_divergence(found, b)


def test_the_same_graph_agrees_everywhere() -> None:
    found, first = layers(A)
    assert [layer.b for layer in found] == ["a", "b", "d", "y"]
    assert first is None


def test_other_names_are_found_by_structure() -> None:
    found, first = layers(A.replace("b = Sig", "q = Sig").replace("Mul(b,", "Mul(q,"))
    assert [(layer.a, layer.how) for layer in found if layer.b == "q"] == [("b", "structure")]
    assert first is None


def test_another_way_to_the_same_numbers_is_found_by_them() -> None:
    text = A.replace("d = Mul(b, a)", "r = Div(b, a) s = Mul(a, a) e = Mul(r, s)").replace("Tanh(d)", "Tanh(e)")
    found, first = layers(text)
    assert [(layer.a, layer.how) for layer in found if layer.b == "e"] == [("d", "value")]
    assert first is None


def test_the_first_divergence_is_the_culprit_not_what_follows() -> None:
    found, first = layers(A.replace("Sigmoid", "HardSigmoid"))
    assert first is not None
    assert first.b == "b"
    assert first.node == "HardSigmoid 'b'"
    assert sum(not layer.error.ok for layer in found) == 3


def test_a_value_that_no_wrong_output_needs_is_not_blamed() -> None:
    text = A.replace("b = Sigmoid(a)", "b = Sigmoid(a) z = Neg(a)").replace("Tanh(d)", "Erf(d)")
    _, first = layers(text)
    assert first is not None
    assert first.b == "y"
