"""GlobalAveragePool and Flatten for means that drop the axes of an image."""

from __future__ import annotations

import pytest

from infconv.quantize.replace_mean_by_pool import ReplaceMeanByPool
from tests.helpers import check_refusal, check_rewrite

REPLACE = ReplaceMeanByPool()


def model(body: str, result: str = "[N, 3]") -> str:
    axes = "<int64[2] space = {2, 3}, int64[2] from_end = {-1, -2}, int64[1] last = {-1}>"
    return f"m (float[N, 3, 4, 5] X) => (float{result} Y) {axes} {{ {body} }}"


@pytest.mark.parametrize("axes", ["space", "from_end"])
def test_over_all_spatial_axes(axes: str) -> None:
    after = model("pooled = GlobalAveragePool (X) Y = Flatten <axis = 1> (pooled)")
    check_rewrite(REPLACE, model(f"Y = ReduceMean <keepdims = 0> (X, {axes})"), after, 1)


def test_over_one_axis_stays() -> None:
    text = model("Y = ReduceMean <keepdims = 0> (X, last)", "[N, 3, 4]")
    check_refusal(REPLACE, text, "the reduction is not over the last 2 axes of 'X'")


def test_a_mean_over_features_stays() -> None:
    text = "m (float[N, 3, 4] X) => (float[N, 3] Y) <int64[1] a = {2}> { Y = ReduceMean <keepdims = 0> (X, a) }"
    check_refusal(REPLACE, text, "'X' is not known to have two or more axes besides batch and channels")
