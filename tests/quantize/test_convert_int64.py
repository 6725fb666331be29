"""`convert-int64`: what provably fits becomes INT32, the rest and the interface stay INT64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.passes import Context
from infconv.quantize._intervals import intervals
from infconv.quantize.convert_int64 import ConvertInt64
from tests.helpers import check_rewrite, parse, random_inputs, run


def bounds(text: str) -> dict[str, tuple[float, float]]:
    """Return value -> (low, high), of what nodes write."""
    model = parse(text)
    found = intervals(model.graph)
    return {str(v.name): tuple(found[v]) for node in model.graph for v in node.outputs}


def unchanged(text: str) -> bool:
    model = parse(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    return ConvertInt64().run(model, Context()) == 0 and before == ir.to_proto(model).SerializeToString(
        deterministic=True
    )


def test_arithmetic_on_a_dimension_becomes_int32() -> None:
    check_rewrite(
        ConvertInt64(),
        """m (float[n, 8] x, float[100, 4] table) => (float[m, 4] y)
           <int64 zero = {0}, int64 one = {1}, int64 limit = {98}>
           { s = Shape<end = 1>(x)  n = Squeeze(s)  r = Range(zero, n, one)
             d = Min(r, limit)  c = Add(d, one)  y = Gather(table, c) }""",
        """m (float[n, 8] x, float[100, 4] table) => (float[m, 4] y)
           <int32 zero = {0}, int32 one = {1}, int32 limit = {98}>
           { s = Shape<end = 1>(x)  w = Cast<to = 6>(s)  n = Squeeze(w)  r = Range(zero, n, one)
             d = Min(r, limit)  c = Add(d, one)  y = Gather(table, c) }""",
        changes=8,
    )


def test_what_may_leave_the_range_stays() -> None:
    assert unchanged("m (int64[4] x) => (int64[4] y) <int64 k = {2}> { a = Mul(x, k)  b = Add(a, k)  y = Neg(b) }")
    assert unchanged(
        """m (float[n, m] x) => (int64[1] y)
           { a = Shape<end = 1>(x)  b = Shape<start = 1>(x)  c = Mul(a, b)  d = Mul(c, c)  y = Neg(d) }"""
    )


def test_nothing_changes_where_casts_would_cost_more_than_is_narrowed() -> None:
    assert unchanged("m (float[8, 4] t, int64[n] ids) => (float[n, 4] y) { y = Gather(t, ids) }")


def test_outputs_keep_their_type() -> None:
    text = """m (int8[4] x) => (int64[4] y, float[4] z) <int64 k = {3}>
        { a = Cast<to = 7>(x)  b = Add(a, k)  c = Mul(b, k)  y = Sub(c, k)  z = Cast<to = 1>(y) }"""
    model = parse(text)
    before = ir.to_proto(model)
    assert ConvertInt64().run(model, Context()) > 0
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [("y", ir.DataType.INT64), ("z", ir.DataType.FLOAT)]
    kinds = {str(v.name): v.dtype for node in model.graph for v in node.outputs}
    assert kinds["a"] == kinds["b"] == kinds["c"] == ir.DataType.INT32
    for name, value in run(before, random_inputs(before)).items():
        np.testing.assert_array_equal(run(after, random_inputs(before))[name], value)
    assert ConvertInt64().run(model, Context()) == 0


def test_a_branch_reads_int64() -> None:
    text = """m (int8[4] x, bool p) => (int64[4] y) <int64 k = {3}>
        { a = Cast<to = 7>(x)  b = Add(a, k)  c = Mul(b, k)  d = Sub(c, k)
          y = If (p) <then_branch = t () => (int64[4] o) { o = Neg(d) },
                      else_branch = e () => (int64[4] o2) { o2 = Abs(d) }> }"""
    model = parse(text)
    before = ir.to_proto(model)
    assert ConvertInt64().run(model, Context()) > 0
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    inputs = {"x": np.array([1, -2, 3, 127], np.int8), "p": np.array(True)}
    np.testing.assert_array_equal(run(ir.to_proto(model), inputs)["y"], run(before, inputs)["y"])


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("y = Add(a, k)", (-128 + 3, 127 + 3)),
        ("y = Sub(k, a)", (3 - 127, 3 + 128)),
        ("y = Mul(a, k)", (-384, 381)),
        ("y = Div(a, k)", (-128, 128)),
        ("y = Abs(a)", (0, 128)),
        ("y = Mod(a, k)", (-3, 3)),
        ("y = Clip(a, k, seven)", (3, 7)),
        ("y = Clip(a, , k)", (-128, 3)),
        ("y = Max(a, k)", (3, 127)),
        ("y = Min(a, k)", (-128, 3)),
        ("y = Where(p, a, seven)", (-128, 127)),
    ],
)
def test_the_bounds_hold_for_every_operator(node: str, expected: tuple[int, int]) -> None:
    text = f"""m (int8[4] x, bool[4] p) => (int64[4] y) <int64 k = {{3}}, int64 seven = {{7}}>
        {{ a = Cast<to = 7>(x)  {node} }}"""
    assert bounds(text)["y"] == expected
    proto = ir.to_proto(parse(text))
    every = {"x": np.arange(-128, 128, dtype=np.int8).reshape(64, 4), "p": np.array([True, False, True, False])}
    for row in every["x"]:
        found = run(proto, {"x": row, "p": every["p"]})["y"]
        assert expected[0] <= found.min() <= found.max() <= expected[1]


def test_an_input_that_indexes_a_table_lies_in_it() -> None:
    text = """m (float[8, 4] t, int64[n] ids) => (float[n, 4] y) { y = Gather(t, ids) }"""
    model = parse(text)
    assert tuple(intervals(model.graph)[model.graph.inputs[1]]) == (-8, 7)
