"""BatchNormalization folded into the linear operator before it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from infconv.passes.fuse_conv_batch_norm import FuseConvBatchNorm
from tests.helpers import apply, check_refusal, check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, normalization, with_weights

FUSE = FuseConvBatchNorm()
NORM = "<float[2] g = {2.0, -1.0}, float[2] beta = {0.5, 0.25}, float[2] mean = {1.0, 3.0}, float[2] var = {4.0, 0.25}"
# epsilon=0: s = gamma / sqrt(variance) = [1, -2]
CALL = "BatchNormalization <epsilon = 0.0> (c, g, beta, mean, var)"


def test_scale_and_shift_become_weight_and_bias() -> None:
    check_rewrite(
        FUSE,
        f"g (float[N, 2, 3] X) => (float[N, 2, 3] Y) {NORM}, float[2, 2, 1] W = {{1.0, 2.0, 3.0, 4.0}}> {{"
        f" c = Conv (X, W) Y = {CALL} }}",
        "g (float[N, 2, 3] X) => (float[N, 2, 3] Y)"
        "<float[2, 2, 1] W = {1.0, 2.0, -6.0, -8.0}, float[2] b = {-0.5, 6.25}> { Y = Conv (X, W, b) }",
        1,
    )


def test_the_bias_of_the_convolution_is_kept() -> None:
    # s (b - mean) + beta = [1 (10 - 1) + 0.5, -2 (20 - 3) + 0.25]
    check_rewrite(
        FUSE,
        f"g (float[N, 2, 3] X) => (float[N, 2, 3] Y) {NORM}, float[2, 2, 1] W = {{1.0, 2.0, 3.0, 4.0}},"
        f" float[2] b = {{10.0, 20.0}}> {{ c = Conv (X, W, b) Y = {CALL} }}",
        "g (float[N, 2, 3] X) => (float[N, 2, 3] Y)"
        "<float[2, 2, 1] W = {1.0, 2.0, -6.0, -8.0}, float[2] b = {9.5, -33.75}> { Y = Conv (X, W, b) }",
        1,
    )


def test_gemm_takes_alpha_beta_and_transB_with_it() -> None:
    check_rewrite(
        FUSE,
        f"g (float[N, 3] X) => (float[N, 2] Y) {NORM}, float[2, 3] W = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0}},"
        f" float[1, 2] b = {{10.0, 20.0}}> {{ c = Gemm <alpha = 2.0, beta = 0.5, transB = 1> (X, W, b) Y = {CALL} }}",
        "g (float[N, 3] X) => (float[N, 2] Y) <float[2, 3] W = {2.0, 4.0, 6.0, -16.0, -20.0, -24.0},"
        " float[2] b = {4.5, -13.75}> { Y = Gemm <transB = 1> (X, W, b) }",
        1,
    )


def test_matmul_becomes_gemm() -> None:
    check_rewrite(
        FUSE,
        f"g (float[N, 1] X) => (float[N, 2] Y) {NORM}, float[1, 2] W = {{1.0, 2.0}}> {{"
        f" c = MatMul (X, W) Y = {CALL} }}",
        "g (float[N, 1] X) => (float[N, 2] Y) <float[1, 2] W = {1.0, -4.0}, float[2] b = {-0.5, 6.25}> {"
        " Y = Gemm (X, W, b) }",
        1,
    )


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 20])
@pytest.mark.parametrize(
    ("convolution", "weight", "channels"),
    [
        ("Conv <group = 2, pads = [1, 1, 1, 1]>", (6, 2, 3, 3), 6),
        ("Conv <group = 4>", (4, 1, 3, 3), 4),
        ("ConvTranspose", (4, 6, 3, 3), 6),
        ("ConvTranspose <group = 2, strides = [2, 2], output_padding = [1, 0]>", (4, 3, 3, 3), 6),
        ("ConvTranspose <group = 4>", (4, 1, 3, 3), 4),
    ],
)
def test_groups_and_transposed_convolutions(
    opset: int, convolution: str, weight: tuple[int, ...], channels: int
) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]>'
        f"g (float[N, 4, 5, 6] X) => (float[N, {channels}, H, W] Y) {{"
        f" c = {convolution} (X, w, b) Y = BatchNormalization <epsilon = 0.01> (c, g, beta, mean, var) }}"
    )
    model = with_weights(text, w=normal(*weight), b=normal(channels), **normalization(channels))
    check_change(FUSE, model, 1, [convolution.split(maxsplit=1)[0]])


def test_float16_weights_stay_float16() -> None:
    text = """g (float16[N, 3, 5] X) => (float16[N, 4, 5] Y) {
        c = Conv (X, w) Y = BatchNormalization (c, g, beta, mean, var) }"""
    model = with_weights(text, np.float16, w=normal(4, 3, 1), **normalization(4))
    check_change(FUSE, model, 1, ["Conv"], "fp16")
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_bfloat16_weights_are_rounded_once() -> None:
    text = """<ir_version: 10, opset_import: ["" : 22]> g (bfloat16[N, 3, 5] X) => (bfloat16[N, 4, 5] Y) {
        c = Conv (X, w) Y = BatchNormalization <epsilon = 0.0> (c, g, beta, mean, var) }"""
    one, zero = np.ones(4), np.zeros(4)
    w, g = normal(4, 3, 1).astype(ml_dtypes.bfloat16), normal(4, seed=1).astype(ml_dtypes.bfloat16)
    model = with_weights(text, ml_dtypes.bfloat16, w=w, g=g, beta=zero, mean=zero, var=one)
    assert apply(FUSE, model) == 1
    folded = next(v.const_value for v in model.graph.initializers.values() if v.shape == (4, 3, 1))
    exact = w.astype(np.float64) * g.astype(np.float64)[:, None, None]
    np.testing.assert_array_equal(folded.numpy(), exact.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(("size", "reason"), [(300.0, "not finite in float16"), (1e-4, "too small for float16")])
def test_a_weight_that_float16_cannot_hold_is_refused(size: float, reason: str) -> None:
    text = "g (float16[N, 1, 5] X) => (float16[N, 1, 5] Y) { c = Conv (X, w) Y = BatchNormalization (c, g, z, z, one) }"
    one, zero = np.ones(1), np.zeros(1)
    check_kept(FUSE, with_weights(text, np.float16, w=np.full((1, 1, 1), size), g=size * one, z=zero, one=one), reason)


def test_a_large_shared_weight_is_refused_and_a_small_one_copied() -> None:
    text = """g (float[N, C, 5] X) => (float[N, D, 5] Y, float[N, D, 5] Z) {
        c = Conv (X, w) Y = BatchNormalization (c, g, beta, mean, var) Z = Conv (X, w) }"""
    check_kept(FUSE, with_weights(text, w=normal(80, 80, 1), **normalization(80)), "the weight 'w' is used 2 times")
    text = text.replace("N, C, 5", "N, 4, 5")
    check_change(FUSE, with_weights(text, w=normal(4, 4, 1), **normalization(4)), 1, ["Conv", "Conv"])


def test_what_is_not_known_when_the_model_is_converted_is_refused() -> None:
    text = "g (float[N, 2, 3] X, float[2] g) => (float[N, 2, 3] Y) <float[2, 2, 1] W = {1.0, 2.0, 3.0, 4.0}> {"
    check_refusal(FUSE, text + " c = Conv (X, W) Y = BatchNormalization (c, g, g, g, g) }", "'g' is not constant")
    dynamic = f"g (float[N, 2, 3] X, float[2, 2, 1] W) => (float[N, 2, 3] Y) {NORM}> {{ c = Conv (X, W) Y = {CALL} }}"
    check_refusal(FUSE, dynamic, "'W' is not a constant")


def test_what_trains_is_refused() -> None:
    text = f"g (float[N, 2, 3] X) => (float[N, 2, 3] Y) {NORM}, float[2, 2, 1] W = {{1.0, 2.0, 3.0, 4.0}}> {{"
    training = text + f" c = Conv (X, W) Y, m, v = {CALL.replace('0.0', '0.0, training_mode = 1')} }}"
    check_refusal(FUSE, training, "training_mode is 1")
    old = '<ir_version: 8, opset_import: ["" : 9]>' + text + f" c = Conv (X, W) Y, m, v, sm, sv = {CALL} }}"
    check_refusal(FUSE, old, "running statistics are outputs")


def test_a_convolution_that_others_use_is_refused() -> None:
    text = f"""g (float[N, 2, 3] X) => (float[N, 2, 3] Y, float[N, 2, 3] Z)
        {NORM}, float[2, 2, 1] W = {{1.0, 2.0, 3.0, 4.0}}> {{"""
    check_refusal(FUSE, text + f" c = Conv (X, W) Y = {CALL} Z = Relu (c) }}", "inner value 'c' has 2 users")
    output = text.replace("Z)", "c)") + f" c = Conv (X, W) Y = {CALL} }}"
    check_refusal(FUSE, output, "'c' is an output of the graph")


def test_normalizing_another_axis_than_the_weights_is_refused() -> None:
    # BatchNormalization works on axis 1, MatMul's columns are axis 2.
    text = f"""g (float[N, 2, 1] X) => (float[N, 2, 2] Y) {NORM}, float[1, 2] W = {{1.0, 2.0}}> {{
        c = MatMul (X, W) Y = {CALL} }}"""
    check_refusal(FUSE, text, "'X' is not known to be a matrix")
