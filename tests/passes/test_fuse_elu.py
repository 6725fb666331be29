"""ELU and SELU from their parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_elu import FuseElu
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseElu()
CONSTANTS = """
<float zero = {0.0}, float one = {1.0}, float a = {0.7}, float gamma = {1.050701}, float[2] several = {0.5, 0.6}>
"""


def model(body: str) -> str:
    return f"m (float[N, 2] X) => (float[N, 2] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "alpha"),
    [
        ("e = Exp (X) s = Sub (e, one) g = Greater (X, zero) Y = Where (g, X, s)", 1.0),
        ("e = Exp (X) s = Sub (e, one) n = Mul (a, s) g = Greater (X, zero) Y = Where (g, X, n)", 0.7),
        (
            "b = Min (X, zero) e = Exp (b) s = Sub (e, one) n = Mul (a, s) g = Greater (X, zero) Y = Where (g, X, n)",
            0.7,
        ),
        # JAX keeps exp from overflowing
        (
            "g1 = Greater (X, zero) w = Where (g1, zero, X) e = Exp (w) s = Sub (e, one) n = Mul (a, s)"
            " g = Greater (X, zero) Y = Where (g, X, n)",
            0.7,
        ),
    ],
)
def test_each_form(body: str, alpha: float) -> None:
    check_rewrite(FUSE, model(body), model(f"Y = Elu <alpha = {alpha}> (X)"), 1)


def test_elu_times_the_constant_of_selu() -> None:
    body = "e = Elu <alpha = 1.6732632> (X) Y = Mul (e, gamma)"
    check_rewrite(FUSE, model(body), model("Y = Selu (X)"), 1)


def test_elu_times_another_constant_stays() -> None:
    check_refusal(FUSE, model("e = Elu <alpha = 1.6732632> (X) Y = Mul (e, a)"), "'a' (0.7) is not 1.0507")


def test_several_slopes_stay() -> None:
    body = "e = Exp (X) s = Sub (e, one) n = Mul (several, s) g = Greater (X, zero) Y = Where (g, X, n)"
    check_refusal(FUSE, model(body), "'several' is not one number")
