"""Swish from its parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_swish import FuseSwish
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseSwish()
HEADER = '<ir_version: 12, opset_import: ["" : 24]> '


def model(body: str) -> str:
    return f"m (float[N] X) => (float[N] Y) <float a = {{1.702}}, float[1, 1] wide = {{2.0}}> {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("s = Sigmoid (X) Y = Mul (s, X)", "Y = Swish (X)"),
        ("m = Mul (X, a) s = Sigmoid (m) Y = Mul (X, s)", "Y = Swish <alpha = 1.702> (X)"),
    ],
)
def test_each_form(body: str, after: str) -> None:
    check_rewrite(FUSE, HEADER + model(body), HEADER + model(after), 1)


def test_a_factor_that_adds_an_axis_stays() -> None:
    text = "m (float[N] X) => (float[1, N] Y) <float[1, 1] wide = {2.0}>"
    text += "{ m = Mul (X, wide) s = Sigmoid (m) Y = Mul (X, s) }"
    check_refusal(FUSE, HEADER + text, "'wide' is not one number")


def test_opset_20_has_no_swish() -> None:
    check_refusal(FUSE, model("s = Sigmoid (X) Y = Mul (s, X)"), "the rule needs opset 24, the model has 20")
