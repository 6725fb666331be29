"""LayerNormalization from mean, variance, quotient, scale and bias."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_layer_norm import FuseLayerNorm
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseLayerNorm()
CONSTANTS = """
<float eps = {0.001}, float two = {2.0}, float one = {1.0}, float minus_half = {-0.5}, int64[1] last = {-1},
 int64[1] first = {0}, int64[1] third = {2}, int64[2] both = {1, 2}, float[3] w = {1.0, 2.0, 3.0},
 float[3] b = {4.0, 5.0, 6.0}, float[1, 1, 3] w3 = {1.0, 2.0, 3.0}, float[2, 1] rows = {1.0, 2.0},
 float[3] eps3 = {0.1, 0.2, 0.3}>
"""
CENTRED = "u = ReduceMean (X, last) d = Sub (X, u) "
VARIANCE = CENTRED + "q = Mul (d, d) v = ReduceMean (q, last) ve = Add (v, eps) "
PARTS = VARIANCE + "r = Sqrt (ve) n = Div (d, r) "
ONES = "<float[3] ones = {1.0, 1.0, 1.0}, float[2, 1] rows = {1.0, 2.0}>"


def model(body: str, constants: str = CONSTANTS) -> str:
    return f"m (float[N, 2, 3] X) => (float[N, 2, 3] Y) {constants} {{ {body} }}"


AFFINE = model("Y = LayerNormalization <axis = -1, epsilon = 0.001> (X, w, b)")


@pytest.mark.parametrize(
    "body",
    [
        PARTS + "m = Mul (n, w) Y = Add (m, b)",
        PARTS + "m = Mul (w3, n) Y = Add (b, m)",
        CENTRED + "q = Pow (d, two) v = ReduceMean (q, third) ve = Add (eps, v) r = Sqrt (ve) n = Div (d, r)"
        " m = Mul (n, w) Y = Add (m, b)",
        VARIANCE + "r = Sqrt (ve) i = Reciprocal (r) n = Mul (d, i) m = Mul (n, w) Y = Add (m, b)",
        VARIANCE + "r = Sqrt (ve) i = Div (one, r) n = Mul (i, d) m = Mul (n, w) Y = Add (m, b)",
        VARIANCE + "i = Pow (ve, minus_half) n = Mul (d, i) m = Mul (n, w) Y = Add (m, b)",
        # Two Sub of the same operands
        "u = ReduceMean (X, last) d = Sub (X, u) d2 = Sub (X, u) q = Mul (d2, d2) v = ReduceMean (q, last)"
        " ve = Add (v, eps) r = Sqrt (ve) n = Div (d, r) m = Mul (n, w) Y = Add (m, b)",
        # Scaled before the quotient
        VARIANCE + "r = Sqrt (ve) dw = Mul (w, d) m = Div (dw, r) Y = Add (m, b)",
        VARIANCE + "r = Sqrt (ve) i = Reciprocal (r) iw = Mul (i, w) m = Mul (d, iw) Y = Add (m, b)",
        # Keras 3: the variance as the mean square less the square of the mean
        "u = ReduceMean (X, last) d = Sub (X, u) q = Mul (X, X) qm = ReduceMean (q, last) uu = Mul (u, u)"
        " v = Sub (qm, uu) ve = Add (v, eps) r = Sqrt (ve) n = Div (d, r) m = Mul (n, w) Y = Add (m, b)",
        # tf.nn.batch_normalization: x r + (b - u r)
        VARIANCE + "s = Sqrt (ve) i = Reciprocal (s) r = Mul (i, w) xr = Mul (X, r) ur = Mul (u, r)"
        " t = Sub (b, ur) Y = Add (xr, t)",
        VARIANCE + "s = Sqrt (ve) i = Reciprocal (s) r = Mul (i, w) xr = Mul (X, r) nu = Neg (u) ur = Mul (nu, r)"
        " t = Add (ur, b) Y = Add (xr, t)",
        # the same as tf2onnx writes it, after simplify-algebra
        VARIANCE + "s = Sqrt (ve) r = Div (w, s) xr = Mul (X, r) nu = Neg (u) ur = Mul (nu, r)"
        " t = Add (ur, b) Y = Add (xr, t)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), AFFINE, 3)


@pytest.mark.parametrize(
    "body",
    [
        PARTS.replace("n = Div", "Y = Div"),
        VARIANCE + "s = Sqrt (ve) xr = Div (X, s) nu = Neg (u) ur = Div (nu, s) Y = Add (xr, ur)",
    ],
)
def test_without_scale_and_bias(body: str) -> None:
    after = model("Y = LayerNormalization <axis = -1, epsilon = 0.001> (X, ones)", ONES)
    check_rewrite(FUSE, model(body), after, 1)


def test_axes_are_attributes_before_opset_18() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]> m (float[N, 3] X) => (float[N, 3] Y)'
    check_rewrite(
        FUSE,
        f"{header} <float eps = {{0.001}}> {{ u = ReduceMean <axes = [1]> (X) d = Sub (X, u) q = Mul (d, d)"
        " v = ReduceMean <axes = [-1]> (q) ve = Add (v, eps) r = Sqrt (ve) Y = Div (d, r) }",
        f"{header} <float[3] ones = {{1.0, 1.0, 1.0}}>"
        "{ Y = LayerNormalization <axis = -1, epsilon = 0.001> (X, ones) }",
        1,
    )


def test_over_two_axes() -> None:
    body = PARTS.replace("last", "both").replace("n = Div", "Y = Div")
    after = model(
        "Y = LayerNormalization <axis = -2, epsilon = 0.001> (X, ones)",
        "<float[2, 3] ones = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0}>",
    )
    check_rewrite(FUSE, model(body), after, 1)


def test_half_precision_that_is_computed_in_float() -> None:
    # 15360, 16384, 16896: the bits of 1, 2 and 3
    check_rewrite(
        FUSE,
        "m (float16[N, 3] X) => (float16[N, 3] Y) <float eps = {0.001}, int64[1] a = {1},"
        "float16[3] w = {15360, 16384, 16896}> { x = Cast <to = 1> (X) u = ReduceMean (x, a) d = Sub (x, u)"
        " q = Mul (d, d) v = ReduceMean (q, a) ve = Add (v, eps) r = Sqrt (ve) n = Div (d, r)"
        " h = Cast <to = 10> (n) Y = Mul (h, w) }",
        "m (float16[N, 3] X) => (float16[N, 3] Y) <float16[3] w = {15360, 16384, 16896}>"
        "{ Y = LayerNormalization <axis = -1, epsilon = 0.001> (X, w) }",
        3,
        tolerance="fp16",
    )


def test_a_scale_along_other_axes_stays_behind() -> None:
    after = model("n = LayerNormalization <axis = -1, epsilon = 0.001> (X, ones) Y = Mul (n, rows)", ONES)
    check_rewrite(FUSE, model(PARTS + "Y = Mul (n, rows)"), after, 1)
    check_refusal(FUSE, after, "'rows' varies along axes that are not normalized")


def test_a_scale_and_bias_that_are_computed() -> None:
    header = "m (float[N, 3] X, float[3] w, float[3] b) => (float[N, 3] Y) <float[3] ones = {1.0, 1.0, 1.0}>"
    check_rewrite(
        FUSE,
        f"{header} {{ n = LayerNormalization <axis = -1> (X, ones) m = Mul (n, w) Y = Add (m, b) }}",
        f"{header} {{ Y = LayerNormalization <axis = -1, epsilon = 0.00001> (X, w, b) }}",
        2,
    )


def test_tf2onnx_writes_the_one_of_a_sequence_as_instance_normalization() -> None:
    constants = CONSTANTS.strip()[:-1] + ", float[2] ones = {1.0, 1.0}, float[2] zeros = {0.0, 0.0}>"
    body = "n = InstanceNormalization <epsilon = 0.001> (X, ones, zeros) m = Mul (n, w) Y = Add (m, b)"
    check_rewrite(FUSE, model(body, constants), AFFINE, 2)
    reason = "'two' does not tell the last axis from the channels"
    check_refusal(FUSE, model(body.replace("(n, w)", "(n, two)"), constants), reason)


def test_a_second_scale_and_bias_join_the_first() -> None:
    check_rewrite(
        FUSE,
        model("n = LayerNormalization (X, w, b) m = Mul (n, two) Y = Add (m, one)"),
        model(
            "Y = LayerNormalization <axis = -1, epsilon = 0.00001> (X, w2, b2)",
            "<float[3] w2 = {2.0, 4.0, 6.0}, float[3] b2 = {9.0, 11.0, 13.0}>",
        ),
        2,
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # The course's "mean + add" is no normalization.
        ("u = ReduceMean (X, last) Y = Add (X, u)", "'X' is not computed"),
        # ε beside the root instead of inside
        (CENTRED + "q = Mul (d, d) v = ReduceMean (q, last) s = Sqrt (v) r = Add (s, eps) Y = Div (d, r)", "the rule"),
        (PARTS.replace("last", "first").replace("n = Div", "Y = Div"), "axes [0] are not the last ones of 'X'"),
        (
            PARTS.replace("(q, last)", "(q, both)").replace("n = Div", "Y = Div"),
            "mean and variance are over different axes",
        ),
        (PARTS.replace("eps)", "eps3)").replace("n = Div", "Y = Div"), "'eps3' is not one number"),
    ],
)
def test_what_only_looks_like_it_stays(body: str, reason: str) -> None:
    check_refusal(FUSE, model(body), reason)


def test_double_stays() -> None:
    text = model(PARTS.replace("n = Div", "Y = Div"), "<double eps = {0.001}, int64[1] last = {-1}>")
    check_refusal(FUSE, text.replace("float[", "double["), "x is double, and the operator computes in float")


def test_an_unknown_size_stays() -> None:
    text = model(PARTS.replace("n = Div", "Y = Div"), "<float eps = {0.001}, int64[1] last = {-1}>")
    check_refusal(FUSE, text.replace("[N, 2, 3]", "[N, M]"), "the sizes of the last 1 axes of 'X' are not known")


def test_a_residual_is_no_bias() -> None:
    text = "m (float[N, 3] X, float[N, 3] Z) => (float[N, 3] Y) <float[3] w = {1.0, 2.0, 3.0}>"
    check_refusal(FUSE, text + "{ n = LayerNormalization (X, w) Y = Add (n, Z) }", "'Z' is not a constant")


def test_opset_16_has_no_layer_norm() -> None:
    text = '<ir_version: 8, opset_import: ["" : 16]> m (float[N, 3] X) => (float[N, 3] Y) <float eps = {0.001}>'
    text += "{ u = ReduceMean <axes = [1]> (X) d = Sub (X, u) q = Mul (d, d) v = ReduceMean <axes = [1]> (q)"
    text += " ve = Add (v, eps) r = Sqrt (ve) Y = Div (d, r) }"
    check_refusal(FUSE, text, "the rule needs opset 17, the model has 16")
