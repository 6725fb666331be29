"""InstanceNormalization from mean, variance, quotient, scale and bias."""

from __future__ import annotations

from infconv.passes.fuse_instance_norm import FuseInstanceNorm
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseInstanceNorm()
CONSTANTS = """
<float eps = {0.001}, int64[2] space = {2, 3}, int64[2] from_end = {-1, -2}, int64[1] last = {3},
 float[3, 1, 1] w = {1.0, 2.0, 3.0}, float[1, 3, 1, 1] b = {4.0, 5.0, 6.0}, float[4] along = {1.0, 2.0, 3.0, 4.0}>
"""
PARTS = """
u = ReduceMean (X, space) d = Sub (X, u) q = Mul (d, d) v = ReduceMean (q, from_end) ve = Add (v, eps) r = Sqrt (ve)
"""


def model(body: str, constants: str = CONSTANTS) -> str:
    return f"m (float[N, 3, 4, 4] X) => (float[N, 3, 4, 4] Y) {constants} {{ {body} }}"


def test_scale_and_bias_for_each_channel() -> None:
    check_rewrite(
        FUSE,
        model(PARTS + "n = Div (d, r) m = Mul (n, w) Y = Add (m, b)"),
        model(
            "Y = InstanceNormalization <epsilon = 0.001> (X, w, b)",
            "<float[3] w = {1.0, 2.0, 3.0}, float[3] b = {4.0, 5.0, 6.0}>",
        ),
        3,
    )


def test_without_scale_and_bias() -> None:
    check_rewrite(
        FUSE,
        model(PARTS + "i = Reciprocal (r) Y = Mul (d, i)"),
        model(
            "Y = InstanceNormalization <epsilon = 0.001> (X, w, b)",
            "<float[3] w = {1.0, 1.0, 1.0}, float[3] b = {0.0, 0.0, 0.0}>",
        ),
        1,
    )


def test_a_scale_along_other_axes_stays_behind() -> None:
    text = model(
        "n = InstanceNormalization (X, w, b) Y = Mul (n, along)",
        "<float[3] w = {1.0, 1.0, 1.0}, float[3] b = {0.0, 0.0, 0.0}, float[4] along = {1.0, 2.0, 3.0, 4.0}>",
    )
    check_refusal(FUSE, text, "'along' varies along axes other than the channels")


def test_over_one_of_two_axes_stays() -> None:
    body = PARTS.replace("space", "last").replace("from_end", "last") + "Y = Div (d, r)"
    check_refusal(FUSE, model(body), "axes [3] of 'X' are not all but batch and channels")


def test_layer_normalization_of_a_sequence_is_something_else() -> None:
    text = model(PARTS + "Y = Div (d, r)", "<float eps = {0.001}, int64[1] space = {2}, int64[1] from_end = {-1}>")
    reason = "'X' is not known to have two or more axes besides batch and channels"
    check_refusal(FUSE, text.replace("[N, 3, 4, 4]", "[N, 3, 4]"), reason)


def test_an_unknown_number_of_channels_stays() -> None:
    text = model(PARTS + "Y = Div (d, r)", "<float eps = {0.001}, int64[2] space = {2, 3}, int64[2] from_end = {2, 3}>")
    check_refusal(FUSE, text.replace("[N, 3, 4, 4]", "[N, C, 4, 4]"), "the number of channels of 'X' is not known")
