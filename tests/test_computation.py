"""The digest of what a graph computes: the same whatever things are called, another one for another computation."""

from __future__ import annotations

import pytest

from infconv.computation import Digester
from tests.helpers import parse

BASE = "m (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { a = Add(x, c) y = Relu(a) }"
SAME = {
    "other names": "m (float[2] x) => (float[2] y) <float[2] k = {1, 2}> { b = Add(x, k) y = Relu(b) }",
    "a Constant node": "m (float[2] x) => (float[2] y) { c = Constant <value_floats = [1.0, 2.0]> () a = Add(x, c) "
    "y = Relu(a) }",
    "an Identity": "m (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { i = Identity(x) a = Add(i, c) y = Relu(a) }",
    "a dead node": "m (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { d = Neg(x) a = Add(x, c) y = Relu(a) }",
}
OTHER = {
    "operator": "m (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { a = Sub(x, c) y = Relu(a) }",
    "constant": "m (float[2] x) => (float[2] y) <float[2] c = {2, 1}> { a = Add(x, c) y = Relu(a) }",
    "operands": "m (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { a = Add(c, x) y = Relu(a) }",
    "attribute": "m (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.5> (x) }",
}
BRANCH = """
    m (bool c, float[2] x) => (float[2] y)
    { h = Neg(x)
      y = If (c) <then_branch = t () => (float[2] o) { o = %s(h) }, else_branch = e () => (float[2] o) { o = Abs(x) }> }
"""


def digest(text: str) -> bytes:
    return Digester().digest(parse(text, infer=False))


@pytest.mark.parametrize("case", SAME)
def test_what_does_not_matter(case: str) -> None:
    assert digest(SAME[case]) == digest(BASE)


@pytest.mark.parametrize("case", OTHER)
def test_what_matters(case: str) -> None:
    assert digest(OTHER[case]) != digest(BASE)
    assert digest(OTHER[case]) != digest(OTHER[case].replace("0.5", "0.25").replace("Relu(a)", "Exp(a)"))


def test_subgraphs_count() -> None:
    assert digest(BRANCH % "Relu") == digest(BRANCH % "Relu")
    assert digest(BRANCH % "Relu") != digest(BRANCH % "Exp")
    assert digest(BRANCH % "Relu") != digest((BRANCH % "Relu").replace("Relu(h)", "Relu(x)"))


def test_a_shared_tensor_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, digester = parse(BASE, infer=False), Digester()
    first = digester.digest(model)
    monkeypatch.setattr("infconv.computation.tensor_bytes", lambda tensor: pytest.fail("it was read again"))
    assert digester.digest(model) == first
