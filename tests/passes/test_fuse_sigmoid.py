"""Sigmoid from its parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_sigmoid import FuseSigmoid
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseSigmoid()


def model(body: str) -> str:
    constants = "<float one = {1.0}, float minus = {-1.0}, float half = {0.5}, float two = {2.0}>"
    return f"m (float[N] X, float[N] Z) => (float[N] Y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "n = Neg (X) e = Exp (n) a = Add (e, one) Y = Reciprocal (a)",
        "n = Neg (X) e = Exp (n) a = Add (one, e) Y = Div (one, a)",
        "n = Mul (X, minus) e = Exp (n) a = Add (e, one) Y = Div (one, a)",
        "e = Exp (X) a = Add (e, one) Y = Div (e, a)",
        "h = Mul (X, half) t = Tanh (h) a = Add (t, one) Y = Mul (a, half)",
        "h = Div (X, two) t = Tanh (h) m = Mul (t, half) Y = Add (half, m)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = Sigmoid (X)"), 1)


def test_a_quotient_of_something_else_is_a_product() -> None:
    body = "n = Neg (X) e = Exp (n) a = Add (e, one) Y = Div (Z, a)"
    check_rewrite(FUSE, model(body), model("s = Sigmoid (X) Y = Mul (Z, s)"), 1)


def test_exp_of_x_instead_of_minus_x_stays() -> None:
    check_refusal(FUSE, model("e = Exp (X) a = Add (e, one) Y = Reciprocal (a)"), "'X' is not computed")


def test_another_number_than_1_stays() -> None:
    check_refusal(FUSE, model("n = Neg (X) e = Exp (n) a = Add (e, two) Y = Div (one, a)"), "'two' (2) is not 1")
