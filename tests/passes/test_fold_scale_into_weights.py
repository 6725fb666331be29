"""Scales and shifts by constants folded into weights and biases."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.fold_scale_into_weights import FoldScaleIntoWeights
from tests.helpers import check_refusal, check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

FOLD = FoldScaleIntoWeights()
CONV = "g (float[N, 2, 3] X) => (float[N, 2, 3] Y) <float[2, 2, 1] W = {1.0, 2.0, 3.0, 4.0}, float[2] b = {10.0, 20.0}"


# --- after -----------------------------------------------------------------------------------------------------------


def test_scale_and_shift_of_a_convolution() -> None:
    # The shift must be kept: s (W x + b) + t = (s W) x + (s b + t).
    check_rewrite(
        FOLD,
        CONV
        + """, float[1, 2, 1] s = {2.0, -1.0}, float t = {0.5}> {
            c = Conv (X, W, b) d = Mul (s, c) Y = Add (d, t) }""",
        """g (float[N, 2, 3] X) => (float[N, 2, 3] Y)
            <float[2, 2, 1] W = {2.0, 4.0, -3.0, -4.0}, float[2] b = {20.5, -19.5}> { Y = Conv (X, W, b) }""",
        2,
    )


def test_a_shift_becomes_the_bias_and_leaves_the_weight() -> None:
    model = check_rewrite(
        FOLD,
        CONV + ", float[2, 1] t = {0.5, 0.25}> { c = Conv (X, W) Y = Add (c, t) }",
        """g (float[N, 2, 3] X) => (float[N, 2, 3] Y)
            <float[2, 2, 1] W = {1.0, 2.0, 3.0, 4.0}, float[2] b = {0.5, 0.25}> { Y = Conv (X, W, b) }""",
        1,
    )
    assert "W" in model.graph.initializers


@pytest.mark.parametrize(
    "expression", ["Mul (y, c)", "Mul (c, y)", "Div (y, c)", "Add (c, y)", "Sub (y, c)", "Sub (c, y)"]
)
@pytest.mark.parametrize("constant", [(), (1,), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("operator", "weight"),
    [
        ("Conv <group = 2, pads = [1, 0, 0, 1]>", (6, 2, 3, 3)),
        ("ConvTranspose <group = 2, strides = [2, 1]>", (4, 3, 3, 3)),
    ],
)
def test_every_operator_after_a_convolution(
    expression: str, constant: tuple[int, ...], operator: str, weight: tuple[int, ...]
) -> None:
    text = f"g (float[N, 4, 5, 6] X) => (float[N, 6, H, W] Y) {{ y = {operator} (X, w, b) Y = {expression} }}"
    model = with_weights(text, w=normal(*weight), b=normal(6), c=normal(*constant, seed=1) + 3)
    check_change(FOLD, model, 1, [operator.split(maxsplit=1)[0]])


@pytest.mark.parametrize("expression", ["Mul (y, c)", "Div (y, c)", "Add (y, c)", "Sub (c, y)"])
@pytest.mark.parametrize("constant", [(), (1,), (5,), (1, 5), (1, 1)])
@pytest.mark.parametrize("gemm", ["Gemm <alpha = 0.5, beta = 2.0> (X, w, b)", "Gemm <alpha = 3.0> (X, w)"])
def test_every_operator_after_gemm(expression: str, constant: tuple[int, ...], gemm: str) -> None:
    text = f"g (float[N, 4] X) => (float[N, 5] Y) {{ y = {gemm} Y = {expression} }}"
    model = with_weights(text, w=normal(4, 5), b=normal(1, 5), c=normal(*constant, seed=1) + 3)
    check_change(FOLD, model, 1, ["Gemm"])


@pytest.mark.parametrize("constant", [(), (1,), (5,), (1, 1, 5)])
def test_matmul_takes_a_scale_also_across_its_bias(constant: tuple[int, ...]) -> None:
    weights = {"w": normal(4, 5), "b": normal(5), "c": normal(*constant, seed=1)}
    text = "g (float[N, T, 4] X) => (float[N, T, 5] Y) { y = MatMul (X, w) Y = Mul (y, c) }"
    check_change(FOLD, with_weights(text, **weights), 1, ["MatMul"])
    text = "g (float[N, T, 4] X) => (float[N, T, 5] Y) { y = MatMul (X, w) z = Add (b, y) Y = Div (z, c) }"
    check_change(FOLD, with_weights(text, **weights), 1, ["MatMul", "Add"])


def test_a_weight_on_the_left_takes_a_number() -> None:
    text = "g (float[3, 5] X) => (float[4, 5] Y) { y = MatMul (w, X) Y = Div (y, c) }"
    check_change(FOLD, with_weights(text, w=normal(4, 3), c=normal(1)), 1, ["MatMul"])
    check_kept(FOLD, with_weights(text, w=normal(4, 3), c=normal(5)), "'c' is not one number")


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        ((6,), "not one number for each of 5 channels"),  # along the width
        ((1, 5, 6, 1), "not one number for each of 5 channels"),
        ((4, 1, 1, 1), "not one number for each of 5 channels"),  # along the batch
        ((1, 1, 1, 1, 1), "higher rank"),
    ],
)
def test_a_constant_that_varies_elsewhere_or_enlarges_the_result_is_refused(
    constant: tuple[int, ...], reason: str
) -> None:
    text = "g (float[4, 3, 6, 6] X) => (float[4, 5, 6, 6] Y) { y = Conv (X, w) Y = Mul (y, c) }"
    if len(constant) == 5:
        text = text.replace("(float[4, 5", "(float[1, 4, 5")
    check_kept(FOLD, with_weights(text, w=normal(5, 3, 1, 1), c=normal(*constant)), reason)


def test_a_constant_that_broadcasts_one_channel_to_many_is_refused() -> None:
    text = "g (float[N, 3, 6] X) => (float[N, 4, 6] Y) { y = Conv (X, w) Y = Mul (y, c) }"
    check_kept(FOLD, with_weights(text, w=normal(1, 3, 1), c=normal(4, 1)), "not one number for each of 1 channels")


def test_a_bias_that_differs_between_rows_is_refused() -> None:
    text = "g (float[3, 4] X) => (float[3, 5] Y) { y = Gemm (X, w, b) Y = Mul (y, c) }"
    check_kept(FOLD, with_weights(text, w=normal(4, 5), b=normal(3, 1), c=normal(5)), "differs between rows")


def test_a_shift_of_matmul_is_refused() -> None:
    text = "g (float[N, 4] X) => (float[N, 5] Y) { y = MatMul (X, w) Y = Add (y, c) }"
    check_kept(FOLD, with_weights(text, w=normal(4, 5), c=normal(5)), "MatMul has no bias")


def test_a_division_by_zero_and_a_constant_divided_are_refused() -> None:
    check_refusal(FOLD, CONV + ", float c = {0.0}> { y = Conv (X, W) Y = Div (y, c) }", "it divides by zero")
    check_refusal(FOLD, CONV + ", float c = {1.0}> { y = Conv (X, W) Y = Div (c, y) }", "'c' (1) is not computed")


def test_integers_are_refused() -> None:
    text = """g (int32[N, 1] X) => (int32[N, 1] Y) <int32[1, 1] W = {2}, int32 c = {3}> {
        y = MatMul (X, W) Y = Mul (y, c) }"""
    check_refusal(FOLD, text, "its weight is not float")


def test_a_scale_that_is_not_finite_is_refused() -> None:
    text = "g (float[N, 1] X) => (float[N, 1] Y) <float[1, 1] W = {1e30}, float c = {1e30}> {"
    check_refusal(FOLD, text + "y = MatMul (X, W) Y = Mul (y, c) }", "not finite in float32")


# --- before ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["Mul (X, c)", "Div (X, c)", "Sub (X, c)", "Add (c, X)"])
@pytest.mark.parametrize("constant", [(), (4, 1, 1), (1, 4, 1, 1)])
def test_every_operator_before_a_convolution(expression: str, constant: tuple[int, ...]) -> None:
    text = f"g (float[N, 4, 5, 6] X) => (float[N, 6, H, W] Y) {{ y = {expression} Y = Conv <group = 2> (y, w, b) }}"
    model = with_weights(text, w=normal(6, 2, 3, 3), b=normal(6), c=normal(*constant, seed=1) + 3)
    check_change(FOLD, model, 1, ["Conv"])


@pytest.mark.parametrize(
    "operator", ["Conv <pads = [1, 1]>", 'Conv <auto_pad = "SAME_LOWER", strides = [2]>', "ConvTranspose"]
)
def test_padding_with_zeros_takes_a_scale_and_refuses_a_shift(operator: str) -> None:
    text = f"g (float[N, 4, 5] X) => (float[N, 4, L] Y) {{ y = Mul (X, c) Y = {operator} (y, w) }}"
    weights = {"w": normal(4, 4, 3), "c": normal(4, 1)}
    check_change(FOLD, with_weights(text, **weights), 1, [operator.split(maxsplit=1)[0]])
    check_kept(
        FOLD,
        with_weights(text.replace("Mul", "Add"), **weights),
        "a" if "auto" in operator else "zeros" if "pads" in operator else "fewer inputs",
    )


@pytest.mark.parametrize("expression", ["Mul (X, c)", "Sub (X, c)"])
def test_matrices(expression: str) -> None:
    weights = {"w": normal(4, 5), "c": normal(4)}
    text = f"g (float[N, 4] X) => (float[N, 5] Y) {{ y = {expression} Y = Gemm <alpha = 2.0> (y, w) }}"
    check_change(FOLD, with_weights(text, **weights), 1, ["Gemm"])
    text = f"g (float[N, 4] X) => (float[N, 5] Y) {{ y = {expression} Y = MatMul (y, w) }}"
    check_change(FOLD, with_weights(text, **weights), 1, ["MatMul" if "Mul" in expression else "Gemm"])


def test_columns_of_a_transposed_gemm_are_refused() -> None:
    text = "g (float[4, 4] X) => (float[4, 5] Y) { y = Mul (X, c) Y = Gemm <transA = 1> (y, w) }"
    check_kept(FOLD, with_weights(text, w=normal(4, 5), c=normal(4)), "Gemm transposes what is scaled")
    check_change(FOLD, with_weights(text, w=normal(4, 5), c=np.array(2.0)), 1, ["Gemm"])


def test_a_constant_that_makes_the_channels_is_refused() -> None:
    text = "g (float[N, 1, 5] X) => (float[N, 6, 5] Y) { y = Mul (X, c) Y = Conv (y, w) }"
    check_kept(FOLD, with_weights(text, w=normal(6, 4, 1), c=normal(4, 1)), "not known to have 4 channels")


def test_a_constant_that_makes_the_rank_is_refused() -> None:
    text = "g (float[3, 5] X) => (float[1, 6, 5] Y) { y = Mul (X, c) Y = Conv (y, w) }"
    check_kept(FOLD, with_weights(text, w=normal(6, 3, 1), c=normal(1, 1, 1)), "higher rank")


def test_what_others_use_too_is_refused() -> None:
    text = CONV.replace("Y)", "Y, float[N, 2, 3] y)") + ", float c = {2.0}> { y = Conv (X, W) Y = Mul (y, c) }"
    check_refusal(FOLD, text, "'y' is an output of the graph")
