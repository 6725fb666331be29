"""LeakyRelu and PRelu from their parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_leaky_relu import FuseLeakyRelu
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseLeakyRelu()
CONSTANTS = """
<float zero = {0.0}, float a = {0.25}, float large = {2.0}, float[2] equal = {0.25, 0.25},
 float[2] slopes = {0.25, 0.5}, float[2] minus = {-0.25, -0.5}>
"""


def model(body: str) -> str:
    return f"m (float[N, 2] X) => (float[N, 2] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "Y = PRelu (X, equal)",
        "m = Mul (X, a) Y = Max (X, m)",
        "m = Mul (a, X) g = Greater (X, zero) Y = Where (g, X, m)",
        "m = Mul (a, X) g = GreaterOrEqual (X, zero) Y = Where (g, X, m)",
        "m = Mul (a, X) g = Less (X, zero) Y = Where (g, m, X)",
    ],
)
def test_one_slope(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = LeakyRelu <alpha = 0.25> (X)"), 1)


def test_keras_writes_two_halves() -> None:
    body = "p = Relu (X) n = Neg (X) r = Relu (n) m = Mul (minus, r) Y = Add (p, m)"
    check_rewrite(FUSE, model(body), model("Y = PRelu (X, slopes)"), 1)


def test_two_halves_with_one_slope() -> None:
    body = "p = Relu (X) n = Neg (X) r = Relu (n) m = Mul (r, a) Y = Sub (p, m)"
    check_rewrite(FUSE, model(body), model("Y = LeakyRelu <alpha = 0.25> (X)"), 2)


def test_different_slopes_stay() -> None:
    check_refusal(FUSE, model("Y = PRelu (X, slopes)"), "the slopes 'slopes' are not all equal")


def test_the_larger_of_x_and_twice_x_is_something_else() -> None:
    reason = "max(x, a·x) is LeakyRelu for a between 0 and 1, not for 2"
    check_refusal(FUSE, model("m = Mul (X, large) Y = Max (X, m)"), reason)


def test_slopes_that_are_computed_stay() -> None:
    text = "m (float[N] X, float[1] slope) => (float[N] Y) { Y = PRelu (X, slope) }"
    check_refusal(FUSE, text, "'slope' is not a constant")


def test_integers_stay() -> None:
    text = "m (int32[N] X) => (int32[N] Y) <int32[1] slope = {2}> { Y = PRelu (X, slope) }"
    check_refusal(FUSE, text, "x is of type INT32")
