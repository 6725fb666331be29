"""BatchNormalization as Mul and Add."""

from __future__ import annotations

from infconv.passes.lower_batch_norm import LowerBatchNorm
from tests.helpers import check_refusal, check_rewrite

LOWER = LowerBatchNorm()
NORM = "<float[2] g = {2.0, -1.0}, float[2] beta = {0.5, 0.25}, float[2] mean = {1.0, 3.0}, float[2] var = {4.0, 0.25}>"
CALL = "BatchNormalization <epsilon = 0.0> (X, g, beta, mean, var)"


def test_images() -> None:
    check_rewrite(
        LOWER,
        f"g (float[N, 2, H, W] X) => (float[N, 2, H, W] Y) {NORM} {{ Y = {CALL} }}",
        """g (float[N, 2, H, W] X) => (float[N, 2, H, W] Y)
            <float[2, 1, 1] s = {1.0, -2.0}, float[2, 1, 1] t = {-0.5, 6.25}> { m = Mul (X, s) Y = Add (m, t) }""",
        1,
    )


def test_rows() -> None:
    check_rewrite(
        LOWER,
        f"g (float[N, 2] X) => (float[N, 2] Y) {NORM} {{ Y = {CALL} }}",
        """g (float[N, 2] X) => (float[N, 2] Y) <float[2] s = {1.0, -2.0}, float[2] t = {-0.5, 6.25}> {
            m = Mul (X, s) Y = Add (m, t) }""",
        1,
    )


def test_an_unknown_rank_is_refused() -> None:
    text = f"g (float[N, 2] A) => (float[N, 2] Y) {NORM} {{ X = Relu (A) Y = {CALL} }}"
    check_refusal(LOWER, text, "the rank of 'X' is not known", infer=False)


def test_training_is_refused() -> None:
    text = (
        f"g (float[N, 2] X) => (float[N, 2] Y) {NORM} {{ Y, m, v = {CALL.replace('0.0', '0.0, training_mode = 1')} }}"
    )
    check_refusal(LOWER, text, "training_mode is 1")
