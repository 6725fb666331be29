"""Tanh from its parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_tanh import FuseTanh
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseTanh()


def model(body: str) -> str:
    constants = "<float one = {1.0}, float minus = {-1.0}, float two = {2.0}>"
    return f"m (float[N] X) => (float[N] Y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "u = Exp (X) n = Neg (X) d = Exp (n) s = Sub (u, d) a = Add (u, d) Y = Div (s, a)",
        "x2 = Mul (X, two) e = Exp (x2) s = Sub (e, one) a = Add (e, one) Y = Div (s, a)",
        "x2 = Mul (two, X) g = Sigmoid (x2) m = Mul (g, two) Y = Sub (m, one)",
        "x2 = Mul (two, X) g = Sigmoid (x2) m = Mul (g, two) Y = Add (minus, m)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = Tanh (X)"), 1)


def test_a_sigmoid_of_x_alone_stays() -> None:
    check_refusal(FUSE, model("g = Sigmoid (X) m = Mul (g, two) Y = Sub (m, one)"), "'X' is not computed")


def test_the_hyperbolic_sine_stays() -> None:
    body = "u = Exp (X) n = Neg (X) d = Exp (n) s = Sub (u, d) Y = Div (s, two)"
    check_refusal(FUSE, model(body), "'two' (2) is not computed")
