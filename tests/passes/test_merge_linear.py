"""Consecutive linear maps merged where that is less."""

from __future__ import annotations

import pytest

from infconv.passes.merge_linear import MergeLinear
from tests.helpers import check_refusal, check_rewrite
from tests.passes.weighted import check_change, check_kept, normal, with_weights

MERGE = MergeLinear()
HEAD = "g (float[N, 2] X) => (float[N, 2] Y) <float[2] a = {1.0, 2.0}, float b = {4.0}, float[2] c = {8.0, -8.0}"


# --- element-wise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "values"),
    [
        ("Add (X, a) Y = Add (b, z)", "Add (X, k)", "{5.0, 6.0}"),
        ("Sub (X, a) Y = Add (z, c)", "Add (X, k)", "{7.0, -10.0}"),
        ("Sub (a, X) Y = Sub (z, b)", "Sub (k, X)", "{-3.0, -2.0}"),
        ("Sub (a, X) Y = Sub (c, z)", "Add (X, k)", "{7.0, -10.0}"),
        ("Mul (X, a) Y = Mul (c, z)", "Mul (X, k)", "{8.0, -16.0}"),
        ("Div (X, b) Y = Mul (z, c)", "Mul (X, k)", "{2.0, -2.0}"),
    ],
)
def test_two_of_a_kind_are_one(before: str, after: str, values: str) -> None:
    result = f"g (float[N, 2] X) => (float[N, 2] Y) <float[2] k = {values}> {{ Y = {after} }}"
    check_rewrite(MERGE, f"{HEAD}> {{ z = {before} }}", result, 1)


@pytest.mark.parametrize(
    ("before", "scale", "shift"),
    [
        ("s = Mul (X, a) t = Add (s, b) Y = Mul (c, t)", "float[2] s = {8.0, -16.0}", "float[2] t = {32.0, -32.0}"),
        ("s = Sub (X, a) t = Div (s, b) Y = Add (t, c)", "float s = {0.25}", "float[2] t = {7.75, -8.5}"),
    ],
)
def test_three_are_two(before: str, scale: str, shift: str) -> None:
    after = f"g (float[N, 2] X) => (float[N, 2] Y) <{scale}, {shift}> {{ m = Mul (X, s) Y = Add (m, t) }}"
    check_rewrite(MERGE, f"{HEAD}> {{ {before} }}", after, 1)


def test_long_chains_end_in_two() -> None:
    text = "g (float[N, 4] X) => (float[N, 4] Y) { " + "".join(
        f"{'abcdefgh'[i]} = {op} ({'Xabcdefg'[i]}, k{i}) "
        for i, op in enumerate(["Add", "Mul", "Mul", "Sub", "Div", "Add", "Add", "Mul"])
    )
    model = with_weights(text[:-1] + " Y = Identity (h) }", **{f"k{i}": normal(4, seed=i) + 3 for i in range(8)})
    check_change(MERGE, model, 6, ["Mul", "Add", "Identity"])


def test_integers_wrap_around() -> None:
    check_rewrite(
        MERGE,
        "g (int8[N] X) => (int8[N] Y) <int8 a = {100}> { z = Mul (X, a) Y = Mul (z, a) }",
        "g (int8[N] X) => (int8[N] Y) <int8 k = {16}> { Y = Mul (X, k) }",
        1,
        compare=False,
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<int64 a = {3}> { z = Div (X, a) Y = Div (z, a) }", "integers are divided with a rest"),
        ("<int64 a = {3}> { z = Add (X, a) Y = Mul (z, a) }", "one adds and the other multiplies"),
    ],
)
def test_integers_that_are_not_merged(text: str, reason: str) -> None:
    check_refusal(MERGE, "g (int64[N] X) => (int64[N] Y) " + text, reason)


def test_what_would_not_be_finite_or_vanish_is_refused() -> None:
    text = "g (float[N] X) => (float[N] Y) <float a = {1e30}> { z = Mul (X, a) Y = Mul (z, a) }"
    check_refusal(MERGE, text, "not finite in float32")
    check_refusal(MERGE, text.replace("1e30", "1e-30"), "too small for float32")
    check_refusal(MERGE, text.replace("1e30", "0.0").replace("Mul", "Div"), "it divides by zero")


@pytest.mark.parametrize("text", ["z = Add (X, c) Y = Sub (z, c)", "s = Mul (X, b) z = Add (s, c) Y = Sub (z, c)"])
def test_adding_and_taking_away_a_large_number_rounds(text: str) -> None:
    """2²³ + x - 2²³ is how x is rounded to an integer without an operator for it."""
    head = "g (float[N, 2] X) => (float[N, 2] Y) <float b = {4.0}, float c = {8388608.0}>"
    check_refusal(MERGE, f"{head} {{ {text} }}", "a large number is added and taken away again")


def test_constants_that_grow_are_refused() -> None:
    text = "g (float[N, 4, 5] X) => (float[N, 4, 5] Y) { z = Add (X, a) Y = Add (z, b) }"
    check_kept(MERGE, with_weights(text, a=normal(4, 1), b=normal(5)), "larger than each of them")


# --- matrices --------------------------------------------------------------------------------------------------------


def test_matrices_that_bottleneck_nothing_are_one() -> None:
    text = "g (float[N, T, 4] X) => (float[N, T, 3] Y) { z = MatMul (X, a) Y = MatMul (z, b) }"
    check_change(MERGE, with_weights(text, a=normal(4, 8), b=normal(8, 3)), 1, ["MatMul"])


def test_the_bias_between_them_goes_through_the_second() -> None:
    text = """g (float[N, T, 4] X) => (float[N, T, 3] Y) {
        z = MatMul (X, a) s = Add (z, c) m = MatMul (s, b) Y = Add (d, m) }"""
    model = with_weights(text, a=normal(4, 8), b=normal(8, 3), c=normal(8), d=normal(3))
    check_change(MERGE, model, 2, ["MatMul", "Add"])


@pytest.mark.parametrize(
    "first", ["Gemm <alpha = 2.0, beta = 0.5> (X, a, c)", "Gemm <transB = 1> (X, at)", "MatMul (X, a)"]
)
@pytest.mark.parametrize(
    "second", ["Gemm <transB = 1, beta = 3.0> (z, bt, d)", "Gemm <alpha = 0.5> (z, b)", "MatMul (z, b)"]
)
def test_gemm(first: str, second: str) -> None:
    text = f"g (float[N, 4] X) => (float[N, 3] Y) {{ z = {first} Y = {second} }}"
    weights = {"a": normal(4, 8), "at": normal(8, 4), "b": normal(8, 3), "bt": normal(3, 8)}
    has_bias = "c)" in first or "d)" in second
    model = with_weights(text, **weights, c=normal(8), d=normal(1, 3))
    check_change(MERGE, model, 1, ["Gemm" if has_bias else "MatMul"])


def test_large_matrices_are_not_multiplied_here() -> None:
    text = "g (float[N, 2100] X) => (float[N, 2100] Y) { z = MatMul (X, a) Y = MatMul (z, b) }"
    check_kept(MERGE, with_weights(text, a=normal(2100, 2100), b=normal(2100, 2100)), "too large to be multiplied")


def test_a_factorized_weight_stays_factorized() -> None:
    text = "g (float[N, T, 8] X) => (float[N, T, 8] Y) { z = MatMul (X, a) Y = MatMul (z, b) }"
    check_kept(MERGE, with_weights(text, a=normal(8, 2), b=normal(2, 8)), "64 elements is no gain over two of 32")


def test_a_transposed_product_is_refused() -> None:
    text = "g (float[4, 4] X) => (float[8, 3] Y) { z = Gemm (X, a) Y = Gemm <transA = 1> (z, b) }"
    check_kept(MERGE, with_weights(text, a=normal(4, 8), b=normal(4, 3)), "Gemm transposes its input")


# --- convolutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["", ", c"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Conv <pads = [1, 0, 1, 2], strides = [2, 1], dilations = [1, 2]> (X, k3{})", "Conv (z, k1, d)"),
        ("Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (X, k3{})", "Conv <strides = [2, 3]> (z, k1, d)"),
        ('Conv <auto_pad = "SAME_LOWER"> (X, k3{})', "Conv <strides = [2, 1]> (z, k1)"),
        ("Conv (X, p1{})", "Conv <strides = [2, 1], dilations = [1, 2]> (z, p3)"),
        ("Conv <strides = [2, 2]> (X, p1{})", "Conv (z, k1)"),
    ],
)
def test_a_pointwise_convolution_is_mixed_into_the_other(first: str, second: str, bias: str) -> None:
    text = f"g (float[N, 3, 9, 9] X) => (float[N, 2, H, W] Y) {{ z = {first.format(bias)} Y = {second} }}"
    weights = {
        "k3": normal(64, 3, 3, 3),
        "k1": normal(2, 64, 1, 1),
        "p1": normal(64, 3, 1, 1),
        "p3": normal(2, 64, 3, 3),
    }
    check_change(MERGE, with_weights(text, **weights, c=normal(64), d=normal(2)), 1, ["Conv"])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("Conv (X, p1, c)", "Conv <pads = [1, 1, 1, 1]> (z, p3)", "pads with zeros what has a bias"),
        ("Conv <pads = [1, 1, 1, 1]> (X, k3)", "Conv (z, p3)", "neither convolution is pointwise"),
        ("Conv <strides = [2, 2]> (X, p1)", "Conv (z, p3)", "neither convolution is pointwise"),
        ("Conv (X, few)", "Conv (z, many)", "36 elements is no gain"),
        ("Conv <group = 3> (X, g3)", "Conv (z, many)", "has groups"),
        ('Conv <auto_pad = "SAME_UPPER", strides = [2, 1]> (X, k3)', "Conv (z, k1)", "auto_pad=SAME_UPPER"),
    ],
)
def test_convolutions_that_stay(first: str, second: str, reason: str) -> None:
    text = f"g (float[N, 3, 9, 9] X) => (float[N, C, H, W] Y) {{ z = {first} Y = {second} }}"
    weights = {
        "k3": normal(64, 3, 3, 3),
        "k1": normal(2, 64, 1, 1),
        "p1": normal(64, 3, 1, 1),
        "p3": normal(2, 64, 3, 3),
        "few": normal(2, 3, 1, 1),
        "many": normal(12, 2, 1, 1),
        "g3": normal(2, 1, 1, 1),
    }
    if "g3" in first:
        weights |= {"g3": normal(3, 1, 1, 1), "many": normal(1, 3, 1, 1)}
    check_kept(MERGE, with_weights(text, **weights, c=normal(64)), reason)
