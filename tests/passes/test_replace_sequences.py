"""Sequences and optionals of which every element is known."""

from __future__ import annotations

import pytest

from infconv.passes.replace_sequences import ReplaceSequences
from tests.helpers import check_refusal, check_rewrite

REPLACE = ReplaceSequences()


@pytest.mark.parametrize(("position", "after"), [("0", "y = Exp (a)"), ("-1", "y = Exp (b)")])
def test_an_element(position: str, after: str) -> None:
    head = "m (float[2] a, float[3] b) => (float[N] y)"
    check_rewrite(
        REPLACE,
        f"{head} <int64 i = {{{position}}}> {{ s = SequenceConstruct (a, b) e = SequenceAt (s, i) y = Exp (e) }}",
        f"{head} {{ {after} }}",
        1,
    )


@pytest.mark.parametrize(
    ("sizes", "position", "start", "end"),
    [
        ("int64 l = {4}", "0", "0", "4"),
        ("int64 l = {4}", "2", "8", "10"),
        ("int64 l = {4}", "-1", "8", "10"),
        ("int64[3] l = {3, 5, 2}", "1", "3", "8"),
        ("int64[3] l = {3, 5, 2}", "-1", "8", "10"),
    ],
)
def test_a_piece(sizes: str, position: str, start: str, end: str) -> None:
    head = "m (float[2, 10] x) => (float[2, N] y)"
    check_rewrite(
        REPLACE,
        f"""{head} <{sizes}, int64 i = {{{position}}}>
        {{ s = SplitToSequence <axis = 1> (x, l) y = SequenceAt (s, i) }}""",
        f"""{head} <int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{1}}>
        {{ y = Slice (x, s, e, a) }}""",
        1,
    )


def test_a_piece_without_its_axis() -> None:
    check_rewrite(
        REPLACE,
        """m (float[2, 10] x) => (float[2] y) <int64 i = {-3}>
        { s = SplitToSequence <axis = 1, keepdims = 0> (x) y = SequenceAt (s, i) }""",
        "m (float[2, 10] x) => (float[2] y) <int64 i = {7}> { y = Gather <axis = 1> (x, i) }",
        1,
    )


def test_positions_that_are_not_known() -> None:
    check_refusal(
        REPLACE,
        """m (float[2, n] x) => (float[2, 4] y) <int64 l = {4}, int64 i = {-1}>
        { s = SplitToSequence <axis = 1> (x, l) y = SequenceAt (s, i) }""",
        "the position is not one of the sequence",
    )


@pytest.mark.parametrize(("stacked", "result"), [(0, "[5]"), (1, "[2, 3]")])
def test_joined(stacked: int, result: str) -> None:
    shapes = "float[2] a, float[3] b" if not stacked else "float[3] a, float[3] b"
    nodes = (
        "y = Concat <axis = 0> (a, b)"
        if not stacked
        else "c = Unsqueeze (a, zero) d = Unsqueeze (b, zero) y = Concat <axis = 0> (c, d)"
    )
    check_rewrite(
        REPLACE,
        f"""m ({shapes}) => (float{result} y)
        {{ s = SequenceConstruct (a, b) y = ConcatFromSequence <axis = 0, new_axis = {stacked}> (s) }}""",
        f"m ({shapes}) => (float{result} y) <int64[1] zero = {{0}}> {{ {nodes} }}",
        1,
    )


def test_what_a_loop_that_was_unrolled_leaves() -> None:
    check_rewrite(
        REPLACE,
        """m (float[2] a, float[2] b, float[2] c) => (float[6] y, int64 n) <int64 zero = {0}>
        { e = SequenceEmpty () s = SequenceInsert (e, a) t = SequenceInsert (s, b) u = SequenceInsert (t, c, zero)
          y = ConcatFromSequence <axis = 0> (u) n = SequenceLength (u) }""",
        """m (float[2] a, float[2] b, float[2] c) => (float[6] y, int64 n) <int64 three = {3}>
        { y = Concat <axis = 0> (c, a, b) n = Identity (three) }""",
        5,
    )


def test_optionals() -> None:
    check_rewrite(
        REPLACE,
        "m (float[2] a) => (float[2] y) { o = Optional (a) e = OptionalGetElement (o) y = Exp (e) }",
        "m (float[2] a) => (float[2] y) { y = Exp (a) }",
        1,
    )
