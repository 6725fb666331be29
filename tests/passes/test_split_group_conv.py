"""Grouped convolutions as several."""

from __future__ import annotations

import pytest

from infconv.passes.split_group_conv import SplitGroupConv
from tests.helpers import check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

SPLIT = SplitGroupConv()


def test_each_group_is_a_convolution() -> None:
    check_rewrite(
        SPLIT,
        """g (float[N, 4, 5] X) => (float[N, 2, 5] Y)
            <float[2, 2, 1] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {5.0, 6.0}> {
            Y = Conv <group = 2> (X, w, b) }""",
        """g (float[N, 4, 5] X) => (float[N, 2, 5] Y) <int64[2] sizes = {2, 2}, float[1, 2, 1] w0 = {1.0, 2.0},
            float[1, 2, 1] w1 = {3.0, 4.0}, float[1] b0 = {5.0}, float[1] b1 = {6.0}> {
            x, z = Split <axis = 1> (X, sizes)
            p = Conv (x, w0, b0) q = Conv (z, w1, b1) Y = Concat <axis = 1> (p, q) }""",
        1,
    )


@pytest.mark.parametrize("opset", [8, 11, 13, 18, 20])
@pytest.mark.parametrize(
    ("call", "weight"),
    [
        ("Conv <group = 4, pads = [1, 0], strides = [2]> (X, w, b)", (8, 1, 3)),
        ("ConvTranspose <group = 2, strides = [2]> (X, w, b)", (4, 4, 3)),
        ("ConvTranspose <group = 4> (X, w)", (4, 2, 3)),
    ],
)
def test_every_opset(opset: int, call: str, weight: tuple[int, ...]) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    text = f"{header} g (float[N, 4, 6] X) => (float[N, 8, L] Y) {{ Y = {call} }}"
    groups = int(call.split("group = ")[1][0])
    model = with_weights(text, w=normal(*weight), b=normal(8))
    check_change(SPLIT, model, 1, ["Split", *[call.split(maxsplit=1)[0]] * groups, "Concat"])


def test_refusals() -> None:
    text = "g (float[N, 65, 6] X) => (float[N, 65, 6] Y) { Y = Conv <group = 65> (X, w) }"
    check_kept(SPLIT, with_weights(text, w=normal(65, 1, 1)), "65 groups are too many")
    text = text.replace("group = 65", "group = 1")
    check_kept(SPLIT, with_weights(text, w=normal(65, 65, 1)), "it has one group")
