"""Casts moved to where they cancel, or where there is less to convert."""

from __future__ import annotations

from infconv.passes.move_casts import MoveCasts
from tests.helpers import check_refusal, check_rewrite

MOVE = MoveCasts()


def test_two_casts_around_operators_that_move_elements() -> None:
    check_rewrite(
        MOVE,
        """m (float16[2, 6] x) => (float16[6, 1] y) <int64[1] zero = {0}, int64[1] one = {1}>
        { a = Cast <to = 1> (x) b = Transpose (a) c = Slice (b, zero, one, one) y = Cast <to = 10> (c) }""",
        """m (float16[2, 6] x) => (float16[6, 1] y) <int64[1] zero = {0}, int64[1] one = {1}>
        { b = Transpose (x) y = Slice (b, zero, one, one) }""",
        1,
    )


def test_the_first_may_not_round() -> None:
    check_refusal(
        MOVE,
        "m (float[2, 6] x) => (float[6, 2] y) { a = Cast <to = 10> (x) b = Transpose (a) y = Cast <to = 1> (b) }",
        "the Cast from FLOAT to FLOAT16 may lose something",
    )


def test_after_what_takes_a_part() -> None:
    check_rewrite(
        MOVE,
        """m (int64[4, 6] x) => (float[2, 6] y) <int64[2] i = {3, 0}> { a = Cast <to = 1> (x) y = Gather (a, i) }""",
        """m (int64[4, 6] x) => (float[2, 6] y) <int64[2] i = {3, 0}> { a = Gather (x, i) y = Cast <to = 1> (a) }""",
        1,
    )


def test_before_what_takes_more() -> None:
    check_refusal(
        MOVE,
        """m (int64[2] x) => (float[3] y) <int64[3] i = {1, 0, 0}> { a = Cast <to = 1> (x) y = Gather (a, i) }""",
        "the part is not known to be smaller",
    )


def test_before_what_repeats() -> None:
    check_rewrite(
        MOVE,
        """m (bool[1, 6] x) => (float[4, 6] y) <int64[2] s = {4, 1}> { a = Expand (x, s) y = Cast <to = 1> (a) }""",
        """m (bool[1, 6] x) => (float[4, 6] y) <int64[2] s = {4, 1}> { a = Cast <to = 1> (x) y = Expand (a, s) }""",
        1,
    )


def test_after_concat() -> None:
    check_rewrite(
        MOVE,
        """m (int64[2] a, int64[3] b) => (float[7] y)
        { c = Cast <to = 1> (a) d = Cast <to = 1> (b) y = Concat <axis = 0> (c, d, c) }""",
        "m (int64[2] a, int64[3] b) => (float[7] y) { c = Concat <axis = 0> (a, b, a) y = Cast <to = 1> (c) }",
        1,
    )
    check_refusal(
        MOVE,
        """m (int64[2] a, int32[3] b) => (float[5] y)
        { c = Cast <to = 1> (a) d = Cast <to = 1> (b) y = Concat <axis = 0> (c, d) }""",
        "the operands are not Casts from one type",
    )


def test_types_that_are_not_moved_everywhere() -> None:
    check_refusal(
        MOVE,
        "m (float[1, 6] x) => (bfloat16[4, 6] y) <int64[2] s = {4, 1}> { a = Expand (x, s) y = Cast <to = 16> (a) }",
        "moving elements of BFLOAT16",
    )
