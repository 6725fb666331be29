"""Arithmetic and logic in fewer or cheaper operators."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.simplify_algebra import SimplifyAlgebra
from tests.helpers import check_refusal, check_rewrite

SIMPLIFY = SimplifyAlgebra()
POSITIVE = {name: np.array([0.5, 1, 2.5], np.float32) for name in "xz"}


def change(before: str, after: str, changes: int = 1, constants: str = "", after_constants: str = "") -> None:
    """Check that the nodes `before`, which compute y from x and z of three elements, become `after`."""
    head = "m (float[3] x, float[3] z) => (float[3] y) "
    texts = [
        head + (f"<{c}>" if c else "") + f" {{ {nodes} }}"
        for c, nodes in ((constants, before), (after_constants, after))
    ]
    check_rewrite(SIMPLIFY, *texts, changes, inputs=POSITIVE)


# --- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "after"),
    [("2", "y = Mul (x, x)"), ("0.5", "y = Sqrt (x)"), ("-1", "y = Reciprocal (x)")],
)
def test_powers(power: str, after: str) -> None:
    change("y = Pow (x, p)", after, constants=f"float p = {{{power}}}")


def test_the_square_in_a_variance_stays_a_power() -> None:
    """ONNX Runtime makes one operator of such a normalization at load, but does not know it with a Mul."""
    text = "m (float[3] x) => (float[1] y) <float p = {2}> { q = Pow (x, p) y = ReduceMean (q) }"
    check_refusal(SIMPLIFY, text, "a mean of it is taken")


def test_other_powers_stay() -> None:
    check_refusal(SIMPLIFY, "m (float[3] x) => (float[3] y) <float p = {3}> { y = Pow (x, p) }", "'p' (3) is not 2")


def test_division_by_a_power_of_two() -> None:
    change(
        "y = Div (x, c)",
        "y = Mul (x, c)",
        constants="float[3] c = {4, -0.5, 1}",
        after_constants="float[3] c = {0.25, -2, 1}",
    )


def test_division_by_another_number_is_rounded_only_on_request() -> None:
    text = "m (float[3] x) => (float[3] y) <float c = {10}> { y = Div (x, c) }"
    check_refusal(SIMPLIFY, text, "c is not a power of two")
    check_rewrite(
        SimplifyAlgebra(allow_rounding=True),
        text,
        "m (float[3] x) => (float[3] y) <float c = {0.1}> { y = Mul (x, c) }",
        1,
    )


@pytest.mark.parametrize(("divisor", "reason"), [("1e-39", "out of range"), ("0", "c is 0"), ("3e38", "out of range")])
def test_an_inverse_that_is_no_number(divisor: str, reason: str) -> None:
    text = "m (float[3] x) => (float[3] y) <float c = {%s}> { y = Div (x, c) }" % divisor
    check_refusal(SimplifyAlgebra(allow_rounding=True), text, reason)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("r = Reciprocal (z) y = Mul (x, r)", "y = Div (x, z)", 1),
        ("r = Div (one, z) y = Mul (r, x)", "y = Div (x, z)", 2),
        ("r = Reciprocal (z) y = Div (x, r)", "y = Mul (x, z)", 1),
        ("r = Div (x, z) y = Reciprocal (r)", "y = Div (z, x)", 1),
        ("y = Sum (x, z)", "y = Add (x, z)", 1),
    ],
)
def test_quotients(before: str, after: str, changes: int) -> None:
    change(before, after, changes, "float one = {1}" if "one" in before else "")


@pytest.mark.parametrize(
    ("before", "factor"),
    [
        ("p = Mul (x, a) q = Mul (b, x) y = Add (p, q)", "5"),
        ("p = Mul (x, a) q = Mul (b, x) y = Sub (p, q)", "-1"),
        ("p = Mul (x, a) y = Add (x, p)", "3"),
        ("p = Mul (x, a) y = Sub (x, p)", "-1"),
    ],
)
def test_multiples_of_one_value(before: str, factor: str) -> None:
    constants = "float a = {2}" + (", float b = {3}" if "b" in before else "")
    change(before, "y = Mul (x, c)", constants=constants, after_constants=f"float c = {{{factor}}}")


def test_a_common_factor() -> None:
    change(
        "p = Mul (x, a) q = Mul (a, z) y = Sub (p, q)",
        "d = Sub (x, z) y = Mul (d, a)",
        1,
        "float a = {2}",
        "float a = {2}",
    )
    check_refusal(
        SIMPLIFY,
        """m (float[3] x, float[3] z) => (float[3] y) <float a = {2}, float b = {3}>
        { p = Mul (x, a) q = Mul (z, b) y = Add (p, q) }""",
        "the factors are not the same number",
    )


def test_a_product_with_other_users_is_not_computed_twice() -> None:
    check_refusal(
        SIMPLIFY,
        """m (float[3] x) => (float[3] p, float[3] y) <float a = {2}, float b = {3}>
        { p = Mul (x, a) q = Mul (x, b) y = Add (p, q) }""",
        "inner value 'p' is an output of the graph",
    )


# --- signs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("n = Neg (z) y = Sub (x, n)", "y = Add (x, z)"),
        ("n = Neg (z) y = Add (n, x)", "y = Sub (x, z)"),
        ("n = Mul (z, m) y = Add (x, n)", "y = Sub (x, z)"),
        ("n = Mul (m, z) y = Sub (x, n)", "y = Add (x, z)"),
        ("d = Sub (x, z) y = Neg (d)", "y = Sub (z, x)"),
        ("n = Neg (x) p = Neg (z) y = Div (n, p)", "y = Div (x, z)"),
        ("y = Sub (o, x)", "y = Neg (x)"),
        ("n = Neg (x) y = Abs (n)", "y = Abs (x)"),
        ("n = Sigmoid (x) y = Relu (n)", "y = Sigmoid (x)"),
    ],
)
def test_signs(before: str, after: str) -> None:
    names = [name for name in "mo" if f"{name}," in before or f" {name})" in before]
    change(before, after, constants=", ".join(f"float {name} = {{{-1 if name == 'm' else 0}}}" for name in names))


# --- logic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("n = Not (c) y = Where (n, f, g)", "y = Where (c, g, f)"),
        ("y = Where (c, one, nought)", "y = Cast <to = 1> (c)"),
        ("k = Cast <to = 7> (c) b = Equal (k, i) y = Where (b, f, g)", "y = Where (c, f, g)"),
        ("k = Cast <to = 1> (c) b = Greater (k, nought) y = Where (b, f, g)", "y = Where (c, f, g)"),
    ],
)
def test_conditions(before: str, after: str) -> None:
    head = "m (bool[3] c, float[3] f, float[3] g) => (float[3] y)"
    constants = "<float one = {1}, float nought = {0}, bool yes = {1}, bool no = {0}, int64 i = {1}>"
    check_rewrite(SIMPLIFY, f"{head} {constants} {{ {before} }}", f"{head} {{ {after} }}", 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("b = Less (i, j) y = Not (b)", "y = GreaterOrEqual (i, j)"),
        ("y = Xor (c, yes)", "y = Not (c)"),
        ("k = Cast <to = 7> (c) y = Equal (zero, k)", "y = Not (c)"),
    ],
)
def test_negations(before: str, after: str) -> None:
    head = "m (bool[3] c, int64[3] i, int64[3] j) => (bool[3] y)"
    constants = "<bool yes = {1}, bool no = {0}, int64 zero = {0}>"
    check_rewrite(SIMPLIFY, f"{head} {constants} {{ {before} }}", f"{head} {{ {after} }}", 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [("n = Where (c, yes, no) y = Or (n, d)", "y = Or (c, d)"), ("y = Where (c, no, yes)", "y = Not (c)")],
)
def test_choices_between_truth_values(before: str, after: str) -> None:
    check_rewrite(
        SIMPLIFY,
        f"m (bool[3] c, bool[3] d) => (bool[3] y) <bool yes = {{1}}, bool no = {{0}}> {{ {before} }}",
        f"m (bool[3] c, bool[3] d) => (bool[3] y) {{ {after} }}",
        1,
        compare=False,  # ONNX Runtime has no Where of booleans
    )


def test_numbers_are_no_truth_values() -> None:
    check_refusal(
        SIMPLIFY,
        "m (bool[3] c) => (float[3] y) <float one = {1}, float zero = {0}> { y = Where (c, zero, one) }",
        "the result is not known to be boolean",
    )


def test_nan_is_neither_less_nor_greater() -> None:
    check_refusal(
        SIMPLIFY,
        "m (float[3] a, float[3] b) => (bool[3] y) { c = Less (a, b) y = Not (c) }",
        "not known to be an integer",
    )


# --- shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        "e = Expand (b, full) y = Add (x, e)",
        "e = Expand (b, rows) y = Add (x, e)",
        "e = Tile (b, twice) y = Add (x, e)",
        "e = Unsqueeze (b, zero) y = Add (e, x)",
        "e = Reshape (b, front) y = Add (x, e)",
    ],
)
def test_what_is_broadcast_anyway_need_not_be_repeated(before: str) -> None:
    head = "m (float[batch, 2, 3] x, float[1, 3] b) => (float[batch, 2, 3] y)"
    constants = """<int64[3] full = {1, 2, 3}, int64[2] rows = {2, 3}, int64[2] twice = {2, 1}, int64[1] zero = {0},
        int64[3] front = {1, 1, 3}>"""
    order = "(b, x)" if "(e, x)" in before else "(x, b)"
    check_rewrite(SIMPLIFY, f"{head} {constants} {{ {before} }}", f"{head} {{ y = Add {order} }}", 1)


def test_expanded_to_a_dynamic_shape() -> None:
    head = "m (float[batch, n] x, float[1, n] b) => (float[batch, n] y)"
    check_rewrite(
        SIMPLIFY,
        head + " <float[batch, n] e> { s = Shape (x) e = Expand (b, s) y = Mul (e, x) }",
        head + " { y = Mul (b, x) }",
        1,
    )


def test_of_two_that_are_expanded_the_first_is_not() -> None:
    check_rewrite(
        SIMPLIFY,
        """m (float[1, 3] a, float[2, 1] b) => (float[2, 3] y) <int64[2] s = {2, 3}>
        { e = Expand (a, s) f = Expand (b, s) y = Add (e, f) }""",
        "m (float[1, 3] a, float[2, 1] b) => (float[2, 3] y) { y = Add (a, b) }",
        1,
    )


@pytest.mark.parametrize(
    "text",
    [
        "m (float[1, 3] x, float[1] b) => (float[2, 3] y) <int64[2] s = {2, 3}> { e = Expand (b, s) y = Add (x, e) }",
        "m (float[3] x, float[3] b) => (float[1, 3] y) <int64[2] s = {1, 3}> { e = Reshape (b, s) y = Add (x, e) }",
        "m (float[1] x, float[3] b) => (float[3] y) <int64[1] s = {3}> { e = Expand (x, s) y = PRelu (e, b) }",
        "m (float[2, 3] x, float[1, 3] b) => (float[6, 3] y) <int64[2] s = {3, 1}> { e = Tile (x, s) y = Add (e, b) }",
    ],
)
def test_what_gives_the_result_its_shape_stays(text: str) -> None:
    check_refusal(SIMPLIFY, text, "no operand is repeated to a shape that it would be broadcast to anyway")


def test_batches_of_matrices() -> None:
    check_rewrite(
        SIMPLIFY,
        """m (float[5, 2, 3] x, float[1, 3, 4] b) => (float[5, 2, 4] y) <int64[3] s = {5, 1, 1}>
        { e = Expand (b, s) y = MatMul (x, e) }""",
        "m (float[5, 2, 3] x, float[1, 3, 4] b) => (float[5, 2, 4] y) { y = MatMul (x, b) }",
        1,
    )
    check_refusal(
        SIMPLIFY,
        """m (float[5, 2, 3] x, float[1, 4] b) => (float[5, 2, 4] y) <int64[2] s = {3, 1}>
        { e = Expand (b, s) y = MatMul (x, e) }""",
        "no operand is repeated",
    )


def test_the_shape_is_known_before_it_is_computed() -> None:
    check_rewrite(
        SIMPLIFY,
        "m (float[a, b] x) => (int64[1] y) { h = Relu (x) g = Softmax (h) y = Shape <start = 1> (g) }",
        "m (float[a, b] x) => (int64[1] y) { y = Shape <start = 1> (x) }",
        2,
    )


def test_a_reduction_of_single_elements() -> None:
    check_rewrite(
        SIMPLIFY,
        """m (float[n, 1, 3, 1] x) => (float[n, 3] y) <int64[2] axes = {1, -1}>
        { y = ReduceMean <keepdims = 0> (x, axes) }""",
        "m (float[n, 1, 3, 1] x) => (float[n, 3] y) <int64[2] axes = {1, 3}> { y = Squeeze (x, axes) }",
        1,
    )


def test_a_gather_of_every_element() -> None:
    check_rewrite(
        SIMPLIFY,
        """m (float[2, 3] x) => (float[6, 1] y)
        <int64[6, 1, 2] i = {0, 0, 0, 1, 0, 2, 1, 0, 1, -2, 1, 2}> { y = GatherND (x, i) }""",
        "m (float[2, 3] x) => (float[6, 1] y) <int64[2] s = {6, 1}> { y = Reshape (x, s) }",
        1,
    )
    check_refusal(
        SIMPLIFY,
        "m (float[2] x) => (float[2] y) <int64[2, 1] i = {1, 0}> { y = GatherND (x, i) }",
        "it changes the order",
    )


@pytest.mark.parametrize("softmax", ["Softmax <axis = -1>", "LogSoftmax <axis = 2>"])
def test_argmax_needs_no_softmax(softmax: str) -> None:
    check_rewrite(
        SIMPLIFY,
        f"m (float[n, 3, 5] x) => (int64[n, 3] y) {{ p = {softmax} (x) y = ArgMax <axis = 2, keepdims = 0> (p) }}",
        "m (float[n, 3, 5] x) => (int64[n, 3] y) { y = ArgMax <axis = 2, keepdims = 0> (x) }",
        1,
    )


def test_argmax_of_the_older_softmax_over_all_axes_from_one_on() -> None:
    head = '<ir_version: 7, opset_import: ["" : 11]> m (float[2, 3, 5] x) => (int64[2, 3, 1] y) '
    check_rewrite(
        SIMPLIFY,
        head + "{ p = Softmax <axis = 1> (x) y = ArgMax <axis = 2> (p) }",
        head + "{ y = ArgMax <axis = 2> (x) }",
        1,
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("p = Softmax <axis = 1> (x) i = ArgMax <axis = 2> (p) y = Cast <to = 1> (i)", "ArgMax is along axis 2"),
        ("p = Softmax (x) i = ArgMax <axis = 2> (p) f = Cast <to = 1> (i) y = Add (p, f)", "has 2 users"),
    ],
)
def test_argmax_of_another_softmax_stays(nodes: str, reason: str) -> None:
    check_refusal(SIMPLIFY, f"m (float[2, 3, 5] x) => (float[2, a, b] y) {{ {nodes} }}", reason)


EVERYTHING = "m (float[n, 3] x, float[n, 3] z) => (float[n, 3] y)"


def test_scattering_everything() -> None:
    """As torch.export writes `x[:] = z`."""
    check_rewrite(
        SIMPLIFY,
        f"""{EVERYTHING} <int64[1] zeros = {{0}}, int64[1] last = {{-1}}, int64 zero = {{0}}, int64 one = {{1}}>
        {{ s = Shape <end = 1> (x) n = Squeeze (s, zeros) r = Range (zero, n, one) i = Unsqueeze (r, last)
          y = ScatterND (x, i, z) }}""",
        f"{EVERYTHING} {{ y = Identity (z) }}",
        1,
    )


@pytest.mark.parametrize(
    ("head", "constant", "node", "reason"),
    [
        ("float[2, 3] x, float[2, 3] z", "int64[2, 1] i = {1, 0}", "ScatterND (x, i, z)", "it changes the order"),
        ("float[3, 3] x, float[2, 3] z", "int64[2, 1] i = {0, 1}", "ScatterND (x, i, z)", "not all of it is replaced"),
        (
            "float[2, 3] x, float[2, 3] z",
            "int64[2, 1] i = {0, 1}",
            'ScatterND <reduction = "add"> (x, i, z)',
            "not all of it is replaced",
        ),
    ],
)
def test_scattering_that_does_something(head: str, constant: str, node: str, reason: str) -> None:
    check_refusal(SIMPLIFY, f"m ({head}) => (float[a, 3] y) <{constant}> {{ y = {node} }}", reason)


def test_concat_with_nothing() -> None:
    """As a cache that is empty at first is joined to what is new."""
    check_rewrite(
        SIMPLIFY,
        """m (float[4, 2] x, float[4, 3] z) => (float[4, 5] y) <float[4, 0] none = {}>
        { y = Concat <axis = -1> (none, x, none, z) }""",
        "m (float[4, 2] x, float[4, 3] z) => (float[4, 5] y) { y = Concat <axis = -1> (x, z) }",
        1,
    )
    check_refusal(
        SIMPLIFY,
        "m (float[0, 2] x, float[n, 2] z) => (float[n, 4] y) { y = Concat <axis = 1> (x, z) }",
        "no part of several is known to be empty",
    )


def test_a_reshape_that_others_use_is_no_gain() -> None:
    check_refusal(
        SIMPLIFY,
        """m (float[3] x, float[2, 3] z) => (float[2, 3] y, float[1, 3] w) <int64[2] s = {1, 3}>
        { r = Reshape (x, s) y = Add (r, z) w = Exp (r) }""",
        "no operand is repeated",
    )


def test_repeated_without_computing_the_shape() -> None:
    check_rewrite(
        SIMPLIFY,
        """m (float[batch, 1, n] x) => (float[batch, 4, n] y) <int64[1] i = {0}, int64[1] j = {2}, int64[1] four = {4},
        float[batch, 4, n] e>
        { s = Shape (x) b = Gather (s, i) n = Gather (s, j) t = Concat <axis = 0> (b, four, n) e = Expand (x, t)
          y = Exp (e) }""",
        """m (float[batch, 1, n] x) => (float[batch, 4, n] y) <int64[3] t = {1, 4, 1}>
        { e = Expand (x, t) y = Exp (e) }""",
        1,
    )


def test_squeezed_without_computing_the_shape() -> None:
    head = "m (float[batch, 1, n] x) => (float[batch, n] y, float[batch, n, 1] z)"
    shapes = "<int64[1] i = {0}, int64[1] j = {2}, int64[1] one = {1}, float[batch, n] q, float[batch, n, 1] r>"
    check_rewrite(
        SIMPLIFY,
        f"""{head} {shapes} {{ s = Shape (x) b = Gather (s, i) n = Gather (s, j) t = Concat <axis = 0> (b, n)
        q = Reshape (x, t) y = Exp (q) u = Concat <axis = 0> (b, n, one) r = Reshape (q, u) z = Exp (r) }}""",
        f"""{head} <int64[1] one = {{1}}, int64[1] two = {{2}}>
        {{ q = Squeeze (x, one) y = Exp (q) r = Unsqueeze (q, two) z = Exp (r) }}""",
        2,
    )
