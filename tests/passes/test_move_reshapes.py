"""Reshapes moved to where they cancel."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.move_reshapes import MoveReshapes
from tests.helpers import check_refusal, check_rewrite
from tests.passes.weighted import check_change, with_weights

MOVE = MoveReshapes()


def test_around_element_wise_operators() -> None:
    check_rewrite(
        MOVE,
        """m (float[n, 4, 6] x) => (float[n, 4, 6] y)
        <int64[2] rows = {-1, 6}, int64[3] back = {-1, 4, 6}, float c = {2}>
        { a = Reshape (x, rows) b = Relu (a) d = Mul (c, b) y = Reshape (d, back) }""",
        "m (float[n, 4, 6] x) => (float[n, 4, 6] y) <float c = {2}> { b = Relu (x) y = Mul (c, b) }",
        1,
    )


def test_two_that_become_one() -> None:
    check_rewrite(
        MOVE,
        """m (float[2, 4, 6] x) => (float[8, 6] y) <int64[2] s = {4, 12}, int64[2] t = {8, 6}>
        { a = Reshape (x, s) b = Cast <to = 10> (a) c = Cast <to = 1> (b) y = Reshape (c, t) }""",
        """m (float[2, 4, 6] x) => (float[8, 6] y) <int64[2] t = {8, 6}>
        { b = Cast <to = 10> (x) c = Cast <to = 1> (b) y = Reshape (c, t) }""",
        1,
    )


def test_squeezed_for_a_while() -> None:
    check_rewrite(
        MOVE,
        """m (float[n, 1, 6] x) => (float[n, 1, 6] y) <int64[1] one = {1}>
        { a = Squeeze (x, one) b = Tanh (a) y = Unsqueeze (b, one) }""",
        "m (float[n, 1, 6] x) => (float[n, 1, 6] y) { y = Tanh (x) }",
        1,
    )


@pytest.mark.parametrize(
    ("product", "ops"),
    [
        ("h = Gemm (a, w, b)", ["MatMul", "Add"]),
        ("h = Gemm (a, w)", ["MatMul"]),
        ("g = MatMul (a, w) h = Add (b, g)", ["MatMul", "Add"]),
        ("g = MatMul (a, w) h = Softmax (g)", ["MatMul", "Softmax"]),
        ("g = MatMul (a, w) h = LayerNormalization <axis = 1> (g, b)", ["MatMul", "LayerNormalization"]),
    ],
)
def test_products_of_rows(product: str, ops: list[str]) -> None:
    model = with_weights(
        f"""m (float[n, 4, 6] x) => (float[n, 4, 3] y) <int64[2] rows = {{-1, 6}}, int64[3] back = {{-1, 4, 3}}>
        {{ a = Reshape (x, rows) {product} y = Reshape (h, back) }}""",
        w=np.linspace(-1, 1, 18).reshape(6, 3),
        b=np.array([1.0, 2.0, 3.0]),
    )
    check_change(MOVE, model, 1, ops)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("b = ReduceSum (a, one) y = Reshape (b, back)", "ReduceSum may depend on the shape"),
        ("b = Softmax <axis = 0> (a) y = Reshape (b, back)", "Softmax may depend on the shape"),
        ("b = Mul (a, v) y = Reshape (b, back)", "may depend on the shape"),
        ("b = Softmax (a) y = Reshape (b, other)", "the shape [2, 3, 4] becomes [2, 2, 6]"),
        (
            "b = Relu (a) c = Exp (b) d = Reshape (b, back) e = Reshape (c, back) y = Concat <axis = 0> (d, e)",
            "is used elsewhere",
        ),
    ],
)
def test_what_minds_the_shape(nodes: str, reason: str) -> None:
    constants = """<int64[2] rows = {6, 4}, int64[3] back = {2, 3, 4}, int64[1] one = {1}, int64[3] other = {2, 2, 6},
        float[6, 1] v = {1, 2, 3, 4, 5, 6}>"""
    size = "[1, 2, 3]" if "ReduceSum" in nodes else "[a, b, c]"
    if "ReduceSum" in nodes:
        constants = constants.replace("{2, 3, 4}", "{1, 2, 3}")
    check_refusal(
        MOVE, f"m (float[2, 3, 4] x) => (float{size} y) {constants} {{ a = Reshape (x, rows) {nodes} }}", reason
    )


def test_operands_that_are_reshaped_alike() -> None:
    check_rewrite(
        MOVE,
        """m (float[2, 6] a, float[2, 6] b) => (float[3, 4] y) <int64[2] s = {3, 4}, int64[2] t = {3, -1}>
        { c = Reshape (a, s) d = Reshape (b, t) y = Sub (c, d) }""",
        """m (float[2, 6] a, float[2, 6] b) => (float[3, 4] y) <int64[2] s = {3, 4}>
        { c = Sub (a, b) y = Reshape (c, s) }""",
        1,
    )
    check_refusal(
        MOVE,
        """m (float[2, 6] a, float[6, 2] b) => (float[3, 4] y) <int64[2] s = {3, 4}>
        { c = Reshape (a, s) d = Reshape (b, s) y = Sub (c, d) }""",
        "the operands are not known to be reshaped alike",
    )


STACKS = "m (float[n, 4, 5, 6] x, float[n, 4, 6, 7] z) => (float[n, 4, 5, 7] y)"
JOINED = "<int64[3] a = {-1, 5, 6}, int64[3] b = {-1, 6, 7}, int64[4] c = {-1, 4, 5, 7}>"


def test_products_of_stacks_of_matrices() -> None:
    """torch.export takes a product of rank 4 apart to one of rank 3."""
    check_rewrite(
        MOVE,
        f"{STACKS} {JOINED} {{ u = Reshape (x, a) v = Reshape (z, b) p = MatMul (u, v) y = Reshape (p, c) }}",
        f"{STACKS} {{ y = MatMul (x, z) }}",
        1,
    )


@pytest.mark.parametrize(
    ("head", "nodes", "reason"),
    [
        (
            "m (float[n, 4, 6, 5] x, float[n, 4, 6, 7] z) => (float[n, 4, 5, 7] y)",
            "u = Reshape (x, a) v = Reshape (z, b) p = MatMul (u, v) y = Reshape (p, c)",
            "no stack of the same matrices",
        ),
        (
            "m (float[2, 4, 5, 6] x, float[1, 8, 6, 7] z) => (float[2, 4, 5, 7] y)",
            "u = Reshape (x, a) v = Reshape (z, b) p = MatMul (u, v) y = Reshape (p, c)",
            "the stack [1, 8] becomes [2, 4]",
        ),
    ],
)
def test_other_products_keep_their_reshapes(head: str, nodes: str, reason: str) -> None:
    check_refusal(MOVE, f"{head} {JOINED} {{ {nodes} }}", reason)
