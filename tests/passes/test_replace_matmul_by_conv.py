"""Matrix products as pointwise convolutions."""

from __future__ import annotations

import pytest

from infconv.passes.replace_matmul_by_conv import ReplaceMatmulByConv
from tests.helpers import check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

REPLACE = ReplaceMatmulByConv()


def test_sequences() -> None:
    check_rewrite(
        REPLACE,
        "g (float[N, L, 2] X) => (float[N, L, 1] Y) <float[2, 1] w = {1.0, 2.0}> { Y = MatMul (X, w) }",
        """g (float[N, L, 2] X) => (float[N, L, 1] Y) <float[1, 2, 1] w = {1.0, 2.0}> {
            t = Transpose <perm = [0, 2, 1]> (X) c = Conv (t, w) Y = Transpose <perm = [0, 2, 1]> (c) }""",
        1,
    )


def test_images() -> None:
    text = "g (float[N, H, W, 4] X) => (float[N, H, W, 3] Y) { Y = MatMul (X, w) }"
    check_change(REPLACE, with_weights(text, w=normal(4, 3)), 1, ["Transpose", "Conv", "Transpose"])


@pytest.mark.parametrize(("x", "y", "weight"), [("N, 4", "N, 3", (4, 3)), ("2, N, 4", "2, N, 3", (2, 4, 3))])
def test_refusals(x: str, y: str, weight: tuple[int, ...]) -> None:
    text = f"g (float[{x}] X) => (float[{y}] Y) {{ Y = MatMul (X, w) }}"
    check_kept(REPLACE, with_weights(text, w=normal(*weight)), "not known to have 3 to 5 dimensions")
