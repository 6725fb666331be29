"""LogSoftmax from its parts."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.fuse_log_softmax import FuseLogSoftmax
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseLogSoftmax()


def model(body: str) -> str:
    return f"m (float[N, 3, 4] X) => (float[N, 3, 4] Y) <int64[1] a = {{1}}, int64[2] b = {{0, 1}}> {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "s = Softmax <axis = 1> (X) Y = Log (s)",
        "s = ReduceLogSumExp (X, a) Y = Sub (X, s)",
        "e = Exp (X) s = ReduceSum (e, a) l = Log (s) Y = Sub (X, l)",
        "e = Exp (X) l = ReduceLogSum (e, a) Y = Sub (X, l)",
    ],
)
def test_each_form(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = LogSoftmax <axis = 1> (X)"), 1)


def test_the_result_is_finite_where_softmax_is_0() -> None:
    before = "m (float[1, 2] X) => (float[1, 2] Y) { s = Softmax (X) Y = Log (s) }"
    after = "m (float[1, 2] X) => (float[1, 2] Y) { Y = LogSoftmax <axis = -1> (X) }"
    check_rewrite(FUSE, before, after, 1, inputs={"X": np.array([[0, 30]], np.float32)})


def test_a_sum_over_two_axes_stays() -> None:
    check_refusal(FUSE, model("s = ReduceLogSumExp (X, b) Y = Sub (X, s)"), "the sum is over [0, 1], not over one")


def test_a_softmax_with_other_users_stays() -> None:
    text = "m (float[N] X) => (float[N] Y, float[N] s) { s = Softmax (X) Y = Log (s) }"
    check_refusal(FUSE, text, "inner value 's' is an output of the graph")
