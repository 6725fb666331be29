"""Types and shapes of every value."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from infconv.passes import Context, _native
from infconv.passes._dims import broadcast, equal, floor_div, symbol
from infconv.passes._dims import parse as parse_dim
from infconv.passes.infer_shapes import InferShapes
from tests.helpers import parse


def inferred(text: str) -> tuple[dict[str, str], Context]:
    """Return type and shape of every value that a node of the model computes, and what the pass had to say."""
    model, context = parse(text, infer=False), Context()
    assert InferShapes().run(model, context) > 0
    assert InferShapes().run(model, Context()) == 0, "a second run learns something new"
    values = [value for graph in model.graphs() for node in graph for value in node.outputs]
    return {str(value.name): f"{value.type} {value.shape}" for value in values}, context


def test_dynamic_dimensions_are_followed_through_shape_arithmetic() -> None:
    found, _ = inferred("""
        m (float[batch, seq, 64] x) => (float[a, b, c, d] y)
        <int64 zero = {0}, int64[1] axis = {0}, int64[3] tail = {-1, 4, 16}, int64[2] flat = {-1, 64}>
        { s = Shape(x)
          n = Gather(s, zero)
          n1 = Unsqueeze(n, axis)
          t = Concat <axis = 0> (n1, tail)
          r = Reshape(x, t)
          y = Transpose <perm = [0, 2, 1, 3]> (r)
          f = Reshape(x, flat) }""")
    assert found["r"] == "FLOAT [batch,seq,4,16]"
    assert found["f"] == "FLOAT [batch*seq,64]"
    assert found["t"] == "INT64 [4]"


def test_convolutions_round_down() -> None:
    found, _ = inferred("""
        m (float[n, 3, h, 224] x, float[8, 3, 7, 7] w) => (float[a, b, c, d] y)
        { c = Conv <strides = [2, 2], pads = [3, 3, 3, 3]> (x, w)
          y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c) }""")
    assert found["c"] == "FLOAT [n,8,((h + 1)//2),112]"


def test_a_dimension_without_a_name_gets_one_where_it_first_appears() -> None:
    found, _ = inferred("""
        m (float[?, 4] x) => (float[a, b] y)
        { r = Relu(x)
          i = NonZero(r)
          t = Transpose(i)
          y = Exp(r) }""")
    assert found["r"] == "FLOAT [x_dim_0,4]"
    assert found["i"] == "INT64 [2,i_dim_1]"
    assert found["t"] == "INT64 [i_dim_1,2]"


def test_two_different_dynamic_sizes_do_not_broadcast_to_either() -> None:
    found, _ = inferred("m (float[a] x, float[b] z) => (float[c] y) { s = Add(x, z) t = Add(s, x) y = Relu(t) }")
    assert found["s"] == "FLOAT [s_dim_0]"


def test_the_interface_stays_as_declared() -> None:
    model = parse("m (float[2, n] x) => (float[a, b] y) { y = Relu(x) }", infer=False)
    assert InferShapes().run(model, Context()) == 0
    assert str(model.graph.outputs[0].shape) == "[a,b]"


def test_stale_declared_shapes_give_way_to_what_operators_say() -> None:
    model = parse("m (float[n, 2] x) => (float[n, 2] y) { r = Relu(x) e = Exp(r) y = Neg(e) }", infer=False)
    stale = next(iter(model.graph)).outputs[0]
    stale.shape = ir.Shape([1, 3])  # from a time when the batch was 1
    context = Context()
    InferShapes().run(model, context)
    assert stale.shape == ["n", 2]
    assert "'r' is declared [1,3], but is [n,2]" in context.notes[0]


def test_what_a_foreign_operator_declares_is_believed() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 20, "x" : 1]> m (float[n] a) => (float[k] y) { h = x.Op(a) y = Relu(h) }'
    )
    model = parse(text, infer=False)
    foreign = next(iter(model.graph)).outputs[0]
    foreign.shape, foreign.type = ir.Shape([7]), ir.TensorType(ir.DataType.FLOAT)
    assert InferShapes().run(model, Context()) == 0
    assert foreign.shape == [7]


def test_loops_keep_the_shapes_that_their_bodies_keep() -> None:
    found, _ = inferred("""
        m (float[n, 3] x, float[n, 3] z, int64 trips) => (float[a, b] y, float[c, d] g, float[e, f, h] s)
        <bool go = {1}>
        { y0, g0, s0 = Loop(trips, go, x, z) <body = b (int64 i, bool c, float[?, ?] p, float[?, ?] q)
                                    => (bool c1, float[?, ?] p1, float[?, ?] q1, float[?, ?] r)
              { c1 = Identity(c) p1 = Relu(p) q1 = Concat <axis = 0> (q, p) e = Exp(p) r = Neg(e) }>
          y = Neg(y0) g = Neg(g0) s = Neg(s0) }""")
    assert found["y0"] == "FLOAT [n,3]"
    assert found["g0"] == "FLOAT [g0_dim_0,3]"
    assert found["s0"] == "FLOAT [s0_dim_0,s0_dim_1,3]"
    assert found["e"] == "FLOAT [n,3]"
    assert found["r"] == "FLOAT [None,None]", "what the body declares is its interface"


def test_onnx_is_asked_about_operators_without_a_rule_here() -> None:
    found, context = inferred("""
        m (float[1, 3, 4, 4] x, float[2, 3, 3] theta) => (float[a, b, c, d] y) <int64[4] size = {2, 3, 5, 6}>
        { g = AffineGrid(theta, size) y = Neg(g) }""")
    assert found["g"] == "FLOAT [2,5,6,2]"
    assert context.notes == []


def test_a_crash_of_onnx_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        import os

        os.abort()

    monkeypatch.setattr(_native, "_infer", crash)
    model, context = (
        parse("m (float[2, 3, 3] t) => (float[a, b, c, d] y) <int64[4] s = {2, 3, 5, 6}> { y = AffineGrid(t, s) }"),
        Context(),
    )
    InferShapes().run(model, context)
    assert "Shape inference crashed" in context.notes[0]


def test_sizes_zero_and_one_are_possible() -> None:
    batch, seq = symbol("batch"), symbol("seq")
    assert broadcast(batch, 1) == batch
    assert broadcast(batch, 0) == 0
    assert broadcast(batch, 4) == 4
    assert str(broadcast(batch, seq)).startswith("#")
    assert equal(batch, -1) is False
    assert equal(batch, 0) is None
    assert equal(batch + 1, 0) is False


def test_arithmetic_is_canonical_and_reads_what_it_writes() -> None:
    batch, seq = symbol("batch"), symbol("seq")
    assert floor_div(batch * seq * 768, 768 * seq) == batch
    assert floor_div(seq - 1, 2) + 1 == floor_div(seq + 1, 2)
    for dim in (batch * seq, 2 * seq + 1, floor_div(seq + 1, 2) * batch, 3 - seq):
        assert parse_dim(str(dim), {"batch", "seq"}) == dim
    assert parse_dim("batch-size", ()) == symbol("batch-size", known=False)
    assert parse_dim("?", ()) is None
