"""GlobalAveragePool and GlobalMaxPool from reductions."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_global_pool import FuseGlobalPool
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseGlobalPool()


def model(body: str, result: str = "[N, 3, 1, 1]") -> str:
    axes = "<int64[2] space = {2, 3}, int64[2] from_end = {-1, -2}, int64[1] last = {-1}>"
    return f"m (float[N, 3, 4, 5] X) => (float{result} Y) {axes} {{ {body} }}"


@pytest.mark.parametrize("axes", ["space", "from_end"])
@pytest.mark.parametrize(("reduction", "pool"), [("ReduceMean", "GlobalAveragePool"), ("ReduceMax", "GlobalMaxPool")])
def test_over_all_spatial_axes(axes: str, reduction: str, pool: str) -> None:
    check_rewrite(FUSE, model(f"Y = {reduction} (X, {axes})"), model(f"Y = {pool} (X)"), 1)


def test_axes_are_attributes_before_opset_18() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]> m (float[N, 3, 4, 5] X) => (float[N, 3, 1, 1] Y)'
    check_rewrite(
        FUSE, f"{header} {{ Y = ReduceMean <axes = [2, 3]> (X) }}", f"{header} {{ Y = GlobalAveragePool (X) }}", 1
    )


def test_over_one_axis_stays() -> None:
    text = model("Y = ReduceMean (X, last)", "[N, 3, 4, 1]")
    check_refusal(FUSE, text, "the reduction is not over the last 2 axes of 'X'")


def test_a_reduction_that_drops_its_axes_stays() -> None:
    text = model("Y = ReduceMean <keepdims = 0> (X, space)", "[N, 3]")
    check_refusal(FUSE, text, "keepdims=0; the rule needs 1")


def test_a_mean_over_features_stays() -> None:
    text = "m (float[N, 3, 4] X) => (float[N, 3, 1] Y) <int64[1] last = {2}> { Y = ReduceMean (X, last) }"
    check_refusal(FUSE, text, "'X' is not known to have two or more axes besides batch and channels")


def test_integers_stay() -> None:
    text = "m (int32[N, 3, 4, 5] X) => (int32[N, 3, 1, 1] Y) <int64[2] a = {2, 3}> { Y = ReduceMax (X, a) }"
    check_refusal(FUSE, text, "x is of type INT32")
