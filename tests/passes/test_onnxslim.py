"""OnnxSlim as a step."""

from __future__ import annotations

import sys

import pytest

from infconv.errors import DependencyError, UnsupportedError
from infconv.passes import Context
from infconv.passes.onnxslim import Onnxslim
from tests.helpers import check_rewrite, parse

CONSTANT_PART = """
    m (float[batch, 4] x) => (float[batch, 4] y)
    <float[4] c = {1, 2, 3, 4}>
    { e = Neg(c)
      i = Identity(x)
      s = Add(i, e)
      y = Relu(s) }
"""


def test_it_folds_and_removes_what_onnxslim_does() -> None:
    check_rewrite(
        Onnxslim(),
        CONSTANT_PART,
        "m (float[batch, 4] x) => (float[batch, 4] y) <float[4] e = {-1, -2, -3, -4}> { s = Add(x, e) y = Relu(s) }",
        changes=2,
    )


def test_a_model_that_it_leaves_alone_is_not_touched() -> None:
    model = parse("m (float[3] x) => (float[3] y) { y = Relu(x) }")
    graph = model.graph
    assert Onnxslim().run(model, Context()) == 0
    assert model.graph is graph


def test_what_onnxslim_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such operator\nand more")

    monkeypatch.setattr("onnxslim.slim", refuse)
    with pytest.raises(UnsupportedError, match="OnnxSlim failed: no such operator\\n"):
        Onnxslim().run(parse(CONSTANT_PART), Context())


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(DependencyError, match="pip install 'infconv\\[peers\\]'"):
        Onnxslim().run(parse(CONSTANT_PART), Context())
