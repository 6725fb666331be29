"""LayerNormalization taken apart."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_layer_norm import FuseLayerNorm
from infconv.passes.lower_layer_norm import LowerLayerNorm
from tests.helpers import apply, check_refusal, check_rewrite, parse

LOWER = LowerLayerNorm()
CONSTANTS = """
<float eps = {0.001}, int64[1] last = {-1}, int64[2] both = {-2, -1}, float[3] s = {1.0, 2.0, 3.0},
 float[3] b = {4.0, 5.0, 6.0}>
"""
PARTS = "u = ReduceMean <keepdims = 1> (X, {0}) d = Sub (X, u) q = Mul (d, d) v = ReduceMean <keepdims = 1> (q, {0})"
PARTS += " ve = Add (v, eps) r = Sqrt (ve) n = Div (d, r) "


def model(body: str) -> str:
    return f"m (float[N, 2, 3] X) => (float[N, 2, 3] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(X, s, b)", PARTS.format("last") + "m = Mul (n, s) Y = Add (m, b)"),
        ("(X, s)", PARTS.format("last") + "Y = Mul (n, s)"),
    ],
)
def test_with_and_without_bias(before: str, after: str) -> None:
    check_rewrite(LOWER, model(f"Y = LayerNormalization <epsilon = 0.001> {before}"), model(after), 1)


def test_from_an_axis_that_is_counted_from_the_front() -> None:
    text = model("Y = LayerNormalization <epsilon = 0.001, axis = 1> (X, s)")
    check_rewrite(LOWER, text, model(PARTS.format("both") + "Y = Mul (n, s)"), 1)


def test_half_precision_is_computed_in_float() -> None:
    # 15360, 16384, 16896: the bits of 1, 2 and 3
    header = '<ir_version: 8, opset_import: ["" : 17]> m (float16[N, 3] X) => (float16[N, 3] Y)'
    header += "<float16[3] s = {15360, 16384, 16896}, float eps = {0.001}>"
    check_rewrite(
        LOWER,
        f"{header} {{ Y = LayerNormalization <epsilon = 0.001> (X, s) }}",
        f"{header} {{ x = Cast <to = 1> (X) u = ReduceMean <axes = [-1], keepdims = 1> (x) d = Sub (x, u)"
        " q = Mul (d, d) v = ReduceMean <axes = [-1], keepdims = 1> (q) ve = Add (v, eps) r = Sqrt (ve)"
        " n = Div (d, r) h = Cast <to = 10> (n) Y = Mul (h, s) }",
        1,
        tolerance="fp16",
    )


def test_fuse_layer_norm_undoes_it() -> None:
    lowered = parse(model("Y = LayerNormalization <epsilon = 0.001> (X, s, b)"))
    assert apply(LOWER, lowered) == 1
    assert apply(FuseLayerNorm(), lowered) == 3
    assert [node.op_type for node in lowered.graph] == ["LayerNormalization"]


def test_a_mean_that_is_used_stays() -> None:
    text = "m (float[N, 3] X, float[3] s) => (float[N, 3] Y, float[N, 1] u) { Y, u = LayerNormalization (X, s) }"
    check_refusal(LOWER, text, "'u'")
