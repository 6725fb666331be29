"""GroupNormalization as InstanceNormalization of the reshaped input."""

from __future__ import annotations

from infconv.passes.lower_group_norm import LowerGroupNorm
from tests.helpers import check_refusal, check_rewrite

LOWER = LowerGroupNorm()
HEADER = '<ir_version: 10, opset_import: ["" : 21]> '
CONSTANTS = """
<int64[3] into = {0, 2, -1}, int64[3] back = {2, 4, 5}, float[2] ones = {1.0, 1.0}, float[2] zeros = {0.0, 0.0},
 float[4] s = {1.0, 2.0, 3.0, 4.0}, float[4] b = {5.0, 6.0, 7.0, 8.0},
 float[4, 1] s1 = {1.0, 2.0, 3.0, 4.0}, float[4, 1] b1 = {5.0, 6.0, 7.0, 8.0}, int64[1] one = {1}>
"""
GROUPED = "g = Reshape (X, into) i = InstanceNormalization <epsilon = 0.001> (g, ones, zeros) "


def test_a_scale_for_each_channel() -> None:
    model = HEADER + "m (float[N, 4, 5] X) => (float[N, 4, 5] Y) " + CONSTANTS
    check_rewrite(
        LOWER,
        model + "{ Y = GroupNormalization <num_groups = 2, epsilon = 0.001> (X, s, b) }",
        model + f"{{ {GROUPED} h = Shape (X) r = Reshape (i, h) m = Mul (r, s1) Y = Add (m, b1) }}",
        1,
    )


def test_a_scale_that_is_computed() -> None:
    model = HEADER + "m (float[2, 4, 5] X, float[4] S) => (float[2, 4, 5] Y) " + CONSTANTS
    check_rewrite(
        LOWER,
        model + "{ Y = GroupNormalization <num_groups = 2, epsilon = 0.001> (X, S, b) }",
        model + f"{{ {GROUPED} r = Reshape (i, back) S1 = Unsqueeze (S, one) m = Mul (r, S1) Y = Add (m, b1) }}",
        1,
    )


def test_an_unknown_rank_stays() -> None:
    text = HEADER + "m (float[N, 4, 5] X, float[4] S, int64[3] t) => (float[N, 4, 5] Y)"
    text += "{ a = Reshape (X, t) Y = GroupNormalization <num_groups = 2> (a, S, S) }"
    check_refusal(LOWER, text, "'a' is not known to have axes besides batch and channels", infer=False)
