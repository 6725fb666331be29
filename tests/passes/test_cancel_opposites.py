"""Operators in a row of which one undoes the other, or of which one would do."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.cancel_opposites import CancelOpposites
from tests.helpers import apply, check_refusal, check_rewrite, parse

CANCEL = CancelOpposites()


def change(shape: str, result: str, before: str, after: str, constants: str = "", dtype: str = "float") -> None:
    """Check that `before`, nodes from `a` to `b`, becomes `after`, within a model that has other nodes around."""
    frame = f"m (float{shape} x) => ({dtype}{result} y) %s {{ a = Relu (x) %s y = Identity (b) }}"
    check_rewrite(CANCEL, frame % (f"<{constants}>" if constants else "", before), after_frame(frame, after), 1)


def after_frame(frame: str, after: str) -> str:
    constants, _, nodes = after.rpartition(">>")
    return frame % (f"<{constants}>" if constants else "", nodes)


# --- axes ----------------------------------------------------------------------------------------------------------


def test_transposes_that_undo_each_other() -> None:
    change(
        "[2, 3, 4]",
        "[2, 3, 4]",
        "t = Transpose <perm = [1, 2, 0]> (a) u = Transpose <perm = [2, 0, 1]> (t) b = Exp (u)",
        "b = Exp (a)",
    )


def test_two_transposes_are_one() -> None:
    change(
        "[2, 3, 4]",
        "[4, 2, 3]",
        "t = Transpose <perm = [1, 0, 2]> (a) b = Transpose <perm = [2, 1, 0]> (t)",
        "b = Transpose <perm = [2, 0, 1]> (a)",
    )


def test_reversing_twice_needs_no_rank() -> None:
    check_rewrite(
        CANCEL,
        "m (float[2, 3] x) => (float[2, 3] y) { s = Transpose (x) t = Transpose (s) y = Exp (t) }",
        "m (float[2, 3] x) => (float[2, 3] y) { y = Exp (x) }",
        1,
        infer=False,
    )


def test_a_transpose_with_other_users_is_not_done_twice() -> None:
    check_refusal(
        CANCEL,
        """m (float[2, 3, 4] x) => (float[3, 2, 4] s, float[4, 2, 3] y)
        { s = Transpose <perm = [1, 0, 2]> (x) y = Transpose <perm = [2, 1, 0]> (s) }""",
        "'s' is used elsewhere, too",
    )


@pytest.mark.parametrize(
    ("shape", "before"),
    [
        ("[n, 3]", "u = Unsqueeze (a, one) b = Squeeze (u, one)"),
        ("[n, 1, 3]", "u = Squeeze (a, one) b = Unsqueeze (u, one)"),
        ("[2, 3, 4]", "u = Flatten (a) b = Reshape (u, cube)"),
        ("[n, 3, 4]", "u = Reshape (a, rows) b = Reshape (u, back)"),
        ("[n, 3, 4]", "u = Flatten <axis = 2> (a) b = Reshape (u, back)"),
        ("[1, n, 1]", "u = Transpose <perm = [1, 0, 2]> (a) v = Squeeze (u, one) b = Unsqueeze (v, zero)"),
    ],
)
def test_reshapes_that_undo_each_other(shape: str, before: str) -> None:
    constants = """int64[1] one = {1}, int64[1] zero = {0}, int64[3] cube = {2, 3, 4}, int64[2] rows = {-1, 4},
        int64[3] back = {-1, 3, 4}"""
    frame = f"m (float{shape} x) => (float{shape} y) %s {{ a = Relu (x) %s y = Exp (b) }}"
    check_rewrite(
        CANCEL,
        frame % (f"<{constants}>", before),
        f"m (float{shape} x) => (float{shape} y) {{ a = Relu (x) y = Exp (a) }}",
        before.count("=") // 2 if "Transpose" in before else 1,
    )


@pytest.mark.parametrize(
    ("shape", "result", "before", "after"),
    [
        ("[2, n]", "[2, 1, n, 1]", "u = Unsqueeze (a, one) b = Unsqueeze (u, three)", "[2] p = {1, 3}>>b = Unsqueeze"),
        ("[2, n]", "[1, 1, 2, n]", "u = Unsqueeze (a, zero) b = Unsqueeze (u, one)", "[2] p = {0, 1}>>b = Unsqueeze"),
        ("[2, n]", "[1, 1, 2, n]", "u = Unsqueeze (a, zero) b = Unsqueeze (u, zero)", "[2] p = {0, 1}>>b = Unsqueeze"),
        ("[1, n, 1]", "[n]", "u = Squeeze (a, zero) b = Squeeze (u, one)", "[2] p = {0, 2}>>b = Squeeze"),
        ("[n, 1, 1]", "[n]", "u = Squeeze (a, one) b = Squeeze (u, minus)", "[2] p = {1, 2}>>b = Squeeze"),
        ("[n, 2, 3]", "[m, 2]", "u = Flatten (a) b = Reshape (u, pairs)", "[2] s = {-1, 2}>>b = Reshape"),
        ("[n, 2, 3]", "[n, 3, 2]", "u = Flatten (a) b = Reshape (u, copy)", "[3] s = {0, -1, 2}>>b = Reshape"),
        ("[n, 6]", "[n, 2, 3, 1]", "u = Reshape (a, cube) b = Unsqueeze (u, three)", "[4] s = {0,2,3,1}>>b = Reshape"),
        ("[n, 6, 1, 1]", "[n, 2, 3]", "u = Flatten (a) b = Reshape (u, cube)", "[3] s = {0, 2, 3}>>b = Reshape"),
    ],
)  # fmt: skip
def test_two_reshapes_are_one(shape: str, result: str, before: str, after: str) -> None:
    constants = """int64[1] one = {1}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] minus = {-1},
        int64[2] pairs = {-1, 2}, int64[3] copy = {0, -1, 2}, int64[3] cube = {0, 2, 3}"""
    name = "p" if "[2] p" in after else "s"
    change(shape, result, before, f"int64{after} (a, {name})", constants)


def test_a_zero_that_copies_another_dimension_stays() -> None:
    check_refusal(
        CANCEL,
        """m (float[n, k, 2] x) => (float[n, m, 1] y) <int64[2] s = {0, -1}, int64[3] t = {0, 0, 1}>
        { v = Reshape (x, s) y = Reshape (v, t) }""",
        "a constant cannot say which shape results",
    )


def test_a_literal_zero_is_not_copied() -> None:
    check_rewrite(
        CANCEL,
        """m (float[0, 4] x) => (float[0, 3] y) <int64[1] s = {-1}, int64[2] t = {0, 3}>
        { u = Reshape (x, s) y = Reshape <allowzero = 1> (u, t) }""",
        "m (float[0, 4] x) => (float[0, 3] y) <int64[2] t = {0, 3}> { y = Reshape <allowzero = 1> (x, t) }",
        1,
        inputs={"x": np.zeros((0, 4), np.float32)},
    )


def test_an_empty_batch_has_no_minus_one() -> None:
    check_refusal(
        CANCEL,
        """m (float[n, k, l] x) => (float[n, k, l] y) <int64[1] axis = {0}>
        { u = Unsqueeze (x, axis) v = Flatten <axis = 3> (u) y = Unsqueeze (v, axis) }""",
        "a constant cannot say which shape results",
    )


# --- pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("1, 9", "2, 4", "3, 5"),
        ("1, 5", "2, 99", "3, 5"),
        ("1, 99", "2, 99", "3, 99"),
    ],
)
def test_slices_of_one_axis_whose_size_is_not_known(first: str, second: str, merged: str) -> None:
    far = str((1 << 63) - 1)
    numbers = [n.replace("99", far).split(", ") for n in (first, second, merged)]
    constants = [f"int64[1] s{i} = {{{s}}}, int64[1] e{i} = {{{e}}}" for i, (s, e) in enumerate(numbers)]
    head = "m (float[2, n] x) => (float[2, m] y)"
    check_rewrite(
        CANCEL,
        f"{head} <{constants[0]}, {constants[1]}, int64[1] axis = {{-1}}> "
        "{ a = Slice (x, s0, e0, axis) y = Slice (a, s1, e1, axis) }",
        f"{head} <{constants[2]}, int64[1] axis = {{1}}> {{ y = Slice (x, s2, e2, axis) }}",
        1,
        inputs={"x": np.arange(24, dtype=np.float32).reshape(2, 12)},
    )


def test_slices_of_several_axes() -> None:
    check_rewrite(
        CANCEL,
        """m (float[8, 9] x) => (float[3, 4] y)
        <int64[1] s = {6}, int64[1] e = {-9}, int64[1] zero = {0}, int64[1] back = {-2}, int64[2] t = {0, 1},
         int64[2] f = {3, 5}> { a = Slice (x, s, e, zero, back) y = Slice (a, t, f) }""",
        """m (float[8, 9] x) => (float[3, 4] y)
        <int64[2] s = {6, 1}, int64[2] e = {0, 5}, int64[2] axes = {0, 1}, int64[2] steps = {-2, 1}>
        { y = Slice (x, s, e, axes, steps) }""",
        1,
    )


def test_indices_of_indices() -> None:
    check_rewrite(
        CANCEL,
        """m (float[2, 5] x) => (float[2, 2, 1] y) <int64[3] i = {4, -2, 0}, int64[2, 1] j = {-1, 0}>
        { a = Gather <axis = 1> (x, i) y = Gather <axis = 1> (a, j) }""",
        """m (float[2, 5] x) => (float[2, 2, 1] y) <int64[2, 1] i = {0, 4}> { y = Gather <axis = 1> (x, i) }""",
        1,
    )


@pytest.mark.parametrize(
    "before",
    [
        "a = Slice (x, two, three, one) y = Squeeze (a, one)",
        "a = Gather <axis = 1> (x, two) y = Squeeze (a, minus)",
    ],
)
def test_one_position_without_its_axis(before: str) -> None:
    constants = "<int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] minus = {-2}>"
    head = "m (float[2, 5, 3] x) => (float[2, 3] y)"
    check_rewrite(
        CANCEL, f"{head} {constants} {{ {before} }}", f"{head} <int64 i = {{2}}> {{ y = Gather <axis = 1> (x, i) }}", 1
    )


def test_one_position_and_its_axis_again() -> None:
    check_rewrite(
        CANCEL,
        """m (float[2, 5, 3] x) => (float[2, 1, 3] y) <int64 i = {3}, int64[1] axis = {1}>
        { a = Gather <axis = 1> (x, i) y = Unsqueeze (a, axis) }""",
        "m (float[2, 5, 3] x) => (float[2, 1, 3] y) <int64[1] i = {3}> { y = Gather <axis = 1> (x, i) }",
        1,
    )


# --- parts ---------------------------------------------------------------------------------------------------------


def test_a_split_that_is_joined_again() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 6] x) => (float[n, 6] y, float[n, 2] z) <int64[3] sizes = {2, 1, 3}>
        { a, b, c = Split <axis = 1> (x, sizes) d = Concat <axis = -1> (a, b, c) y = Exp (d) z = Exp (a) }""",
        """m (float[n, 6] x) => (float[n, 6] y, float[n, 2] z) <int64[3] sizes = {2, 1, 3}>
        { a, b, c = Split <axis = 1> (x, sizes) y = Exp (x) z = Exp (a) }""",
        1,
    )


def test_parts_in_another_order_stay() -> None:
    check_refusal(
        CANCEL,
        """m (float[4] x) => (float[4] y) { a, b = Split <num_outputs = 2> (x) y = Concat <axis = 0> (b, a) }""",
        "in their order",
    )


def test_a_concat_that_is_split_again() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 2] p, float[n, 3] q) => (float[n, 2] y, float[n, 3] z) <int64[2] sizes = {2, 3}>
        { a = Concat <axis = 1> (p, q) b, c = Split <axis = 1> (a, sizes) y = Exp (b) z = Exp (c) }""",
        "m (float[n, 2] p, float[n, 3] q) => (float[n, 2] y, float[n, 3] z) { y = Exp (p) z = Exp (q) }",
        1,
    )
    check_refusal(
        CANCEL,
        """m (float[n, 2] p, float[n, 4] q) => (float[n, 3] y, float[n, 3] z)
        { a = Concat <axis = 1> (p, q) y, z = Split <axis = 1, num_outputs = 2> (a) }""",
        "may have different sizes",
    )


def test_one_part_of_a_concat() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 2] p, float[n, 3] q) => (float[n, 3] y, float[n, 5] w)
        <int64[1] two = {2}, int64[1] far = {99}, int64[1] one = {1}>
        { w = Concat <axis = 1> (p, q) b = Slice (w, two, far, one) y = Exp (b) }""",
        """m (float[n, 2] p, float[n, 3] q) => (float[n, 3] y, float[n, 5] w)
        { y = Exp (q) w = Concat <axis = 1> (p, q) }""",
        1,
    )


def test_concats_in_concats() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 2] p, float[n, 3] q) => (float[n, 10] y)
        { a = Concat <axis = -1> (p, q) y = Concat <axis = 1> (a, a) }""",
        "m (float[n, 2] p, float[n, 3] q) => (float[n, 10] y) { y = Concat <axis = 1> (p, q, p, q) }",
        1,
    )


# --- repetition ----------------------------------------------------------------------------------------------------


def test_expand_and_tile() -> None:
    check_rewrite(
        CANCEL,
        """m (float[2, 1] x) => (float[2, 3] y, float[4, 6] z)
        <int64[1] s = {3}, int64[2] t = {2, 1}, int64[2] r = {2, 2}, int64[2] q = {1, 3}>
        { a = Expand (x, s) y = Expand (a, t) b = Tile (x, r) z = Tile (b, q) }""",
        """m (float[2, 1] x) => (float[2, 3] y, float[4, 6] z) <int64[2] s = {2, 3}, int64[2] r = {2, 6}>
        { y = Expand (x, s) z = Tile (x, r) }""",
        2,
    )


@pytest.mark.parametrize(
    ("source", "middle", "result", "number"),
    [("float16", 1, "double", 11), ("int32", 7, "int8", 3), ("int8", 1, "int64", 7), ("bool", 7, "float", 1)],
)
def test_a_cast_to_a_wider_type_goes(source: str, middle: int, result: str, number: int) -> None:
    check_rewrite(
        CANCEL,
        f"m ({source}[4] x) => ({result}[4] y) {{ a = Cast <to = {middle}> (x) y = Cast <to = {number}> (a) }}",
        f"m ({source}[4] x) => ({result}[4] y) {{ y = Cast <to = {number}> (x) }}",
        1,
    )


def test_there_and_back() -> None:
    check_rewrite(
        CANCEL,
        "m (int32[4] x) => (int32[4] y) { r = Neg (x) a = Cast <to = 11> (r) b = Cast <to = 6> (a) y = Abs (b) }",
        "m (int32[4] x) => (int32[4] y) { r = Neg (x) y = Abs (r) }",
        1,
    )


@pytest.mark.parametrize(("source", "middle"), [("float", 10), ("float", 7), ("int64", 1), ("int32", 1), ("int64", 6)])
def test_a_cast_to_a_narrower_type_rounds(source: str, middle: int) -> None:
    back = {"float": 1, "int64": 7, "int32": 6}[source]
    check_refusal(
        CANCEL,
        f"m ({source}[4] x) => ({source}[4] y) {{ a = Cast <to = {middle}> (x) y = Cast <to = {back}> (a) }}",
        "may lose something",
    )


def test_quantization_rounds() -> None:
    text = """m (float[4] x) => (float[4] y) <float s = {0.1}, uint8 z = {3}>
        { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"""
    assert apply(CANCEL, parse(text)) == 0


# --- through reshapes, and rolls -----------------------------------------------------------------------------------


def test_a_transpose_while_axes_are_joined() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 8, 17, 16] x) => (float[n, 8, 16, 17] y)
        <int64[3] rows = {-1, 17, 16}, int64[4] back = {-1, 8, 16, 17}>
        { a = Reshape (x, rows) b = Transpose <perm = [0, 2, 1]> (a) y = Reshape (b, back) }""",
        "m (float[n, 8, 17, 16] x) => (float[n, 8, 16, 17] y) { y = Transpose <perm = [0, 1, 3, 2]> (x) }",
        1,
    )


def test_a_transpose_while_axes_are_split() -> None:
    check_rewrite(
        CANCEL,
        """m (float[6, 4, 5] x) => (float[5, 24] y) <int64[5] s = {1, 2, 3, 4, 5}, int64[2] t = {5, 24}>
        { a = Reshape (x, s) b = Transpose <perm = [4, 1, 2, 3, 0]> (a) y = Reshape (b, t) }""",
        """m (float[6, 4, 5] x) => (float[5, 24] y) <int64[2] t = {5, 24}>
        { a = Transpose <perm = [2, 0, 1]> (x) y = Reshape (a, t) }""",
        1,
    )


def test_a_transpose_that_tears_axes_apart_stays() -> None:
    check_refusal(
        CANCEL,
        """m (float[6, 5] x) => (float[2, 15] y) <int64[3] s = {3, 2, 5}, int64[2] t = {2, 15}>
        { a = Reshape (x, s) b = Transpose <perm = [1, 0, 2]> (a) y = Reshape (b, t) }""",
        "axes that are reshaped together are transposed apart",
    )


def test_a_roll_is_one_gather() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 5, 8] x) => (float[n, 5, 8] y)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] far = {9223372036854775807}, int64[1] one = {1}>
        { a = Slice (x, two, far, one) b = Slice (x, zero, two, one) y = Concat <axis = 1> (a, b) }""",
        """m (float[n, 5, 8] x) => (float[n, 5, 8] y) <int64[5] i = {2, 3, 4, 0, 1}>
        { y = Gather <axis = 1> (x, i) }""",
        1,
    )


def test_slices_that_follow_each_other() -> None:
    check_rewrite(
        CANCEL,
        """m (float[n, 6] x) => (float[n, 6] y, float[n, 3] z)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] far = {99}, int64[1] one = {1}>
        { a = Slice (x, zero, two, one) b = Slice (x, two, far, one) c = Concat <axis = 1> (a, b) y = Exp (c)
          d = Slice (x, one, two, one) e = Slice (x, two, four, one) z = Concat <axis = -1> (d, e) }""",
        """m (float[n, 6] x) => (float[n, 6] y, float[n, 3] z) <int64[1] s = {1}, int64[1] e = {4}, int64[1] one = {1}>
        { y = Exp (x) z = Slice (x, s, e, one) }""",
        2,
    )


def test_a_roll_of_single_elements_stays() -> None:
    check_refusal(
        CANCEL,
        """m (float[n, 5] x) => (float[n, 5] y)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] far = {99}, int64[1] one = {1}>
        { a = Slice (x, two, far, one) b = Slice (x, zero, two, one) y = Concat <axis = 1> (a, b) }""",
        "a Gather would copy too few elements at a time",
    )


def test_padding_with_an_axis_that_is_not_padded() -> None:
    """Paddle pads images as volumes of one slice."""
    check_rewrite(
        CANCEL,
        """m (float[n, 2, 4, 5] x) => (float[n, 2, 7, 5] y)
        <int64[1] axis = {2}, int64[10] p = {0, 0, 0, 1, 0, 0, 0, 0, 2, 0}, float v = {0.5}>
        { u = Unsqueeze (x, axis) q = Pad (u, p, v) y = Squeeze (q, axis) }""",
        """m (float[n, 2, 4, 5] x) => (float[n, 2, 7, 5] y) <int64[8] p = {0, 0, 1, 0, 0, 0, 2, 0}, float v = {0.5}>
        { y = Pad (x, p, v) }""",
        1,
    )


@pytest.mark.parametrize(
    ("pads", "gone", "reason"),
    [
        ("{0, 0, 0, 2, 0, 0, 0, 0, -2, 0}", "gone", "or they are padded"),
        ("{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}", "other", "other axes are added than taken away"),
    ],
)
def test_padding_of_an_axis_that_is_added(pads: str, gone: str, reason: str) -> None:
    check_refusal(
        CANCEL,
        f"""m (float[n, 1, 1, 5] x) => (float[a, b, c, d] y)
        <int64[1] gone = {{3}}, int64[1] other = {{1}}, int64[10] p = {pads}>
        {{ u = Unsqueeze (x, gone) q = Pad (u, p) y = Squeeze (q, {gone}) }}""",
        reason,
    )
