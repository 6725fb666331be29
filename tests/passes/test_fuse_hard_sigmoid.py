"""HardSigmoid from a line between two limits."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_hard_sigmoid import FuseHardSigmoid
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseHardSigmoid()
CONSTANTS = """
<float zero = {0.0}, float one = {1.0}, float three = {3.0}, float six = {6.0}, float sixth = {0.16666667},
 float fifth = {0.2}, float half = {0.5}, float[2] several = {0.5, 0.6}>
"""


def model(body: str) -> str:
    return f"m (float[N, 2] X) => (float[N, 2] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "alpha", "beta"),
    [
        ("a = Add (X, three) c = Clip (a, zero, six) Y = Div (c, six)", 1 / 6, 0.5),
        ("a = Add (three, X) c = Clip (a, zero, six) Y = Mul (c, sixth)", 1 / 6, 0.5),
        ("m = Mul (fifth, X) a = Add (m, half) Y = Clip (a, zero, one)", 0.2, 0.5),
        ("a = Add (X, half) Y = Clip (a, zero, one)", 1.0, 0.5),
    ],
)
def test_a_line_between_two_limits(body: str, alpha: float, beta: float) -> None:
    check_rewrite(FUSE, model(body), model(f"Y = HardSigmoid <alpha = {alpha:.8f}, beta = {beta:.8f}> (X)"), 1)


def test_before_opset_11_limits_are_attributes() -> None:
    header = '<ir_version: 5, opset_import: ["" : 10]> m (float[2] X) => (float[2] Y) <float half = {0.5}>'
    check_rewrite(
        FUSE,
        f"{header} {{ a = Add (X, half) Y = Clip <min = 0.0, max = 1.0> (a) }}",
        f"{header} {{ Y = HardSigmoid <alpha = 1.0, beta = 0.5> (X) }}",
        1,
    )


def test_other_limits_stay() -> None:
    body = "a = Add (X, three) c = Clip (a, zero, three) Y = Div (c, six)"
    check_refusal(FUSE, model(body), "'three' (3) is not 6")


def test_lines_that_differ_along_an_axis_stay() -> None:
    body = "a = Add (X, several) Y = Clip (a, zero, one)"
    check_refusal(FUSE, model(body), "'several' is not one number")


def test_double_stays() -> None:
    text = "m (double[N] X) => (double[N] Y) <double zero = {0.0}, double one = {1.0}, double half = {0.5}>"
    check_refusal(FUSE, text + "{ a = Add (X, half) Y = Clip (a, zero, one) }", "x is of type DOUBLE")
