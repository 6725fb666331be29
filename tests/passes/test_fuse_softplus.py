"""Softplus from its parts."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.fuse_softplus import FuseSoftplus
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseSoftplus()
LARGE = {"X": np.linspace(-40, 40, 81, dtype=np.float32)}


def model(body: str) -> str:
    constants = "<float one = {1.0}, float two = {2.0}, float ten = {10.0}, float twenty = {20.0}>"
    return f"m (float[81] X) => (float[81] Y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp (X) a = Add (e, one) Y = Log (a)",
        # PyTorch, both exporters
        "s = Softplus (X) g = Greater (X, twenty) Y = Where (g, X, s)",
        "e = Exp (X) a = Add (one, e) s = Log (a) g = Greater (X, twenty) Y = Where (g, X, s)",
        # JAX and Keras: logaddexp(x, 0)
        "r = Relu (X) b = Abs (X) n = Neg (b) e = Exp (n) a = Add (e, one) l = Log (a) Y = Add (r, l)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = Softplus (X)"), 1, inputs=LARGE)


def test_a_threshold_where_it_can_be_seen_stays() -> None:
    body = "s = Softplus (X) g = Greater (X, ten) Y = Where (g, X, s)"
    check_refusal(FUSE, model(body), "Softplus(x) differs from x at the threshold 10")


def test_another_number_than_1_stays() -> None:
    check_refusal(FUSE, model("e = Exp (X) a = Add (e, two) Y = Log (a)"), "'two' (2) is not 1")


def test_double_stays() -> None:
    text = "m (double[N] X) => (double[N] Y) <double one = {1.0}> { e = Exp (X) a = Add (e, one) Y = Log (a) }"
    check_refusal(FUSE, text, "x is of type DOUBLE")
