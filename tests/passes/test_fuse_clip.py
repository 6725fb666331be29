"""Chains of limits merged into one Clip or Relu."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_clip import FuseClip
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseClip()
LIMITS = "<float zero = {0.0}, float one = {1.0}, float four = {4.0}, float six = {6.0}, float[2] several = {1.0, 2.0}>"


def model(body: str) -> str:
    return f"m (float[N, 2] X) => (float[N, 2] Y) {LIMITS} {{ {body} }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Relu (X) Y = Min (a, six)", "Y = Clip (X, zero, six)"),
        ("a = Relu (X) Y = Clip (a, , six)", "Y = Clip (X, zero, six)"),
        ("a = Max (X, zero) Y = Min (six, a)", "Y = Clip (X, zero, six)"),
        ("a = Min (X, six) Y = Max (a, one)", "Y = Clip (X, one, six)"),
        ("a = Clip (X, zero, six) Y = Clip (a, one, four)", "Y = Clip (X, one, four)"),
        ("a = Clip (X, one) Y = Clip (a, zero)", "Y = Clip (X, one)"),
        ("a = Clip (X, one, six) Y = Relu (a)", "Y = Clip (X, one, six)"),
        ("a = Relu (X) Y = Relu (a)", "Y = Relu (X)"),
        ("a = Relu (X) Y = Clip (a, zero)", "Y = Relu (X)"),
        ("Y = Max (zero, X)", "Y = Relu (X)"),
        # Limits that exclude each other: Clip gives the upper one, and so did the chain.
        ("a = Clip (X, zero, one) Y = Max (a, four)", "Y = Clip (X, four, four)"),
        ("a = Clip (X, four, six) Y = Min (a, one)", "Y = Clip (X, four, one)"),
    ],
)
def test_limits_are_merged(before: str, after: str) -> None:
    check_rewrite(FUSE, model(before), model(after), 1)


def test_a_chain_of_three() -> None:
    check_rewrite(FUSE, model("a = Relu (X) b = Min (a, six) Y = Max (b, one)"), model("Y = Clip (X, one, six)"), 2)


def test_before_opset_11_limits_are_attributes() -> None:
    header = '<ir_version: 5, opset_import: ["" : 10]> m (float[2] X) => (float[2] Y)'
    check_rewrite(
        FUSE,
        f"{header} {{ a = Relu (X) Y = Clip <max = 6.0> (a) }}",
        f"{header} {{ Y = Clip <min = 0.0, max = 6.0> (X) }}",
        1,
    )


def test_integers_become_clip_but_not_relu() -> None:
    header = "m (int64[N] X) => (int64[N] Y) <int64 one = {1}, int64 zero = {0}, int64 two = {2}>"
    check_rewrite(
        FUSE, f"{header} {{ a = Max (X, one) Y = Min (a, two) }}", f"{header} {{ Y = Clip (X, one, two) }}", 1
    )
    check_refusal(FUSE, f"{header} {{ Y = Max (X, zero) }}", "x is not known to be float")


def test_limits_of_several_numbers_stay() -> None:
    check_refusal(FUSE, model("a = Relu (X) Y = Min (a, several)"), "the limit 'several' is not one number")


def test_a_limit_that_adds_an_axis_stays() -> None:
    text = "m (float[N] X) => (float[1, N] Y) <float[1, 1] six = {6.0}> { a = Relu (X) Y = Min (a, six) }"
    check_refusal(FUSE, text, "the limit 'six' is not one number")


def test_limits_that_are_computed_stay() -> None:
    text = "m (float[N] X, float limit) => (float[N] Y) { a = Relu (X) Y = Min (a, limit) }"
    check_refusal(FUSE, text, "'limit' is not a constant")


def test_a_relu_with_other_users_stays() -> None:
    text = f"m (float[N, 2] X) => (float[N, 2] Y, float[N, 2] a) {LIMITS} {{ a = Relu (X) Y = Min (a, six) }}"
    check_refusal(FUSE, text, "inner value 'a' is an output of the graph")
