"""Pointwise convolutions as matrix products."""

from __future__ import annotations

import pytest

from infconv.passes.replace_conv_by_matmul import ReplaceConvByMatmul
from tests.helpers import check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

REPLACE = ReplaceConvByMatmul()


def test_sequences() -> None:
    check_rewrite(
        REPLACE,
        """g (float[N, 2, L] X) => (float[N, 1, L] Y) <float[1, 2, 1] w = {1.0, 2.0}, float[1] b = {3.0}> {
            Y = Conv (X, w, b) }""",
        """g (float[N, 2, L] X) => (float[N, 1, L] Y) <float[1, 2] w = {1.0, 2.0}, float[1, 1] b = {3.0}> {
            m = MatMul (w, X) Y = Add (m, b) }""",
        1,
    )


@pytest.mark.parametrize("shape", ["N, 4, 5, 6", "N, 4, H, 6", "N, 4, 5, W"])
def test_images(shape: str) -> None:
    text = f"g (float[{shape}] X) => (float[N, 3, h, w] Y) {{ Y = Conv (X, w, b) }}"
    model = with_weights(text.replace("h, w]", "p, q]"), w=normal(3, 4, 1, 1), b=normal(3))
    check_change(REPLACE, model, 1, ["Reshape", "MatMul", "Add", "Reshape"])


@pytest.mark.parametrize(
    ("shape", "call", "weight", "reason"),
    [
        ("N, 4, H, W", "Conv (X, w)", (3, 4, 1, 1), "more than one of the spatial dimensions"),
        ("N, 4, 5, 6", "Conv <group = 2> (X, w)", (4, 2, 1, 1), "it has groups"),
        ("N, 4, 5, 6", "Conv <strides = [2, 1]> (X, w)", (3, 4, 1, 1), "strides or padding"),
        ("N, 4, 5, 6", "Conv <pads = [0, 0, 0, 1]> (X, w)", (3, 4, 1, 1), "strides or padding"),
        ("N, 4, 5, 6", "Conv (X, w)", (3, 4, 1, 2), "larger than one element"),
    ],
)
def test_refusals(shape: str, call: str, weight: tuple[int, ...], reason: str) -> None:
    text = f"g (float[{shape}] X) => (float[a, b, c, d] Y) {{ Y = {call} }}"
    check_kept(REPLACE, with_weights(text, w=normal(*weight)), reason)
