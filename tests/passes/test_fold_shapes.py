"""Shape arithmetic dies where a constant says the same at every size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from infconv.passes import Context
from infconv.passes._dims import symbol
from infconv.passes.fold_shapes import FoldShapes, reshape_target
from tests.helpers import check_refusal, check_rewrite, parse, run

SPLIT_HEADS = """
    { s = Shape(x)
      n = Gather(s, zero)
      n1 = Unsqueeze(n, first)
      t = Gather(s, one)
      t1 = Unsqueeze(t, first)
      r = Concat <axis = 0> (n1, t1, heads)
      y = Reshape%s(x, r) }"""
CONSTANTS = "<int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] heads = {4, 16}>"


@pytest.mark.parametrize("attribute", ["", " <allowzero = 1> "])
def test_splitting_heads_as_exporters_write_it(attribute: str) -> None:
    check_rewrite(
        FoldShapes(),
        f"m (float[batch, seq, 64] x) => (float[batch, seq, 4, 16] y) {CONSTANTS} {SPLIT_HEADS % attribute}",
        """m (float[batch, seq, 64] x) => (float[batch, seq, 4, 16] y) <int64[4] r = {0, 0, 4, 16}>
        { y = Reshape(x, r) }""",
        changes=7,
    )


@pytest.mark.parametrize("size", [0, 1, 5])
def test_the_result_is_the_same_for_an_empty_batch(size: int) -> None:
    model = parse(f"m (float[batch, seq, 64] x) => (float[batch, seq, 4, 16] y) {CONSTANTS} {SPLIT_HEADS % ''}")
    before = ir.to_proto(model)
    assert FoldShapes().run(model, Context()) == 7
    feed = {"x": np.zeros((size, 3, 64), np.float32)}
    assert run(ir.to_proto(model), feed)["y"].shape == run(before, feed)["y"].shape == (size, 3, 4, 16)


def test_elements_that_are_numbers_at_every_size() -> None:
    check_rewrite(
        FoldShapes(),
        """m (float[n, 3, 8, 6] x) => (int64[1] y) <int64[2] which = {2, 3}, int64[1] two = {2}>
        { s = Shape(x) hw = Gather(s, which) half = Div(hw, two) p = ReduceProd <keepdims = 1> (half) y = Neg(p) }""",
        "m (float[n, 3, 8, 6] x) => (int64[1] y) <int64[1] y = {-12}> { }",
        changes=5,
    )


@pytest.mark.parametrize("declared", ["2, 2, n", "3, 7"])
def test_what_would_show_that_an_output_is_declared_wrongly(declared: str) -> None:
    model = parse(
        f"""<ir_version: 7, opset_import: ["" : 12]> m (float[n, 4, 5] x) => (float[{declared}] y)
        <int64[1] a = {{-1}}, int64[1] two = {{2}}>
        {{ s = Shape(x) g = Gather(s, two) b = Abs(g) t = Concat <axis = 0> (a, b) y = Reshape(x, t) }}"""
    )
    assert FoldShapes().run(model, Context()) == 0


def test_torch_script_expand() -> None:
    """TorchScript writes x.expand(b, -1) as Where(Equal(shape, -1), ones, shape)."""
    check_rewrite(
        FoldShapes(),
        """m (float[n, 8] x) => (float[n, 8] y) <int64[2] minus = {-1, -1}, int64[2] ones = {1, 1}>
        { s = Shape(x) e = Equal(s, minus) w = Where(e, ones, s) p = Expand(x, w) y = Relu(p) }""",
        "m (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }",
        changes=4,
    )


def test_one_product_of_dimensions_is_minus_one() -> None:
    check_rewrite(
        FoldShapes(),
        """m (float[n, s, 8] x) => (float[k, 8] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] eight = {8}>
        { d = Shape(x) a = Gather(d, zero) b = Gather(d, one) m = Mul(a, b) u = Unsqueeze(m, first)
          t = Concat <axis = 0> (u, eight) y = Reshape(x, t) }""",
        "m (float[n, s, 8] x) => (float[k, 8] y) <int64[2] t = {-1, 8}> { y = Reshape(x, t) }",
        changes=7,
    )


def test_a_slice_to_the_end() -> None:
    check_rewrite(
        FoldShapes(),
        """m (float[n, s] x) => (float[n, k] y) <int64[1] one = {1}, int64[1] two = {2}>
        { e = Shape <start = 1> (x) y = Slice(x, one, e, one) }""",
        """m (float[n, s] x) => (float[n, k] y) <int64[1] one = {1}, int64[1] e = {9223372036854775807}>
        { y = Slice(x, one, e, one) }""",
        changes=2,
    )


def test_inside_a_branch() -> None:
    check_rewrite(
        FoldShapes(),
        """m (float[n, 6] x, bool c) => (float[n, 2, 3] y)
        <int64 zero = {0}, int64[1] first = {0}, int64[2] tail = {2, 3}>
        { y = If (c) <then_branch = t () => (float[n, 2, 3] o)
                        { s = Shape(x) a = Gather(s, zero) u = Unsqueeze(a, first)
                          r = Concat <axis = 0> (u, tail) o = Reshape(x, r) },
                      else_branch = e () => (float[n, 2, 3] o)
                        { z = Neg(x) s = Shape(z) a = Gather(s, zero) u = Unsqueeze(a, first)
                          r = Concat <axis = 0> (u, tail) o = Reshape(z, r) }> }""",
        """m (float[n, 6] x, bool c) => (float[n, 2, 3] y)
        { y = If (c) <then_branch = t () => (float[n, 2, 3] o) <int64[3] r = {0, 2, 3}> { o = Reshape(x, r) },
                      else_branch = e () => (float[n, 2, 3] o) <int64[3] r = {0, 2, 3}>
                        { z = Neg(x) o = Reshape(z, r) }> }""",
        changes=10,
    )


def test_two_dimensions_that_reshape_cannot_find_out() -> None:
    check_refusal(
        FoldShapes(),
        """m (float[k, 8] x, float[n, s] like) => (float[n, s, 8] y) <int64[1] eight = {8}>
        { d = Shape(like) t = Concat <axis = 0> (d, eight) y = Reshape(x, t) }""",
        "[n, s, 8] cannot be written with one -1 and copies",
    )


def test_an_empty_batch_forbids_minus_one() -> None:
    """Reshape(x[0, 3, 4], [0, -1]) is an error: -1 could be anything."""
    batch, height, width = symbol("batch"), symbol("height"), symbol("width")
    source = (batch, height, width)
    assert reshape_target(source, [batch, height * width]) is None
    assert reshape_target(source, [batch, height * width], nonempty=True) == [0, -1]
    assert reshape_target((2, height, width), [2, height * width]) == [2, -1]
    assert reshape_target(source, [batch * height, width, 1]) is None


def test_minus_one_stays_where_it_was_unless_it_is_a_number() -> None:
    batch, height, width = symbol("batch"), symbol("height"), symbol("width")
    assert reshape_target((batch, 17, 32), [batch, 17, -1, 8], allow_zero=True) == [0, 17, 4, 8]
    assert reshape_target((batch, height, 32), [batch, -1, 32]) == [0, 0, 32]
    assert reshape_target((batch, height, width), [batch, -1]) == [0, -1]
    assert reshape_target((batch, height, width), [batch, -1], allow_zero=True) is None


def test_a_literal_zero_is_no_copy() -> None:
    batch = symbol("batch")
    assert reshape_target((batch, 0), [0, batch], allow_zero=True) is None
    assert reshape_target((batch, 4), [batch, 2, 2], allow_zero=True) == [0, 2, 2]
    assert reshape_target((batch, 4), [4, batch]) == [4, -1]


def test_expand_that_enlarges_stays() -> None:
    model = parse("m (float[1, 8] x, float[n, 8] like) => (float[n, 8] y) { s = Shape(like) y = Expand(x, s) }")
    assert FoldShapes().run(model, Context()) == 0


def test_an_expand_of_an_unknown_batch_is_not_taken_for_larger_than_one() -> None:
    model = parse("m (float[a] x, float[b] like) => (float[c] y) { s = Shape(like) y = Expand(x, s) }")
    assert FoldShapes().run(model, Context()) == 0
