"""Convolutions of one place as Gemm."""

from __future__ import annotations

import pytest

from infconv.passes.replace_conv_after_pool import ReplaceConvAfterPool
from tests.helpers import check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

REPLACE = ReplaceConvAfterPool()


def test_after_a_global_pool() -> None:
    check_rewrite(
        REPLACE,
        """g (float[N, 2, H, W] X) => (float[N, 1, 1, 1] Y) <float[1, 2, 1, 1] w = {1.0, 2.0}, float[1] b = {3.0}> {
            p = GlobalAveragePool (X) Y = Conv (p, w, b) }""",
        """g (float[N, 2, H, W] X) => (float[N, 1, 1, 1] Y) <float[1, 2] w = {1.0, 2.0}, float[1] b = {3.0},
            int64[2] rows = {0, -1}, int64[4] places = {0, -1, 1, 1}> {
            p = GlobalAveragePool (X) r = Reshape (p, rows)
            g = Gemm <transB = 1> (r, w, b) Y = Reshape (g, places) }""",
        1,
    )


def test_strides_are_no_matter_and_a_bias_is_added_where_gemm_needs_one() -> None:
    text = """<ir_version: 8, opset_import: ["" : 9]> g (float[N, 4, 1] X) => (float[N, 3, 1] Y) {
        Y = Conv <strides = [2]> (X, w) }"""
    check_change(REPLACE, with_weights(text, w=normal(3, 4, 1)), 1, ["Reshape", "Gemm", "Reshape"])


@pytest.mark.parametrize(
    ("shape", "call", "weight", "reason"),
    [
        ("N, 4, 1, W", "Conv (X, w)", (3, 4, 1, 1), "not known to have one place"),
        ("N, 4, 1, 1", "Conv <group = 2> (X, w)", (4, 2, 1, 1), "it has groups"),
        ("N, 4, 1, 1", "Conv <pads = [1, 0, 1, 0]> (X, w)", (3, 4, 1, 1), "padded"),
    ],
)
def test_refusals(shape: str, call: str, weight: tuple[int, ...], reason: str) -> None:
    text = f"g (float[{shape}] X) => (float[a, b, c, d] Y) {{ Y = {call} }}"
    check_kept(REPLACE, with_weights(text, w=normal(*weight)), reason)
