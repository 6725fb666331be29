"""Mish from its parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_mish import FuseMish
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseMish()


def model(body: str) -> str:
    return f"m (float[N] X, float[N] Z) => (float[N] Y) <float one = {{1.0}}> {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "s = Softplus (X) t = Tanh (s) Y = Mul (X, t)",
        "e = Exp (X) a = Add (e, one) s = Log (a) t = Tanh (s) Y = Mul (t, X)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = Mish (X)"), 1)


def test_another_factor_stays() -> None:
    check_refusal(FUSE, model("s = Softplus (X) t = Tanh (s) Y = Mul (Z, t)"), "'X' is not 'Z'")


def test_opset_17_has_no_mish() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> ' + model("s = Softplus (X) t = Tanh (s) Y = Mul (X, t)")
    check_refusal(FUSE, text, "the rule needs opset 18, the model has 17")
