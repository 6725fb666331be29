"""Gemm as MatMul and Add."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_matmul_add import FuseMatmulAdd
from infconv.passes.lower_gemm import LowerGemm
from tests.helpers import apply, check_refusal, check_rewrite, describe, parse
from tests.passes.weighted import check_change, normal, with_weights

LOWER = LowerGemm()


def test_constants_take_the_factors_and_the_transpose() -> None:
    check_rewrite(
        LOWER,
        """g (float[M, 2] X) => (float[M, 1] Y) <float[1, 2] w = {1.0, 2.0}, float[1] c = {3.0}> {
            Y = Gemm <transB = 1, beta = 2.0> (X, w, c) }""",
        """g (float[M, 2] X) => (float[M, 1] Y) <float[2, 1] w = {1.0, 2.0}, float[1] c = {6.0}> {
            m = MatMul (X, w) Y = Add (m, c) }""",
        1,
    )


def test_everything_else_is_an_operator() -> None:
    check_rewrite(
        LOWER,
        """g (float[3, M] A, float[N, 3] B, float[N] C) => (float[M, N] Y) {
            Y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (A, B, C) }""",
        """g (float[3, M] A, float[N, 3] B, float[N] C) => (float[M, N] Y) <float half = {0.5}, float two = {2.0}> {
            a = Transpose <perm = [1, 0]> (A) b = Transpose <perm = [1, 0]> (B) m = MatMul (a, b)
            s = Mul (m, half) t = Mul (C, two) Y = Add (s, t) }""",
        1,
    )


@pytest.mark.parametrize(("call", "ops"), [("Gemm (X, w)", ["MatMul"]), ("Gemm (X, w, c)", ["MatMul", "Add"])])
def test_the_bias_is_optional(call: str, ops: list[str]) -> None:
    text = f"g (float[M, 4] X) => (float[M, 3] Y) {{ Y = {call} }}"
    check_change(LOWER, with_weights(text, w=normal(4, 3), c=normal(1, 3)), 1, ops)


def test_it_is_the_inverse_of_the_fusion() -> None:
    head = "g (float[M, 3] A, float[3, 4] B, float[4] C) => (float[M, 4] Y) "
    model = parse(head + "{ Y = Gemm (A, B, C) }")
    before = describe(model)
    assert apply(LOWER, model) == 1
    inferred = parse(
        "g (float[M, 3] A, float[3, 4] B, float[4] C) => (float[M, 4] Y) { m = MatMul (A, B) Y = Add (m, C) }"
    )
    assert describe(model) == describe(inferred)
    assert apply(FuseMatmulAdd(), model) == 1
    assert describe(model) == before


def test_integers_are_refused() -> None:
    text = "g (int32[M, 3] A, int32[3, 4] B) => (int32[M, 4] Y) { Y = Gemm (A, B) }"
    check_refusal(LOWER, text, "not known to be float")
