"""Transposes moved to where they cancel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from infconv.passes.push_transposes import PushTransposes
from tests.helpers import apply, check_rewrite, parse

PUSH = PushTransposes()
TO_LAST = "Transpose <perm = [0, 2, 3, 1]>"
TO_FIRST = "Transpose <perm = [0, 3, 1, 2]>"
SAME = "[2, 3, 4, 5]"
HEAD = "m (float[2, 3, 4, 5] x) => (float%s y) "


def between(nodes: str, result: str, after: str, changes: int = 1, *, constants: str = "", moved: str = "") -> None:
    """Check that `nodes`, from `a` (channels last) to `b`, become `after`, from `x` to `y`, without Transposes."""
    before = (
        f"{HEAD % result} {f'<{constants}>' if constants else ''} {{ a = {TO_LAST} (x) {nodes} y = {TO_FIRST} (b) }}"
    )
    check_rewrite(PUSH, before, f"{HEAD % result} {f'<{moved}>' if moved else ''} {{ {after} }}", changes)


def transposes(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph)


# --- operators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "result", "after", "constants", "moved"),
    [
        ("b = Relu (a)", SAME, "y = Relu (x)", "", ""),
        ("b = Clip (a, z)", SAME, "y = Clip (x, z)", "float z = {0}", "float z = {0}"),
        ("b = Add (a, c)", SAME, "y = Add (x, c)", "float[3] c = {1, 2, 3}", "float[3, 1, 1] c = {1, 2, 3}"),
        ("b = Mul (c, a)", SAME, "y = Mul (c, x)", "float[4,1,1] c = {1, 2, 3, 4}", "float[4, 1] c = {1, 2, 3, 4}"),
        ("b = Mul (a, c)", SAME, "y = Mul (x, c)", "float c = {2}", "float c = {2}"),
        ("b = Concat <axis = -1> (a, a)", "[2, 6, 4, 5]", "y = Concat <axis = 1> (x, x)", "", ""),
        ("b = Softmax (a)", SAME, "y = Softmax <axis = 1> (x)", "", ""),
        ("b = CumSum (a, i)", SAME, "y = CumSum (x, i)", "int64 i = {3}", "int64 i = {1}"),
        ("b = ReduceMean (a, i)", "[2, 3, 1, 1]", "y = ReduceMean (x, i)",
         "int64[2] i = {1, 2}", "int64[2] i = {2, 3}"),
        ("b = Slice (a, s, e, i)", "[2, 3, 2, 5]", "y = Slice (x, s, e, i)",
         "int64[1] s = {1}, int64[1] e = {3}, int64[1] i = {1}",
         "int64[1] s = {1}, int64[1] e = {3}, int64[1] i = {2}"),
        ("b = Slice (a, s, e)", "[1, 3, 3, 5]", "y = Slice (x, s, e, i)",
         "int32[2] s = {1, 0}, int32[2] e = {3, 3}",
         "int32[2] s = {1, 0}, int32[2] e = {3, 3}, int32[2] i = {0, 2}"),
        ("b = Pad (a, p)", "[2, 4, 6, 5]", "y = Pad (x, p)",
         "int64[8] p = {0, 2, 0, 0, 0, 0, 0, 1}", "int64[8] p = {0, 0, 2, 0, 0, 1, 0, 0}"),
        ("b = Pad (a, p, , i)", "[2, 3, 6, 5]", "y = Pad (x, p, , i)",
         "int64[2] p = {1, 1}, int64[1] i = {-3}", "int64[2] p = {1, 1}, int64[1] i = {2}"),
        ("b = Tile (a, t)", "[2, 9, 8, 5]", "y = Tile (x, t)",
         "int64[4] t = {1, 2, 1, 3}", "int64[4] t = {1, 3, 2, 1}"),
        ("b = Gather <axis = 3> (a, i)", "[2, 2, 4, 5]", "y = Gather <axis = 1> (x, i)",
         "int64[2] i = {2, 0}", "int64[2] i = {2, 0}"),
        ("b = Resize (a, , s)", "[2, 3, 8, 10]", "y = Resize (x, , s)",
         "float[4] s = {1, 2, 2, 1}", "float[4] s = {1, 1, 2, 2}"),
    ],
)  # fmt: skip
def test_operators_with_their_axes_renamed(nodes: str, result: str, after: str, constants: str, moved: str) -> None:
    between(nodes, result, after, constants=constants, moved=moved)


def test_several_outputs() -> None:
    check_rewrite(
        PUSH,
        f"""m (float[2, 4, 3, 5] x) => (float[2, 2, 3, 5] y, float[2, 2, 3, 5] z)
        {{ a = {TO_LAST} (x) b, c = Split <axis = -1, num_outputs = 2> (a) y = {TO_FIRST} (b)
           d = Exp (c) z = {TO_FIRST} (d) }}""",
        """m (float[2, 4, 3, 5] x) => (float[2, 2, 3, 5] y, float[2, 2, 3, 5] z)
        { y, c = Split <axis = 1, num_outputs = 2> (x) z = Exp (c) }""",
        2,
    )


def test_quantization_along_an_axis() -> None:
    scales = "float[3] s = {1, 2, 3}, uint8[3] z = {1, 2, 3}"
    between(
        "q = QuantizeLinear <axis = 3> (a, s, z) b = DequantizeLinear <axis = -1> (q, s, z)",
        "[2, 3, 4, 5]",
        "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)".replace("Linear", "Linear <axis = 1>"),
        2,
        constants=scales,
        moved=scales,
    )


def test_reductions_that_drop_axes() -> None:
    check_rewrite(
        PUSH,
        f"{HEAD % '[2, 3]'} <int64[2] i = {{1, 2}}> {{ a = {TO_LAST} (x) y = ReduceMax <keepdims = 0> (a, i) }}",
        f"{HEAD % '[2, 3]'} <int64[2] i = {{2, 3}}> {{ y = ReduceMax <keepdims = 0> (x, i) }}",
        1,
    )
    check_rewrite(
        PUSH,
        f"""{HEAD % "[3, 2]"} <int64[2] i = {{1, 2}}>
        {{ a = {TO_LAST} (x) b = ReduceMax <keepdims = 0> (a, i) y = Transpose <perm = [1, 0]> (b) }}""",
        f"""{HEAD % "[3, 2]"} <int64[2] i = {{2, 3}}>
        {{ b = ReduceMax <keepdims = 0> (x, i) y = Transpose <perm = [1, 0]> (b) }}""",
        1,
    )


def test_axes_that_come_and_go() -> None:
    check_rewrite(
        PUSH,
        """m (float[2, 3, 4] x) => (float[2, 3, 4] y) <int64[1] i = {1}, int64[1] last = {3}>
        { a = Transpose <perm = [0, 2, 1]> (x) b = Unsqueeze (a, i) c = Relu (b) d = Squeeze (c, i)
          y = Transpose <perm = [0, 2, 1]> (d) }""",
        """m (float[2, 3, 4] x) => (float[2, 3, 4] y) <int64[1] i = {1}>
        { b = Unsqueeze (x, i) c = Relu (b) y = Squeeze (c, i) }""",
        3,
    )


# --- graphs --------------------------------------------------------------------------------------------------------


def test_a_network_with_channels_last_and_a_skip() -> None:
    weight = "float[3, 3, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}"
    check_rewrite(
        PUSH,
        f"""m (float[1, 4, 4, 3] x) => (float[1, 4, 4, 3] y) <{weight}, float[3] c = {{1, 2, 3}}>
        {{ a = {TO_FIRST} (x) b = Conv (a, w) d = {TO_LAST} (b) e = Add (d, c) f = Relu (e)
           g = {TO_FIRST} (f) h = Conv (g, w) i = {TO_LAST} (h) j = Add (i, f) k = Relu (j)
           l = {TO_FIRST} (k) o = Conv (l, w) y = {TO_LAST} (o) }}""",
        f"""m (float[1, 4, 4, 3] x) => (float[1, 4, 4, 3] y) <{weight}, float[3, 1, 1] c = {{1, 2, 3}}>
        {{ a = {TO_FIRST} (x) b = Conv (a, w) e = Add (b, c) f = Relu (e)
           h = Conv (f, w) j = Add (h, f) k = Relu (j) o = Conv (k, w) y = {TO_LAST} (o) }}""",
        4,
    )


def test_one_transpose_where_two_branches_meet() -> None:
    check_rewrite(
        PUSH,
        f"""m (float[1, 3, 4, 5] x, float[1, 3, 4, 5] z) => (float[1, 4, 5, 3] y)
        {{ a = {TO_LAST} (x) b = {TO_LAST} (z) c = Sigmoid (b) y = Mul (a, c) }}""",
        f"""m (float[1, 3, 4, 5] x, float[1, 3, 4, 5] z) => (float[1, 4, 5, 3] y)
        {{ c = Sigmoid (z) d = Mul (x, c) y = {TO_LAST} (d) }}""",
        2,
    )


def test_of_two_places_the_one_where_less_is_moved() -> None:
    check_rewrite(
        PUSH,
        """m (float[8, 9] x) => (float[9, 1] y) <int64[1] i = {1}>
        { a = Transpose <perm = [1, 0]> (x) y = ReduceSum (a, i) }""",
        """m (float[8, 9] x) => (float[9, 1] y) <int64[1] i = {0}>
        { a = ReduceSum (x, i) y = Transpose <perm = [1, 0]> (a) }""",
        1,
    )


def test_the_old_layout_is_made_again_for_those_who_want_it() -> None:
    check_rewrite(
        PUSH,
        f"""m (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] y, float[1, 4, 5, 3] z, float[1, 3, 4, 5] v)
        {{ a = {TO_LAST} (x) b = Relu (a) z = Exp (b) y = {TO_FIRST} (b)
           d = {TO_LAST} (x) e = Sin (d) v = {TO_FIRST} (e) }}""",
        f"""m (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] y, float[1, 4, 5, 3] z, float[1, 3, 4, 5] v)
        {{ y = Relu (x) c = {TO_LAST} (y) z = Exp (c) v = Sin (x) }}""",
        2,
    )


def test_results_that_are_needed_in_both_layouts_keep_their_names() -> None:
    check_rewrite(
        PUSH,
        f"""m (float[1, 3, 4, 5] x) => (float[1, 4, 5, 3] b, float[1, 3, 4, 5] y)
        {{ a = {TO_LAST} (x) b = Relu (a) y = {TO_FIRST} (b) }}""",
        f"""m (float[1, 3, 4, 5] x) => (float[1, 4, 5, 3] b, float[1, 3, 4, 5] y)
        {{ y = Relu (x) b = {TO_LAST} (y) }}""",
        1,
    )


@pytest.mark.parametrize(
    "text",
    [
        # nothing to gain: one Transpose before or after
        f"m (float[1, 3, 4, 5] x) => (float[1, 4, 5, 3] y) {{ a = {TO_LAST} (x) y = Relu (a) }}",
        # of other axes
        "m (float[4, 4] x) => (float[4, 4] y) { a = Transpose (x) y = Add (a, x) }",
        # Conv knows one layout only
        f"""m (float[1, 3, 3, 3] x) => (float[1, 3, 3, 3] y) <float[3, 3, 1, 1] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}>
        {{ a = {TO_LAST} (x) b = Conv (a, w) y = {TO_FIRST} (b) }}""",
        # normalized over the last axes
        f"""m (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] y) <float[3] w = {{1, 2, 3}}>
        {{ a = {TO_LAST} (x) b = LayerNormalization (a, w) y = {TO_FIRST} (b) }}""",
        # an operand of unknown rank
        f"""m (float[1, 3, 4, 5] x, float[5, 3] c) => (float[1, 3, 4, 5] y)
        {{ a = {TO_LAST} (x) b = Add (a, c) y = {TO_FIRST} (b) }}""",
    ],
)
def test_what_stays(text: str) -> None:
    model = parse(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert apply(PUSH, model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_before_opset_13_softmax_flattens() -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 12]> m (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] y)
        {{ a = {TO_LAST} (x) b = Softmax <axis = 3> (a) y = {TO_FIRST} (b) }}"""
    )
    assert apply(PUSH, model) == 0


def test_inside_branches() -> None:
    check_rewrite(
        PUSH,
        f"""m (float[1, 3, 4, 5] x, bool c) => (float[1, 3, 4, 5] y)
        {{ y = If (c) <then_branch = t () => (float[1, 3, 4, 5] o)
                           {{ a = {TO_LAST} (x) b = Exp (a) o = {TO_FIRST} (b) }},
                       else_branch = e () => (float[1, 3, 4, 5] o) {{ o = Tanh (x) }}> }}""",
        """m (float[1, 3, 4, 5] x, bool c) => (float[1, 3, 4, 5] y)
        { y = If (c) <then_branch = t () => (float[1, 3, 4, 5] o) { o = Exp (x) },
                      else_branch = e () => (float[1, 3, 4, 5] o) { o = Tanh (x) }> }""",
        1,
    )


def test_a_value_that_a_branch_reads_stays_as_it_is() -> None:
    check_rewrite(
        PUSH,
        f"""m (float[1, 3, 4, 5] x, bool c) => (float[1, 3, 4, 5] y, float[1, 4, 5, 3] z)
        {{ a = {TO_LAST} (x) b = Exp (a) y = {TO_FIRST} (b)
           z = If (c) <then_branch = t () => (float[1, 4, 5, 3] o) {{ o = Sin (b) }},
                       else_branch = e () => (float[1, 4, 5, 3] o) {{ o = Tanh (b) }}> }}""",
        f"""m (float[1, 3, 4, 5] x, bool c) => (float[1, 3, 4, 5] y, float[1, 4, 5, 3] z)
        {{ y = Exp (x) b = {TO_LAST} (y)
           z = If (c) <then_branch = t () => (float[1, 4, 5, 3] o) {{ o = Sin (b) }},
                       else_branch = e () => (float[1, 4, 5, 3] o) {{ o = Tanh (b) }}> }}""",
        1,
    )


def test_many_transposes_in_random_networks_never_become_more() -> None:
    for seed in range(20):
        model = parse(random_network(np.random.default_rng(seed)))
        before = transposes(model)
        apply(PUSH, model)
        assert transposes(model) <= before
        assert apply(PUSH, model) == 0


def random_network(rng: np.random.Generator) -> str:
    """Return a model of element-wise operators with Transposes of a square tensor in between."""
    values, lines = ["x"], []
    for i in range(25):
        a, b = rng.choice(values, 2)
        node = (
            f"v{i} = Transpose <perm = [0, 2, 1]> ({a})"
            if rng.random() < 0.4
            else f"v{i} = {rng.choice(['Add', 'Mul', 'Concat <axis = 0>'])} ({a}, {b})".replace(
                "Concat <axis = 0>", "Max"
            )
        )
        lines.append(node)
        values.append(f"v{i}")
    return f"m (float[2, 3, 3] x) => (float[2, 3, 3] v24, float[2, 3, 3] v20) {{ {' '.join(lines)} }}"


def test_through_reshapes_that_join_and_split_axes() -> None:
    check_rewrite(
        PUSH,
        """m (float[n, 3, 4, 5] x) => (float[n, 3, 4, 5] y) <int64[3] s = {0, 20, 3}, int64[4] t = {0, 4, 5, 3}>
        { a = Transpose <perm = [0, 2, 3, 1]> (x) b = Reshape (a, s) c = Exp (b) d = Reshape (c, t)
          y = Transpose <perm = [0, 3, 1, 2]> (d) }""",
        """m (float[n, 3, 4, 5] x) => (float[n, 3, 4, 5] y) <int64[3] s = {0, 3, 20}, int64[4] t = {0, 3, 4, 5}>
        { b = Reshape (x, s) c = Exp (b) y = Reshape (c, t) }""",
        3,
    )
