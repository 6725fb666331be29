"""BatchNormalization folded into the linear operator after it."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.fuse_batch_norm_conv import FuseBatchNormConv
from tests.helpers import check_refusal, check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, normalization, with_weights

FUSE = FuseBatchNormConv()
NORM = "<float[2] g = {2.0, -1.0}, float[2] beta = {0.5, 0.25}, float[2] mean = {1.0, 3.0}, float[2] var = {4.0, 0.25}"
# epsilon=0: s = [1, -2], t = beta - s mean = [-0.5, 6.25]
CALL = "BatchNormalization <epsilon = 0.0> (X, g, beta, mean, var)"


def test_the_scale_goes_along_the_input_channels_and_the_shift_into_the_bias() -> None:
    check_rewrite(
        FUSE,
        f"""g (float[N, 2, 3] X) => (float[N, 1, 3] Y) {NORM},
            float[1, 2, 1] W = {{1.0, 10.0}}, float[1] b = {{5.0}}> {{
            c = {CALL} Y = Conv (c, W, b) }}""",
        """g (float[N, 2, 3] X) => (float[N, 1, 3] Y) <float[1, 2, 1] W = {1.0, -20.0}, float[1] b = {67.0}> {
            Y = Conv (X, W, b) }""",
        1,
    )


@pytest.mark.parametrize(
    ("call", "weight", "after"),
    [
        ("Conv <group = 2, strides = [2, 1], dilations = [1, 2]> (c, w)", (6, 2, 2, 2), "Conv"),
        ('Conv <group = 4, auto_pad = "VALID"> (c, w)', (4, 1, 3, 3), "Conv"),
    ],
)
def test_groups(call: str, weight: tuple[int, ...], after: str) -> None:
    text = f"""g (float[N, 4, 5, 6] X) => (float[N, C, H, W] Y) {{
        c = BatchNormalization (X, g, beta, mean, var) Y = {call} }}"""
    check_change(FUSE, with_weights(text, w=normal(*weight), **normalization(4)), 1, [after])


@pytest.mark.parametrize("call", ["MatMul (c, w)", "Gemm <alpha = 0.5> (c, w)", "Gemm <beta = 3.0> (c, w, b)"])
def test_matrices(call: str) -> None:
    text = f"""g (float[N, 4] X) => (float[N, 5] Y) {{
        c = BatchNormalization (X, g, beta, mean, var) Y = {call} }}"""
    model = with_weights(text, w=normal(4, 5), b=normal(5), **normalization(4))
    check_change(FUSE, model, 1, ["Gemm"])


@pytest.mark.parametrize("call", ["Conv <pads = [1, 1, 1, 1]>", 'Conv <auto_pad = "SAME_UPPER">', "ConvTranspose"])
def test_what_pads_with_zeros_takes_a_scale_alone(call: str) -> None:
    text = f"""g (float[N, 4, 5, 6] X) => (float[N, 4, H, W] Y) {{
        c = BatchNormalization (X, g, beta, mean, var) Y = {call} (c, w) }}"""
    shifting = with_weights(text, w=normal(4, 4, 3, 3), **normalization(4))
    reason = {"Conv <p": "Conv pads with zeros", "Conv <a": "Conv pads with zeros", "ConvTra": "fewer inputs"}[call[:7]]
    check_kept(FUSE, shifting, reason)
    scale_alone = normalization(4) | {"beta": np.zeros(4), "mean": np.zeros(4)}
    check_change(FUSE, with_weights(text, w=normal(4, 4, 3, 3), **scale_alone), 1, [call.split(maxsplit=1)[0]])


def test_a_transposed_gemm_is_refused() -> None:
    text = f"""g (float[2, 2] X) => (float[2, 1] Y) {NORM}, float[2, 1] W = {{1.0, 2.0}}> {{
        c = {CALL} Y = Gemm <transA = 1> (c, W) }}"""
    check_refusal(FUSE, text, "Gemm transposes what is shifted")


def test_a_result_that_others_use_is_refused() -> None:
    text = f"""g (float[N, 2, 3] X) => (float[N, 1, 3] Y, float[N, 2, 3] Z)
        {NORM}, float[1, 2, 1] W = {{1.0, 10.0}}> {{ c = {CALL} Y = Conv (c, W) Z = Relu (c) }}"""
    check_refusal(FUSE, text, "inner value 'c' has 2 users")
