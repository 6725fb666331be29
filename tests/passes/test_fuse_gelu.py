"""GELU from its parts: the forms that exporters write, and what only looks like it."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_gelu import FuseGelu
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseGelu()
CONSTANTS = """
<float half = {0.5}, float one = {1.0}, float two = {2.0}, float three = {3.0}, float root2 = {1.4142135},
 float inverse = {0.70710677}, float c = {0.044715}, float k = {0.7978846}, float k2 = {1.5957691}>
"""
EXACT = "m (float[N] X) => (float[N] Y) { Y = Gelu (X) }"
TANH = 'm (float[N] X) => (float[N] Y) { Y = Gelu <approximate = "tanh"> (X) }'


def model(body: str, constants: str = CONSTANTS) -> str:
    return f"m (float[N] X) => (float[N] Y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        # TorchScript: x (1 + erf) 1/2
        "d = Div (X, root2) e = Erf (d) f = Add (e, one) m = Mul (X, f) Y = Mul (m, half)",
        # tf2onnx, from Keras: (1/2 x) (erf + 1)
        "h = Mul (half, X) d = Mul (inverse, X) e = Erf (d) f = Add (one, e) Y = Mul (h, f)",
        # paddle2onnx divides by 2
        "d = Div (X, root2) e = Erf (d) f = Add (e, one) m = Mul (X, f) Y = Div (m, two)",
        # JAX: x times the normal distribution function
        "d = Div (X, root2) e = Erf (d) f = Add (one, e) c1 = Mul (half, f) Y = Mul (X, c1)",
        "d = Div (X, root2) e = Erf (d) h = Mul (half, e) c1 = Add (half, h) Y = Mul (c1, X)",
    ],
)
def test_erf_in_any_order(body: str) -> None:
    check_rewrite(FUSE, model(body), EXACT, 1)


@pytest.mark.parametrize(
    "body",
    [
        # gelu_new of transformers: k (x + c x^3)
        "p = Pow (X, three) q = Mul (c, p) s = Add (X, q) u = Mul (s, k) t = Tanh (u) f = Add (t, one)"
        " h = Mul (X, half) Y = Mul (h, f)",
        # TorchScript writes the cube as x (x (c x))
        "q1 = Mul (X, c) q2 = Mul (X, q1) q3 = Mul (X, q2) s = Add (X, q3) u = Mul (s, k) t = Tanh (u)"
        " f = Add (t, one) h = Mul (X, half) Y = Mul (h, f)",
        # gelu_fast: (k x) (1 + (c x) x)
        "q1 = Mul (X, c) q2 = Mul (q1, X) s = Add (one, q2) kx = Mul (X, k) u = Mul (kx, s) t = Tanh (u)"
        " f = Add (one, t) h = Mul (half, X) Y = Mul (h, f)",
        # TorchScript, opset 17: x^2 and x^3 share nothing
        "q1 = Mul (X, X) q2 = Mul (q1, X) q3 = Mul (q2, c) s = Add (X, q3) u = Mul (s, k) t = Tanh (u)"
        " f = Add (t, one) m = Mul (X, f) Y = Mul (m, half)",
    ],
)
def test_tanh_in_any_order(body: str) -> None:
    check_rewrite(FUSE, model(body), TANH, 1)


def test_tanh_as_a_sigmoid_of_twice_the_angle() -> None:
    body = "p = Pow (X, three) q = Mul (c, p) s = Add (X, q) u = Mul (s, k2) t = Sigmoid (u) Y = Mul (X, t)"
    check_rewrite(FUSE, model(body), TANH, 1)


def test_constants_rounded_to_half_precision() -> None:
    # The bits of 1.4142, 1 and 1/2, which the text syntax wants.
    check_rewrite(
        FUSE,
        "m (float16[N] X) => (float16[N] Y) <float16 root2 = {15784}, float16 one = {15360}, float16 half = {14336}>"
        "{ d = Div (X, root2) e = Erf (d) f = Add (e, one) m = Mul (X, f) Y = Mul (m, half) }",
        "m (float16[N] X) => (float16[N] Y) { Y = Gelu (X) }",
        1,
        tolerance="fp16",
    )


def test_two_of_them_in_a_row() -> None:
    one = "d{0} = Div (x{0}, root2) e{0} = Erf (d{0}) f{0} = Add (e{0}, one) m{0} = Mul (x{0}, f{0})"
    body = f"x0 = Relu (X) {one.format(0)} x1 = Mul (m0, half) {one.format(1)} Y = Mul (m1, half)"
    after = "m (float[N] X) => (float[N] Y) { a = Relu (X) b = Gelu (a) Y = Gelu (b) }"
    check_rewrite(FUSE, model(body), after, 2)


def test_quick_gelu_is_another_function() -> None:
    body = "u = Mul (X, a) t = Sigmoid (u) Y = Mul (X, t)"
    check_refusal(FUSE, model(body, "<float a = {1.702}>"), "'X' is not computed; the rule needs Mul")


def test_another_constant_than_the_root_of_2() -> None:
    body = "h = Mul (X, half) d = Div (X, r) e = Erf (d) f = Add (e, one) Y = Mul (h, f)"
    constants = "<float half = {0.5}, float one = {1.0}, float r = {1.41}>"
    check_refusal(FUSE, model(body, constants), "'r' (1.41) is not 1.41421")


def test_an_erf_that_is_used_elsewhere_stays() -> None:
    text = f"m (float[N] X) => (float[N] Y, float[N] Z) {CONSTANTS} {{ d = Div (X, root2) e = Erf (d)"
    text += " f = Add (e, one) m = Mul (X, f) Y = Mul (m, half) Z = Relu (e) }"
    check_refusal(FUSE, text, "inner value 'e' has 2 users")


def test_opset_19_has_no_gelu() -> None:
    body = "d = Div (X, root2) e = Erf (d) f = Add (e, one) m = Mul (X, f) Y = Mul (m, half)"
    text = '<ir_version: 8, opset_import: ["" : 17]> ' + model(body)
    check_refusal(FUSE, text, "the rule needs opset 20, the model has 17")
