"""RMSNormalization from mean square, quotient and scale."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_rms_norm import FuseRmsNorm
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseRmsNorm()
HEADER = '<ir_version: 11, opset_import: ["" : 23]> '
CONSTANTS = """
<float eps = {0.001}, float two = {2.0}, float one = {1.0}, float minus_half = {-0.5}, int64[1] last = {-1},
 int64[1] first = {0}, float[3] w = {1.0, 2.0, 3.0}, float[2, 1] rows = {1.0, 2.0}>
"""
MEAN = "q = Pow (X, two) v = ReduceMean (q, last) ve = Add (v, eps) "


def model(body: str, header: str = HEADER) -> str:
    return f"{header}m (float[N, 2, 3] X) => (float[N, 2, 3] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        MEAN + "r = Sqrt (ve) i = Reciprocal (r) n = Mul (X, i) Y = Mul (w, n)",
        MEAN + "r = Sqrt (ve) i = Div (one, r) n = Mul (X, i) Y = Mul (n, w)",
        MEAN + "i = Pow (ve, minus_half) n = Mul (i, X) Y = Mul (n, w)",
        MEAN + "r = Sqrt (ve) n = Div (X, r) Y = Mul (n, w)",
        "q = Mul (X, X) v = ReduceMean (q, last) ve = Add (eps, v) r = Sqrt (ve) n = Div (X, r) Y = Mul (n, w)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = RMSNormalization <axis = -1, epsilon = 0.001> (X, w)"), 2)


def test_llama_in_half_precision() -> None:
    # 15360, 16384, 16896: the bits of 1, 2 and 3
    check_rewrite(
        FUSE,
        HEADER + "m (float16[N, 3] X) => (float16[N, 3] Y) <float eps = {0.001}, float two = {2.0}, int64[1] a = {-1},"
        "float16[3] w = {15360, 16384, 16896}> { x = Cast <to = 1> (X) q = Pow (x, two) v = ReduceMean (q, a)"
        " ve = Add (v, eps) r = Sqrt (ve) i = Reciprocal (r) n = Mul (x, i) h = Cast <to = 10> (n) Y = Mul (w, h) }",
        HEADER + "m (float16[N, 3] X) => (float16[N, 3] Y) <float16[3] w = {15360, 16384, 16896}>"
        "{ Y = RMSNormalization <axis = -1, epsilon = 0.001> (X, w) }",
        3,
        tolerance="fp16",
    )


def test_a_scale_along_other_axes_stays_behind() -> None:
    text = HEADER + "m (float[N, 2, 3] X) => (float[N, 2, 3] Y) <float[3] w = {1.0, 2.0, 3.0},"
    text += "float[2, 1] rows = {1.0, 2.0}> { n = RMSNormalization (X, w) Y = Mul (n, rows) }"
    check_refusal(FUSE, text, "'rows' varies along axes that are not normalized")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (MEAN.replace("last", "first") + "r = Sqrt (ve) Y = Div (X, r)", "axes [0] are not the last ones of 'X'"),
        ("q = Pow (X, one) v = ReduceMean (q, last) ve = Add (v, eps) r = Sqrt (ve) Y = Div (X, r)", "is not 2"),
        ("q = Pow (X, two) v = ReduceMean (q, last) r = Sqrt (v) s = Add (r, eps) Y = Div (X, s)", "the rule needs"),
    ],
)
def test_what_only_looks_like_it_stays(body: str, reason: str) -> None:
    check_refusal(FUSE, model(body), reason)


def test_opset_22_has_no_rms_norm() -> None:
    text = model(MEAN + "r = Sqrt (ve) Y = Div (X, r)", '<ir_version: 10, opset_import: ["" : 22]> ')
    check_refusal(FUSE, text, "the rule needs opset 23, the model has 22")
