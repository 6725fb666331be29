"""Softmax from exponentials and their sum."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_softmax import FuseSoftmax
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseSoftmax()
AXES = "<int64[1] last = {-1}, int64[1] first = {0}, int64[2] both = {1, 2}>"


def model(body: str) -> str:
    return f"m (float[N, 3, 4] X) => (float[N, 3, 4] Y) {AXES} {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp (X) s = ReduceSum (e, last) Y = Div (e, s)",
        "e = Exp (X) s = ReduceSum (e, last) r = Reciprocal (s) Y = Mul (r, e)",
    ],
)
def test_a_quotient_of_exponentials(body: str) -> None:
    check_rewrite(FUSE, model(body), model("Y = Softmax <axis = -1> (X)"), 1)


def test_the_maximum_that_keeps_exp_in_range_goes_too() -> None:
    body = "m = ReduceMax (X, last) d = Sub (X, m) e = Exp (d) s = ReduceSum (e, last) Y = Div (e, s)"
    check_rewrite(FUSE, model(body), model("Y = Softmax <axis = -1> (X)"), 2)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_a_shift_by_the_maximum_changes_nothing(operator: str) -> None:
    body = f"m = ReduceMax (X, last) d = Sub (X, m) Y = {operator} <axis = 2> (d)"
    check_rewrite(FUSE, model(body), model(f"Y = {operator} <axis = 2> (X)"), 1)


def test_a_maximum_over_another_axis_stays() -> None:
    body = "m = ReduceMax (X, first) d = Sub (X, m) Y = Softmax (d)"
    check_refusal(FUSE, model(body), "the maximum is over other axes than the Softmax")


def test_a_sum_over_two_axes_stays() -> None:
    body = "e = Exp (X) s = ReduceSum (e, both) Y = Div (e, s)"
    check_refusal(FUSE, model(body), "the sum is over [1, 2], not over one")


def test_a_sum_that_drops_its_axis_stays() -> None:
    text = "m (float[4, 4] X) => (float[4, 4] Y) <int64[1] a = {1}>"
    text += "{ e = Exp (X) s = ReduceSum <keepdims = 0> (e, a) Y = Div (e, s) }"
    check_refusal(FUSE, text, "keepdims=0; the rule needs 1")


OLD = '<ir_version: 6, opset_import: ["" : 11]> m (float[2, 3, 4] X) => (float[2, 3, 4] Y)'


def test_before_opset_13_it_is_over_all_axes_from_its_own() -> None:
    before = f"{OLD} {{ e = Exp (X) s = ReduceSum <axes = [1, 2]> (e) Y = Div (e, s) }}"
    check_rewrite(FUSE, before, f"{OLD} {{ Y = Softmax <axis = 1> (X) }}", 1)


def test_before_opset_13_it_has_no_inner_axis() -> None:
    text = f"{OLD} {{ e = Exp (X) s = ReduceSum <axes = [1]> (e) Y = Div (e, s) }}"
    check_refusal(FUSE, text, "axes [1] are not the last ones of 'X', which has rank 3")


def test_before_opset_13_a_maximum_over_one_of_its_axes_stays() -> None:
    text = f"{OLD} {{ m = ReduceMax <axes = [1]> (X) d = Sub (X, m) Y = Softmax <axis = 1> (d) }}"
    check_refusal(FUSE, text, "the Softmax may be over several axes")
