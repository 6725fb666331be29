"""Parts taken before computing, and repetitions made after it."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.move_slices import MoveSlices
from tests.helpers import check_refusal, check_rewrite
from tests.passes.weighted import check_change, with_weights

MOVE = MoveSlices()
CONSTANTS = """<int64[1] zero = {0}, int64[1] two = {2}, int64[1] one = {1}, int64 i = {1}, float[3] v = {1, 2, 3},
    float[4, 1] w = {1, 2, 3, 4}, float[1, 4, 1] u = {1, 2, 3, 4}>"""


@pytest.mark.parametrize(
    ("before", "after", "result", "changes"),
    [
        ("a = Relu (x) b = Exp (a) y = Slice (b, zero, two, one)",
         "c = Slice (x, zero, two, one) a = Relu (c) y = Exp (a)", "[n, 2, 3]", 2),
        ("a = Relu (x) y = Gather <axis = 1> (a, i)", "c = Gather <axis = 1> (x, i) y = Relu (c)", "[n, 3]", 1),
        ("a = Mul (x, v) y = Gather <axis = 1> (a, i)", "c = Gather <axis = 1> (x, i) y = Mul (c, v)", "[n, 3]", 1),
        ("a = Mul (x, x) y = Gather <axis = 1> (a, i)", "c = Gather <axis = 1> (x, i) y = Mul (c, c)", "[n, 3]", 1),
        ("a = Softmax (x) y = Gather <axis = 1> (a, i)",
         "c = Gather <axis = 1> (x, i) y = Softmax <axis = 1> (c)", "[n, 3]", 1),
        ("a = LayerNormalization (x, v) y = Gather <axis = 0> (a, i)",
         "c = Gather <axis = 0> (x, i) y = LayerNormalization <axis = 1> (c, v)", "[4, 3]", 1),
    ],
)  # fmt: skip
def test_a_part_is_taken_early(before: str, after: str, result: str, changes: int) -> None:
    head = f"m (float[n, 4, 3] x) => (float{result} y)"
    check_rewrite(MOVE, f"{head} {CONSTANTS} {{ {before} }}", f"{head} {CONSTANTS} {{ {after} }}", changes)


def test_only_the_rows_that_are_needed_are_multiplied() -> None:
    model = with_weights(
        """m (float[n, 5, 6] x) => (float[n, 3] y) <int64 i = {0}>
        { a = MatMul (x, w) b = Add (a, v) y = Gather <axis = 1> (b, i) }""",
        w=np.linspace(-1, 1, 18).reshape(6, 3),
        v=np.array([1.0, 2.0, 3.0]),
    )
    check_change(MOVE, model, 2, ["Gather", "MatMul", "Add"])


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("a = Softmax <axis = 1> (x) y = Gather <axis = 1> (a, i)", "it normalizes along the axis"),
        ("a = Mul (x, w) y = Gather <axis = 1> (a, i)", "a constant varies along the axis"),
        ("a = Mul (x, u) y = Slice (a, zero, one, one)", "a constant varies along the axis"),
        ("a = Relu (x) y = Slice (a, one, two)", "the part is not known to be smaller"),
        ("a = Relu (x) b = Gather <axis = 1> (a, i) c = Gather <axis = 1> (a, i) y = Add (b, c)", "has 2 users"),
        ("a = Add (x, z) y = Gather <axis = 1> (a, i)", "the operand is not one tensor"),
    ],
)
def test_what_needs_the_whole(nodes: str, reason: str) -> None:
    nodes = nodes.replace("y =", "q =")
    text = f"m (float[n, 4, 3] x, float[4, 3] z) => (int64[r] y) {CONSTANTS} {{ {nodes} y = Shape (q) }}"
    check_refusal(MOVE, text, reason)


def test_a_constant_with_the_axis_that_goes() -> None:
    check_refusal(
        MOVE,
        """m (float[n, 4, 3] x) => (float[n, 3] y) <int64 i = {1}, float[1, 1, 3] c = {1, 2, 3}>
        { a = Mul (x, c) y = Gather <axis = 1> (a, i) }""",
        "a constant has the axis that goes",
    )


def test_repetition_comes_late() -> None:
    check_rewrite(
        MOVE,
        """m (float[1, 3] x) => (float[4, 3] y) <int64[2] s = {4, 1}, float c = {2}>
        { a = Expand (x, s) b = Neg (a) y = Mul (c, b) }""",
        """m (float[1, 3] x) => (float[4, 3] y) <int64[2] s = {4, 1}, float c = {2}>
        { b = Neg (x) d = Mul (c, b) y = Expand (d, s) }""",
        2,
    )
