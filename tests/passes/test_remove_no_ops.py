"""Operators that do nothing."""

from __future__ import annotations

import pytest

from infconv.passes.remove_no_ops import RemoveNoOps
from tests.helpers import apply, check_refusal, check_rewrite, parse

REMOVE = RemoveNoOps()
MANY = """<int64[2] same = {2, 3}, int64[2] ones = {1, 1}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] one = {1},
    int64[1] minus = {-2}, int64[1] far = {9223372036854775807}, int64[4] none = {0, 0, 0, 0},
    int64[3] all = {0, 1, -1}, float[2, 3] units = {1, 1, 1, 1, 1, 1}, float nought = {0}, float[2] scales = {1, 1},
    bool true = {1}, float[1, 1] unit = {1}>"""


@pytest.mark.parametrize(
    "node",
    [
        "Identity (a)",
        "Cast <to = 1> (a)",
        "CastLike (a, x)",
        "Concat <axis = 0> (a)",
        "Sum (a)",
        "Max (a)",
        "Mean (a)",
        "Split <num_outputs = 1> (a)",
        "Reshape (a, same)",
        "Flatten (a)",
        "Squeeze (a)",
        "Transpose <perm = [0, 1]> (a)",
        "Expand (a, same)",
        "Expand (a, ones)",
        "Slice (a, zero, far, one)",
        "Slice (a, zero, two, zero)",
        "Slice (a, minus, far, zero)",
        "Pad (a, none)",
        "ReduceSum <noop_with_empty_axes = 1> (a)",
        "Resize (a, , scales)",
        "Resize (a, , , same)",
        "Tile (a, ones)",
        "Clip (a)",
        "Gather <axis = 1> (a, all)",
        'Einsum <equation = "ij->ij"> (a)',
        'Einsum <equation = "ij"> (a)',
        "LeakyRelu <alpha = 1.0> (a)",
        "PRelu (a, unit)",
        "Mul (a, unit)",
        "Mul (units, a)",
        "Div (a, units)",
        "Add (nought, a)",
        "Sub (a, nought)",
        "Pow (a, one)",
        "Where (true, a, unit)",
        "Max (a, a)",
        "Min (a, a)",
    ],
)
def test_operators_that_do_nothing(node: str) -> None:
    check_rewrite(
        REMOVE,
        f"m (float[2, 3] x) => (float[2, 3] y) {MANY} {{ a = Relu (x) b = {node} y = Exp (b) }}",
        "m (float[2, 3] x) => (float[2, 3] y) { a = Relu (x) y = Exp (a) }",
        1,
    )


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Cast <to = 7> (a)", "it converts FLOAT to INT64"),
        ("Concat <axis = 0> (a, a)", "it has 2 inputs"),
        ("Reshape (a, flat)", "the shape [2, 3] may become [1, 6]"),
        ("Transpose (a)", "perm is [1, 0] for the shape [2, 3]"),
        ("Slice (a, zero, one, one)", "axis 1 is taken from 0 to 1 by 1"),
        ("Slice (a, one, far, one)", "axis 1 is taken from 1 to"),
        ("Slice (a, far, least, one, minus)", "by -1"),
        ("Pad (a, some)", "its pads are [0, 0, 0, 1]"),
        ("ReduceSum (a, one)", "axis 1 may not be of size 1"),
        ("Resize (a, , scales)", "its scales are [1.0, 2.0]"),
        ('Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (a, , units)', "tf_half_pixel_for_nn"),
        ("Tile (a, same)", "it repeats [2, 3] times"),
        ("Clip (a, nought)", "it has limits"),
        ("Gather <axis = 1> (a, order)", "it changes the order along axis 1"),
        ('Einsum <equation = "ij->ji"> (a)', "the equation is ij->ji"),
        ("LeakyRelu (a)", "alpha is 0.01"),
        ("Mul (a, almost)", "'almost' (1.00001) is not 1"),
        ("Add (a, deep)", "'deep' (0) may broadcast the result to another shape"),
        ("Where (mixed, a, nought)", "the condition is not the same everywhere"),
        ("Where (wide, a, nought)", "'a' may be broadcast to the shape of 'wide'"),
        ("Floor (a)", "not known to be an integer"),
    ],
)
def test_operators_that_do_something(node: str, reason: str) -> None:
    constants = """<int64[2] flat = {1, -1}, int64[2] same = {2, 3}, int64[1] zero = {0}, int64[1] one = {1},
        int64[1] minus = {-1}, int64[1] far = {9223372036854775807}, int64[1] least = {-9223372036854775807},
        int64[4] some = {0, 0, 0, 1}, float[2] scales = {1, 2}, float[2] units = {1, 1}, float nought = {0},
        int64[3] order = {0, 2, 1}, float almost = {1.00001}, float[1, 1, 1] deep = {0},
        bool[2, 1] mixed = {1, 0}, bool[1, 2, 3] wide = {1, 1, 1, 1, 1, 1}>"""
    source = "a = Cast <to = 1> (i)" if node == "Floor (a)" else "a = Relu (x)"
    text = f"m (float[2, 3] x, double[2, 3] i) => (int64[R] z) {constants} {{ {source} b = {node} z = Shape (b) }}"
    check_refusal(REMOVE, text, reason)


def test_dynamic_shapes() -> None:
    check_rewrite(
        REMOVE,
        """m (float[batch, 2, 4] x) => (float[batch, 2, 4] y) <int64[3] target = {0, -1, 4}, int64[1] zero = {0},
        int64[1] far = {9223372036854775807}>
        { a = Relu (x) b = Reshape (a, target) c = Slice (b, zero, far, zero) y = Exp (c) }""",
        "m (float[batch, 2, 4] x) => (float[batch, 2, 4] y) { a = Relu (x) y = Exp (a) }",
        2,
    )


def test_a_target_of_its_own_shape() -> None:
    check_rewrite(
        REMOVE,
        "m (float[a, b] x) => (float[a, b] y) { s = Shape (x) r = Reshape (x, s) e = Expand (r, s) y = Exp (e) }",
        "m (float[a, b] x) => (float[a, b] y) { y = Exp (x) }",
        2,
    )


def test_transposes_that_move_nothing() -> None:
    check_rewrite(
        REMOVE,
        "m (float[1, 1, n] x) => (float[1, 1, n] y) { t = Transpose <perm = [1, 0, 2]> (x) y = Exp (t) }",
        "m (float[1, 1, n] x) => (float[1, 1, n] y) { y = Exp (x) }",
        1,
    )
    check_refusal(
        REMOVE,
        "m (float[1, m, n] x) => (float[m, 1, n] y) { t = Transpose <perm = [1, 0, 2]> (x) y = Exp (t) }",
        "perm is [1, 0, 2]",
    )


def test_pooling_and_reducing_single_elements() -> None:
    check_rewrite(
        REMOVE,
        """m (float[n, 3, 1, 1] x) => (float[n, 3, 1, 1] y) <int64[2] axes = {-1, 2}>
        { a = MaxPool <kernel_shape = [1, 1]> (x) b = AveragePool <kernel_shape = [1, 1], strides = [1, 1]> (a)
          c = GlobalAveragePool (b) d = ReduceMean (c, axes) y = Exp (d) }""",
        "m (float[n, 3, 1, 1] x) => (float[n, 3, 1, 1] y) { y = Exp (x) }",
        4,
    )


def test_a_pool_whose_indices_are_used_stays() -> None:
    check_refusal(
        REMOVE,
        """m (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, int64[1, 1, 4, 4] i)
        { y, i = MaxPool <kernel_shape = [1, 1]> (x) }""",
        "inner value 'i' is an output of the graph",
    )


def test_pairs() -> None:
    check_rewrite(
        REMOVE,
        """m (float[3] x, bool[3] c, int64[3] i) => (float[3] y, bool[3] d, float[3] f)
        { a = Neg (x) b = Neg (a) e = Abs (b) g = Abs (e) h = Floor (g) k = Round (h) y = Exp (k)
          n = Not (c) o = Not (n) d = And (o, n)
          j = Cast <to = 1> (i) l = Ceil (j) f = Exp (l) }""",
        """m (float[3] x, bool[3] c, int64[3] i) => (float[3] y, bool[3] d, float[3] f)
        { e = Abs (x) h = Floor (e) y = Exp (h) n = Not (c) d = And (c, n) j = Cast <to = 1> (i) f = Exp (j) }""",
        5,
    )


def test_names_of_outputs_survive() -> None:
    check_rewrite(
        REMOVE,
        "m (float[3] x) => (float[3] y, float[3] z) { a = Relu (x) b = Identity (a) y = Identity (b)"
        " z = Cast <to = 1> (x) }",
        "m (float[3] x) => (float[3] y, float[3] z) { y = Relu (x) z = Identity (x) }",
        3,
    )


def test_an_input_that_is_an_output_stays() -> None:
    check_refusal(REMOVE, "m (float[3] x) => (float[3] y) { y = Identity (x) }", "keeps its own name")


def test_inside_branches() -> None:
    check_rewrite(
        REMOVE,
        """m (float[3] x, bool c) => (float[3] y)
        { a = Relu (x) b = Identity (a)
          y = If (c) <then_branch = t () => (float[3] o) { o = Identity (b) },
                      else_branch = e () => (float[3] o) { p = Exp (b) o = Identity (p) }> }""",
        """m (float[3] x, bool c) => (float[3] y)
        { a = Relu (x)
          y = If (c) <then_branch = t () => (float[3] o) { o = Identity (a) },
                      else_branch = e () => (float[3] o) { o = Exp (a) }> }""",
        2,
    )


def test_quantization_is_meaning() -> None:
    text = """m (float[4] x) => (float[4] y) <float s = {0.1}, uint8 z = {3}>
        { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"""
    model = parse(text)
    assert apply(REMOVE, model) == 0


def test_older_opsets_have_attributes() -> None:
    header = '<ir_version: 7, opset_import: ["" : 9]>'
    check_rewrite(
        REMOVE,
        header
        + """m (float[2, 3] x) => (float[2, 3] y) { a = Relu (x)
        b = Slice <axes = [1], starts = [0], ends = [3]> (a) c = Pad <pads = [0, 0, 0, 0]> (b) y = Exp (c) }""",
        header + "m (float[2, 3] x) => (float[2, 3] y) { a = Relu (x) y = Exp (a) }",
        2,
    )
