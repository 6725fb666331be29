"""Pad as the padding of the operator after it."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.fuse_pad import FusePad
from tests.helpers import check_refusal, check_rewrite

FUSE = FusePad()
HEAD = "g (float[1, 2, 5, 6] X) => (float[1, 2, H, W] Y)"
PADS = "<int64[8] p = {0, 0, 1, 2, 0, 0, 0, 1}"
WEIGHT = ", float[2, 1, 3, 3] W = {" + ", ".join(map(str, np.arange(18.0))) + "}"


def test_padding_with_zeros_becomes_that_of_conv() -> None:
    check_rewrite(
        FUSE,
        HEAD + PADS + WEIGHT + "> { q = Pad (X, p) Y = Conv <group = 2, pads = [0, 1, 0, 1]> (q, W) }",
        HEAD + "<" + WEIGHT[1:] + "> { Y = Conv <group = 2, pads = [1, 3, 0, 2]> (X, W) }",
        1,
    )


def test_auto_pad_valid_has_none_of_its_own() -> None:
    check_rewrite(
        FUSE,
        HEAD + PADS + WEIGHT + '> { q = Pad (X, p) Y = Conv <group = 2, auto_pad = "VALID"> (q, W) }',
        HEAD + "<" + WEIGHT[1:] + "> { Y = Conv <group = 2, pads = [1, 2, 0, 1]> (X, W) }",
        1,
    )


@pytest.mark.parametrize(("auto_pad", "pads"), [("SAME_UPPER", "[2, 3, 1, 3]"), ("SAME_LOWER", "[2, 4, 1, 2]")])
def test_auto_pad_same_is_known_without_strides(auto_pad: str, pads: str) -> None:
    weight = ", float[2, 1, 3, 4] W = {" + ", ".join(map(str, np.arange(24.0))) + "}"
    check_rewrite(
        FUSE,
        HEAD + PADS + weight + f'> {{ q = Pad (X, p) Y = Conv <group = 2, auto_pad = "{auto_pad}"> (q, W) }}',
        HEAD + "<" + weight[1:] + f"> {{ Y = Conv <group = 2, pads = {pads}> (X, W) }}",
        1,
    )


def test_axes() -> None:
    axes = "<int64[2] p = {1, 2}, int64[1] axes = {-1}, float zero = {0.0}"
    check_rewrite(
        FUSE,
        HEAD + axes + WEIGHT + "> { q = Pad (X, p, zero, axes) Y = Conv <group = 2> (q, W) }",
        HEAD + "<" + WEIGHT[1:] + "> { Y = Conv <group = 2, pads = [0, 1, 0, 2]> (X, W) }",
        1,
    )


def test_opset_10_has_attributes() -> None:
    header = '<ir_version: 8, opset_import: ["" : 10]>'
    check_rewrite(
        FUSE,
        f"{header}{HEAD}<{WEIGHT[1:]}> {{ q = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 1]> (X) Y = Conv <group = 2> (q, W) }}",
        f"{header}{HEAD}<{WEIGHT[1:]}> {{ Y = Conv <group = 2, pads = [1, 2, 0, 1]> (X, W) }}",
        1,
    )


def test_the_average_counts_what_was_padded() -> None:
    check_rewrite(
        FUSE,
        HEAD + PADS + "> { q = Pad (X, p) Y = AveragePool <kernel_shape = [3, 3], strides = [2, 2]> (q) }",
        HEAD
        + "{ Y = AveragePool <kernel_shape=[3, 3], strides=[2, 2], pads = [1, 2, 0, 1], count_include_pad = 1> (X) }",
        1,
    )


def test_the_average_that_counts_its_own_padding_takes_more() -> None:
    check_rewrite(
        FUSE,
        HEAD
        + PADS
        + """> { q = Pad (X, p)
            Y = AveragePool <kernel_shape = [4, 4], pads = [1, 1, 1, 1], count_include_pad = 1> (q) }""",
        HEAD + "{ Y = AveragePool <kernel_shape = [4, 4], pads = [2, 3, 1, 2], count_include_pad = 1> (X) }",
        1,
    )


@pytest.mark.parametrize("value", ["-3.4028235e38", "-inf"])
def test_the_maximum_is_padded_with_the_lowest_number(value: str) -> None:
    check_rewrite(
        FUSE,
        f"{HEAD}{PADS}, float low = {{{value}}}> {{ q = Pad (X, p, low) Y = MaxPool <kernel_shape = [3, 3]> (q) }}",
        HEAD + "{ Y = MaxPool <kernel_shape = [3, 3], pads = [1, 2, 0, 1]> (X) }",
        1,
    )


@pytest.mark.parametrize("activation", ["Relu (X)", "Clip (X, zero, six)"])
def test_the_maximum_of_what_is_never_negative_may_be_padded_with_zeros(activation: str) -> None:
    clip = ", float zero = {0.0}, float six = {6.0}> { r = " if "Clip" in activation else "> { r = "
    pool = "MaxPool <kernel_shape = [3, 3], strides = [2, 2]"
    check_rewrite(
        FUSE,
        f"{HEAD}{PADS}{clip}{activation} q = Pad (r, p) Y = {pool}> (q) }}",
        HEAD + f"{clip} {activation} Y = {pool}, pads = [1, 2, 0, 1]> (r) }}".replace(",", "<", clip.startswith(","))
        if clip.startswith(",")
        else f"{HEAD} {{ r = {activation} Y = {pool}, pads = [1, 2, 0, 1]> (r) }}",
        1,
    )


def test_the_maximum_of_anything_else_must_not() -> None:
    text = HEAD + PADS + "> { q = Pad (X, p) Y = MaxPool <kernel_shape = [3, 3]> (q) }"
    check_refusal(FUSE, text, "Pad pads with 0, MaxPool with the lowest number")


@pytest.mark.parametrize(
    ("pad", "operator", "reason"),
    [
        ('Pad <mode = "reflect"> (X, p)', "Conv <group = 2> (q, W)", "mode=reflect"),
        ("Pad (X, p, one)", "Conv <group = 2> (q, W)", "Pad pads with 1, Conv with zeros"),
        ("Pad (X, p, one)", "AveragePool <kernel_shape = [3, 3]> (q)", "AveragePool with zeros"),
        ("Pad (X, crop)", "Conv <group = 2> (q, W)", "Pad crops"),
        ("Pad (X, channels)", "Conv <group = 4> (q, W4)", "the batch or the channels"),
        ("Pad (X, p)", 'Conv <group = 2, auto_pad = "SAME_UPPER", strides = [2, 1]> (q, W)', "auto_pad=SAME_UPPER"),
        ("Pad (X, p)", "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (q)", "does not count its own"),
        ("Pad (X, p)", "AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (q)", "ceil_mode is 1"),
        ("Pad (X, p)", "AveragePool <kernel_shape = [2, 2]> (q)", "as large as the kernel"),
        ("Pad (X, p, low)", "MaxPool <kernel_shape = [3, 3], dilations = [2, 1]> (q)", "dilated"),
        ("Pad (X, P)", "Conv <group = 2> (q, W)", "amounts or axes that are not constant"),
    ],
)
def test_what_does_not_compute_the_same_is_refused(pad: str, operator: str, reason: str) -> None:
    more = """, float one = {1.0}, float low = {-inf}, int64[8] crop = {0, 0, -1, 0, 0, 0, 0, 0},
        int64[8] channels = {0, 1, 0, 0, 0, 1, 0, 0}"""
    weight = WEIGHT + WEIGHT.replace("W", "W4").replace("2, 1", "4, 1").replace("{", "{" + "0.0, " * 18)
    head = HEAD.replace("X)", "X, int64[8] P)").replace("1, 2, H, W] Y", "a, b, c, d] Y")
    check_refusal(FUSE, f"{head}{PADS}{more}{weight}> {{ q = {pad} Y = {operator} }}", reason)


def test_padding_that_several_convolutions_share_is_that_of_each() -> None:
    two = HEAD.replace("Y)", "Y, float[1, 2, H2, W2] Z)")
    check_rewrite(
        FUSE,
        two + PADS + WEIGHT + "> { q = Pad (X, p) Y = Conv <group = 2> (q, W) Z = Conv <group = 2> (q, W) }",
        two
        + "<"
        + WEIGHT[1:]
        + """> { Y = Conv <group = 2, pads = [1, 2, 0, 1]> (X, W)
            Z = Conv <group = 2, pads = [1, 2, 0, 1]> (X, W) }""",
        2,
    )
    other = two + PADS + WEIGHT + "> { q = Pad (X, p) Y = Conv <group = 2> (q, W) Z = Relu (q) }"
    check_refusal(FUSE, other, "another operator uses what is padded")


def test_an_image_with_channels_last_is_padded_before_it_is_transposed() -> None:
    head = "g (float[1, 5, 6, 2] X) => (float[1, 2, H, W] Y)"
    check_rewrite(
        FUSE,
        head + PADS.replace("{0, 0, 1, 2, 0, 0, 0, 1}", "{0, 1, 2, 0, 0, 0, 1, 0}") + WEIGHT + "> { q = Pad (X, p)"
        " t = Transpose <perm = [0, 3, 1, 2]> (q) Y = Conv <group = 2> (t, W) }",
        head + "<" + WEIGHT[1:] + "> { t = Transpose <perm = [0, 3, 1, 2]> (X)"
        " Y = Conv <group = 2, pads = [1, 2, 0, 1]> (t, W) }",
        1,
    )


def test_a_transpose_without_perm_reverses_the_axes() -> None:
    head = "g (float[6, 5, 2, 1] X) => (float[1, 2, H, W] Y)"
    check_rewrite(
        FUSE,
        head + PADS.replace("{0, 0, 1, 2, 0, 0, 0, 1}", "{2, 1, 0, 0, 1, 0, 0, 0}") + WEIGHT + "> { q = Pad (X, p)"
        " t = Transpose (q) Y = Conv <group = 2> (t, W) }",
        head + "<" + WEIGHT[1:] + "> { t = Transpose <perm = [3, 2, 1, 0]> (X)"
        " Y = Conv <group = 2, pads = [1, 2, 0, 1]> (t, W) }",
        1,
    )
