"""A number pushed through moves and products into the weight that it scales in the end."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.push_scale_into_weights import PushScaleIntoWeights
from tests.helpers import check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

PUSH = PushScaleIntoWeights()


def test_a_number_passes_transpose() -> None:
    check_rewrite(
        PUSH,
        """g (float[N, 1] X) => (float[2, N] Y) <float[1, 2] W = {1.0, 2.0}, float half = {0.5}> {
            m = MatMul (X, W) t = Transpose (m) Y = Mul (t, half) }""",
        """g (float[N, 1] X) => (float[2, N] Y) <float[1, 2] W = {0.5, 1.0}> {
            m = MatMul (X, W) Y = Transpose (m) }""",
        1,
    )


def test_the_scales_of_queries_and_keys_as_torch_exports_them() -> None:
    # scaled_dot_product_attention scales both by the root of 1 / sqrt(size), after they are split into heads.
    text = """g (float[N, T, 8] X) => (float[N, 2, T, T] Y) <int64[4] heads = {0, 0, 2, 4}, float c = {0.7071}> {
        m = MatMul (X, wq) mb = Add (m, b) q = Reshape (mb, heads) qt = Transpose <perm = [0, 2, 1, 3]> (q)
        k = MatMul (X, wk) kh = Reshape (k, heads) kt = Transpose <perm = [0, 2, 3, 1]> (kh)
        qs = Mul (qt, c) ks = Mul (c, kt) Y = MatMul (qs, ks) }"""
    model = with_weights(text, wq=normal(8, 8), wk=normal(8, 8, seed=1), b=normal(8))
    ops = ["MatMul", "Add", "Reshape", "Transpose", "MatMul", "Reshape", "Transpose", "MatMul"]
    check_change(PUSH, model, 2, sorted(ops), ordered=False)


def test_the_scale_of_scores_goes_into_one_of_the_factors() -> None:
    text = """g (float[N, T, 8] X, float[N, 8, T] K) => (float[N, T, T] Y) <float root = {2.0}> {
        q = MatMul (X, w) s = MatMul (q, K) Y = Div (s, root) }"""
    model = with_weights(text, w=normal(8, 8))
    check_change(PUSH, model, 1, ["MatMul", "MatMul"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("m = MatMul (X, w) r = Relu (m) Y = Mul (r, c)", "no input of Mul 'Y' comes from Add|Conv"),
        ("t = Transpose <perm = [0, 1]> (X) Y = Mul (t, c)", "does not come from a linear operator"),
        ("m = MatMul (X, w) t = Identity (m) Y = Mul (t, v)", "'v' is not one number"),
        ("m = MatMul (X, w) t = Identity (m) s = Mul (t, c) Y = Add (s, m)", "does not come from a linear operator"),
    ],
)
def test_refusals(body: str, reason: str) -> None:
    text = f"g (float[N, 4] X) => (float[N, 4] Y) {{ {body} }}"
    check_kept(PUSH, with_weights(text, w=normal(4, 4), v=normal(4), c=np.array(2.0)), reason)


def test_a_large_weight_that_is_shared_is_refused() -> None:
    text = """g (float[N, 80] X) => (float[80, N] Y, float[N, 80] Z) {
        m = MatMul (X, w) t = Transpose (m) Y = Mul (t, c) Z = MatMul (X, w) }"""
    check_kept(PUSH, with_weights(text, w=normal(80, 80), c=np.array(2.0)), "the weight 'w' is used 2 times")
