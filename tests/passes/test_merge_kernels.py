"""Parallel convolutions merged by adding their kernels."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_conv_batch_norm import FuseConvBatchNorm
from infconv.passes.merge_kernels import MergeKernels
from tests.helpers import apply, check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, normalization, with_weights

MERGE = MergeKernels()


def test_a_pointwise_kernel_is_the_centre_of_the_other() -> None:
    # Padded with zeros, not stretched.
    check_rewrite(
        MERGE,
        """g (float[N, 1, 5] X) => (float[N, 1, 5] Y)
            <float[1, 1, 3] a = {1.0, 2.0, 3.0}, float[1, 1, 1] b = {10.0}, float[1] c = {5.0}> {
            s = Conv <pads = [1, 1]> (X, a) t = Conv (X, b, c) Y = Add (t, s) }""",
        """g (float[N, 1, 5] X) => (float[N, 1, 5] Y) <float[1, 1, 3] a = {1.0, 12.0, 3.0}, float[1] c = {5.0}> {
            Y = Conv <pads = [1, 1]> (X, a, c) }""",
        1,
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Conv <pads = [1, 1, 1, 1]> (X, k33, c)", "Conv (X, k11, d)"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k33)", "Conv <pads = [0, 1, 0, 1]> (X, k13)"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k33)", "Conv <pads = [1, 1, 1, 1]> (X, k33b)"),
        ("Conv <strides = [2, 1], pads = [1, 1, 1, 1]> (X, k33)", "Conv <strides = [2, 1]> (X, k11)"),
        ("Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (X, k33)", "Conv (X, k11, d)"),
        ('Conv <auto_pad = "SAME_UPPER"> (X, k33)', 'Conv <auto_pad = "SAME_LOWER"> (X, k11)'),
        ("Conv <pads = [0, 1, 2, 1]> (X, k33)", "Conv <dilations = [3, 3]> (X, k11)"),
        ("Conv <group = 2, pads = [1, 1, 1, 1]> (X, g33)", "Conv <group = 2> (X, g11)"),
    ],
)
def test_kernels_that_see_the_same_elements(first: str, second: str) -> None:
    text = f"g (float[N, 4, 7, 8] X) => (float[N, 6, H, W] Y) {{ s = {first} t = {second} Y = Add (s, t) }}"
    check_change(MERGE, with_weights(text, **kernels()), 1, ["Conv"])


@pytest.mark.parametrize("opset", [8, 20])
def test_the_branches_of_repvgg_are_one_convolution(opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[N, 4, 7, 8] X) => (float[N, 4, 7, 8] Y) {{
        a = Conv <group = 2, pads = [1, 1, 1, 1]> (X, k33) an = BatchNormalization (a, g, beta, mean, var)
        b = Conv <group = 2> (X, k11) bn = BatchNormalization (b, beta, g, mean, var)
        i = BatchNormalization (X, mean, beta, g, var) s = Add (an, bn) Y = Add (s, i) }}"""
    model = with_weights(text, k33=normal(4, 2, 3, 3), k11=normal(4, 2, 1, 1), **normalization(4))
    assert apply(FuseConvBatchNorm(), model) == 2
    check_change(MERGE, model, 2, ["Conv"])


def test_the_input_itself_is_a_diagonal() -> None:
    text = """g (float[N, 6, 7, 8] X) => (float[N, 6, 7, 8] Y) {
        s = Conv <group = 3, pads = [1, 1, 1, 1]> (X, w) Y = Add (X, s) }"""
    check_change(MERGE, with_weights(text, w=normal(6, 2, 3, 3)), 1, ["Conv"])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("Conv (X, k33)", "Conv (X, k11)", "do not put one kernel inside of the other"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k33)", "Conv <strides = [7, 8]> (X, k11)", "differ in strides"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k33)", "Conv <pads = [0, 2, 0, 2], dilations = [1, 2]> (X, k13)", "dilations"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k33)", "Conv <group = 2> (X, g11)", "differ in channels or groups"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k33)", "Conv (X, one)", "differ in channels or groups"),
        ("Conv <pads = [0, 1, 0, 1]> (X, k13)", "Conv <pads = [1, 0, 1, 0]> (X, k31)", "inside of the other"),
        ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (X, k33)', "Conv (X, k11)", "auto_pad=SAME_UPPER"),
    ],
)
def test_kernels_that_do_not(first: str, second: str, reason: str) -> None:
    text = f"g (float[N, 4, h, w] X) => (float[N, 6, H, W] Y) {{ s = {first} t = {second} Y = Add (s, t) }}"
    check_kept(MERGE, with_weights(text, infer=False, **kernels()), reason)


def test_a_branch_that_others_use_is_refused() -> None:
    text = """g (float[N, 4, 7, 8] X) => (float[N, 6, H, W] Y, float[N, 6, H, W] t) {
        s = Conv <pads = [1, 1, 1, 1]> (X, k33) t = Conv (X, k11) Y = Add (s, t) }"""
    check_kept(MERGE, with_weights(text, **kernels()), "'t' is an output of the graph")


def test_an_input_of_other_channels_is_refused() -> None:
    text = "g (float[N, 1, 5] X) => (float[N, 3, 5] Y) { s = Conv (X, w) Y = Add (s, X) }"
    check_kept(MERGE, with_weights(text, w=normal(3, 1, 1)), "3 channels of 1")


def kernels() -> dict:
    sizes = {"k33": (3, 3), "k33b": (3, 3), "k11": (1, 1), "k13": (1, 3), "k31": (3, 1)}
    return {
        **{name: normal(6, 4, *size, seed=i) for i, (name, size) in enumerate(sizes.items())},
        "g33": normal(6, 2, 3, 3),
        "g11": normal(6, 2, 1, 1),
        "one": normal(1, 4, 1, 1),
        "c": normal(6),
        "d": normal(6, seed=1),
    }
