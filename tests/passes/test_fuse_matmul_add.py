"""MatMul, Add and Transpose of matrices as Gemm."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_matmul_add import FuseMatmulAdd
from tests.helpers import check_refusal, check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

FUSE = FuseMatmulAdd()


@pytest.mark.parametrize("bias", ["float", "float[1]", "float[4]", "float[1, 4]", "float[M, 1]", "float[M, 4]"])
@pytest.mark.parametrize("operands", ["m, C", "C, m"])
def test_matmul_and_add_are_gemm(bias: str, operands: str) -> None:
    check_rewrite(
        FUSE,
        f"g (float[M, 3] A, float[3, 4] B, {bias} C) => (float[M, 4] Y) {{ m = MatMul (A, B) Y = Add ({operands}) }}",
        f"g (float[M, 3] A, float[3, 4] B, {bias} C) => (float[M, 4] Y) {{ Y = Gemm (A, B, C) }}",
        1,
    )


def test_gemm_without_a_bias_takes_one() -> None:
    check_rewrite(
        FUSE,
        """g (float[3, M] A, float[4, 3] B, float[M, 4] C) => (float[M, 4] Y) {
            m = Gemm <alpha = 2.0, beta = 3.0, transA = 1, transB = 1> (A, B) Y = Add (m, C) }""",
        """g (float[3, M] A, float[4, 3] B, float[M, 4] C) => (float[M, 4] Y) {
            Y = Gemm <alpha = 2.0, transA = 1, transB = 1> (A, B, C) }""",
        1,
    )


def test_transposed_operands_are_flags() -> None:
    check_rewrite(
        FUSE,
        """g (float[3, M] A, float[4, 3] B, float[4] C) => (float[M, 4] Y) {
            a = Transpose <perm = [1, 0]> (A) b = Transpose (B) m = MatMul (a, b) Y = Add (m, C) }""",
        """g (float[3, M] A, float[4, 3] B, float[4] C) => (float[M, 4] Y) {
            Y = Gemm <transA = 1, transB = 1> (A, B, C) }""",
        2,
    )


def test_a_flag_that_was_set_is_unset() -> None:
    check_rewrite(
        FUSE,
        """g (float[M, 3] A, float[3, 4] B) => (float[M, 4] Y) {
            a = Transpose (A) Y = Gemm <transA = 1, alpha = 2.0> (a, B) }""",
        "g (float[M, 3] A, float[3, 4] B) => (float[M, 4] Y) { Y = Gemm <alpha = 2.0> (A, B) }",
        1,
    )


def test_matmul_of_a_transposed_matrix_is_gemm() -> None:
    text = "g (float[3, M] A) => (float[M, 4] Y) { a = Transpose (A) Y = MatMul (a, w) }"
    check_change(FUSE, with_weights(text, w=normal(3, 4)), 1, ["Gemm"])
    old = '<ir_version: 8, opset_import: ["" : 10]> ' + text
    check_kept(FUSE, with_weights(old, w=normal(3, 4)), "the rule needs opset 11")


def test_more_than_two_dimensions_are_refused() -> None:
    text = "g (float[N, T, 3] A, float[3, 4] B, float[4] C) => (float[N, T, 4] Y) { m = MatMul (A, B) Y = Add (m, C) }"
    check_refusal(FUSE, text, "'A' is not known to be a matrix")


def test_an_unknown_rank_is_refused() -> None:
    text = """g (float[M, 3] X, float[3, 4] B, float[4] C) => (float[M, 4] Y) {
        A = Relu (X) m = MatMul (A, B) Y = Add (m, C) }"""
    check_refusal(FUSE, text, "'A' is not known to be a matrix", infer=False)


@pytest.mark.parametrize("bias", ["float[N, M, 4]", "float[1, 1, 4]", "float[K, 4]", "float[1, N]"])
def test_a_bias_that_may_broadcast_the_product_is_refused(bias: str) -> None:
    result = "float[a, b, c]" if bias.count(",") > 1 else "float[a, b]"
    text = f"g (float[M, 3] A, float[3, 4] B, {bias} C) => ({result} Y) {{ m = MatMul (A, B) Y = Add (m, C) }}"
    check_refusal(FUSE, text, "'C' is not known to broadcast")


def test_integers_are_refused() -> None:
    # Gemm has int32, but hardly any runtime does.
    text = "g (int32[M, 3] A, int32[3, 4] B, int32[4] C) => (int32[M, 4] Y) { m = MatMul (A, B) Y = Add (m, C) }"
    check_refusal(FUSE, text, "not known to be float")


def test_a_product_that_others_use_is_refused() -> None:
    text = """g (float[M, 3] A, float[3, 4] B, float[4] C) => (float[M, 4] Y, float[M, 4] Z) {
        m = MatMul (A, B) Y = Add (m, C) Z = Relu (m) }"""
    check_refusal(FUSE, text, "inner value 'm' has 2 users")
