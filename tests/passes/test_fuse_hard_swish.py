"""HardSwish from its parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_hard_swish import FuseHardSwish
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseHardSwish()
CONSTANTS = "<float zero = {0.0}, float three = {3.0}, float six = {6.0}, float sixth = {0.16666667}>"
AFTER = "m (float[N] X) => (float[N] Y) { Y = HardSwish (X) }"


def model(body: str) -> str:
    return f"m (float[N] X) => (float[N] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "a = Add (X, three) c = Clip (a, zero, six) m = Mul (X, c) Y = Div (m, six)",
        "a = Add (X, three) c = Clip (a, zero, six) d = Div (c, six) Y = Mul (d, X)",
        "a = Add (three, X) c = Clip (a, zero, six) d = Mul (c, sixth) Y = Mul (X, d)",
        "a = Add (X, three) c = Clip (a, zero, six) d = Mul (X, sixth) Y = Mul (d, c)",
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (X) Y = Mul (X, h)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), AFTER, 1)


def test_another_slope_stays() -> None:
    check_refusal(FUSE, model("h = HardSigmoid (X) Y = Mul (X, h)"), "alpha=0.2")


def test_another_factor_stays() -> None:
    text = "m (float[N] X, float[N] Z) => (float[N] Y)"
    text += "{ h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (X) Y = Mul (Z, h) }"
    check_refusal(FUSE, text, "'X' is not 'Z', which the rule has there")


def test_opset_13_has_no_hard_swish() -> None:
    text = '<ir_version: 7, opset_import: ["" : 13]> '
    text += model("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (X) Y = Mul (X, h)")
    check_refusal(FUSE, text, "the rule needs opset 14, the model has 13")
