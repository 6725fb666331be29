"""Constant subgraphs become constants; everything that only looks constant stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.model import from_proto
from infconv.passes import Context, _evaluate
from infconv.passes._edit import needs_nodes
from infconv.passes.fold_constants import FoldConstants
from tests.helpers import check_rewrite, parse, run


def check_untouched(text: str, *, infer: bool = True) -> Context:
    """Check that the pass leaves the model alone, and return what it said."""
    model, context = parse(text, infer), Context()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert FoldConstants().run(model, context) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    return context


def test_a_chain_on_constants() -> None:
    check_rewrite(
        FoldConstants(),
        """m (float[2] x) => (float[2] y) <float[2] a = {1, 2}>
        { b = Constant <value_floats = [3.0, 4.0]> ()
          c = Mul(a, b)
          d = Neg(c)
          y = Add(x, d) }""",
        "m (float[2] x) => (float[2] y) <float[2] d = {-3, -8}> { y = Add(x, d) }",
        changes=3,
    )


def test_what_was_only_there_to_be_folded_goes() -> None:
    model = parse(
        "m (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { t = Transpose(w) y = MatMul(x, t) }"
    )
    assert FoldConstants().run(model, Context()) == 1
    assert list(model.graph.initializers) == ["t"]


def test_an_output_may_be_a_constant() -> None:
    check_rewrite(
        FoldConstants(),
        "m (float[1] x) => (float[1] y, float[1] z) <float[1] a = {2}> { y = Relu(x) z = Neg(a) }",
        "m (float[1] x) => (float[1] y, float[1] z) <float[1] z = {-2}> { y = Relu(x) }",
        changes=1,
    )


@pytest.mark.parametrize(
    ("operator", "value"),
    [("Shape(x)", [2, 3, 4]), ("Shape <start = 1, end = -1> (x)", [3]), ("Shape <start = -1> (x)", [4])],
)
def test_shape_of_a_fixed_shape_honours_start_and_end(operator: str, value: list[int]) -> None:
    model = parse(f"m (float[2, 3, 4] x) => (int64[n] y) {{ y = {operator} }}", infer=False)
    assert FoldConstants().run(model, Context()) == 1
    assert model.graph.outputs[0].const_value.numpy().tolist() == value


def test_shape_folds_when_the_dimensions_asked_for_are_fixed() -> None:
    check_rewrite(
        FoldConstants(),
        "m (float[n, 3] x) => (int64[1] y, int64[2] z) { a = Shape <start = 1> (x) y = Neg(a) z = Shape(x) }",
        "m (float[n, 3] x) => (int64[1] y, int64[2] z) <int64[1] y = {-3}> { z = Shape(x) }",
        changes=2,
    )


def test_cast_like_keeps_saturate() -> None:
    check_rewrite(
        FoldConstants(),
        """<ir_version: 10, opset_import: ["" : 21]>
        m (float[2] x, float8e4m3fn[1] like) => (float8e4m3fn[2] y) { y = CastLike <saturate = 0> (x, like) }""",
        """<ir_version: 10, opset_import: ["" : 21]>
        m (float[2] x, float8e4m3fn[1] like) => (float8e4m3fn[2] y) { y = Cast <to = 17, saturate = 0> (x) }""",
        changes=1,
        compare=False,
    )


def test_an_if_on_a_constant_gives_way_to_its_branch() -> None:
    check_rewrite(
        FoldConstants(),
        """m (float[2] x) => (float[2] y) <bool yes = {1}, float[2] w = {1, 1}>
        { no = Not(yes)
          o = Exp(x)
          y = If (no) <then_branch = t () => (float[2] o1) { o1 = Neg(x) },
                       else_branch = e () => (float[2] p) <float[2] w1 = {2, 2}> { q = Mul(o, w1) p = Add(q, w) }> }""",
        """m (float[2] x) => (float[2] y)
        { o = Exp(x) q = Mul(o, w1) p = Add(q, w) y = Identity(p) }""".replace(
            "=> (float[2] y)", "=> (float[2] y) <float[2] w1 = {2, 2}, float[2] w = {1, 1}>"
        ),
        changes=2,
    )


def test_names_of_a_branch_never_clash() -> None:
    model = parse("""
        m (float[2] x, bool c) => (float[2] y, float[2] z) <bool yes = {1}>
        { y = If (yes) <then_branch = t () => (float[2] o) { h = Neg(x) o = Relu(h) },
                        else_branch = e () => (float[2] o) { o = Exp(x) }>
          z = If (c) <then_branch = t () => (float[2] o) { h = Abs(x) o = Relu(h) },
                      else_branch = e () => (float[2] o) { o = Exp(x) }> }""")
    before = ir.to_proto(model)
    assert FoldConstants().run(model, Context()) == 1
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    feed = {"x": np.array([-1, 2], np.float32), "c": np.array(True)}
    np.testing.assert_equal(run(after, feed), run(before, feed))


def test_inside_branches() -> None:
    check_rewrite(
        FoldConstants(),
        """m (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}>
        { y = If (c) <then_branch = t () => (float[2] o)
                        { k = Constant <value = float[2] {3, 4}> () s = Add(w, k) o = Mul(x, s) },
                      else_branch = e () => (float[2] o) { o = Neg(w) }> }""",
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) <float[2] s = {4, 6}> { o = Mul(x, s) },
                      else_branch = e () => (float[2] o) <float[2] o = {-1, -2}> { }> }""",
        changes=3,
    )


def test_in_functions_a_constant_is_a_node() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 20, "f" : 1]>
        m (float[1] x) => (float[1] y) { y = f.half(x) }
        <domain: "f", opset_import: ["" : 20]>
        half (x) => (y)
        { one = Constant <value_float = 1.0> () two = Add(one, one) h = Div(one, two) y = Mul(x, h) }""")
    assert FoldConstants().run(model, Context()) == 2 + 1  # Add and Div, and the Constant that only they used
    (function,) = model.functions.values()
    assert [node.op_type for node in function.graph] == ["Constant", "Mul"]
    assert FoldConstants().run(model, Context()) == 0
    assert run(ir.to_proto(model), {"x": np.array([3], np.float32)})["y"] == 1.5


def test_in_ir_version_3_a_constant_is_a_node() -> None:
    model = parse("""
        <ir_version: 3, opset_import: ["" : 9]>
        m (float[2] x) => (float[2] y)
        { a = Constant <value = float[2] {1, 2}> () b = Neg(a) y = Add(x, b) }""")
    assert needs_nodes(model)
    assert FoldConstants().run(model, Context()) == 2
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [node.op_type for node in model.graph] == ["Constant", "Add"]
    assert FoldConstants().run(model, Context()) == 0


def test_every_element_type_survives() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        m (float[1] x) => (bfloat16[2] a, float8e4m3fn[2] b, string[1, 1] c, uint4[1, 2] d, bool[2] e)
        <float[2] f = {1, 500}, string[1] t = {"text"}, bool[2] g = {1, 0}, float[1, 2] h = {3, 9},
         int64[2] s = {1, -1}>
        { a = Cast <to = 16> (f)
          b = Cast <to = 17> (f)
          c = Reshape(t, s)
          d = Cast <to = 21> (h)
          e = Not(g) }""")
    assert FoldConstants().run(model, Context()) == 5
    found = [output.const_value for output in model.graph.outputs]
    assert [str(tensor.dtype) for tensor in found] == ["BFLOAT16", "FLOAT8E4M3FN", "STRING", "UINT4", "BOOL"]
    assert [tensor.numpy().astype(object).ravel().tolist() for tensor in found] == [
        [1, 500],
        [1, 448],
        [b"text"],
        [3, 9],
        [False, True],
    ]


def test_large_results_come_back_whole() -> None:
    weight = np.arange(300 * 200, dtype=np.float32).reshape(300, 200)
    model = parse("m (float[1, 200] x, float[300, 200] w) => (float[1, 300] y) { t = Transpose(w) y = MatMul(x, t) }")
    value = model.graph.inputs.pop()
    value.const_value = ir.Tensor(weight)
    model.graph.initializers.add(value)
    assert FoldConstants(max_bytes=0).run(model, Context()) == 1, "the source goes, so nothing grows"
    np.testing.assert_array_equal(model.graph.initializers["t"].const_value.numpy(), weight.T)


def test_nothing_grows_beyond_the_limit() -> None:
    text = "m (float[64] x) => (float[64, 64] y) <int64[2] s = {64, 64}> { e = ConstantOfShape(s) y = Add(x, e) }"
    model = parse(text, infer=False)
    assert FoldConstants(max_bytes=1000).run(model, Context()) == 0
    assert FoldConstants(max_bytes=20_000).run(model, Context()) == 1


@pytest.mark.parametrize(
    "text",
    [
        # the caller may replace the default of an input
        "m (float[1] x, float[1] d) => (float[1] y) <float[1] d = {1}> { n = Neg(d) y = Add(x, n) }",
        "m (float[2] x) => (float[2] y) <int64[1] s = {2}> { r = RandomNormal <shape = [2]> () y = Add(x, r) }",
        "m (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { r = RandomNormalLike(w) y = Add(x, r) }",
        # a quantized weight is what the pair of nodes says
        """m (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float s = {0.1}, int8 z = {0}>
        { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Add(x, d) }""",
        # its values are not tensors
        "m (float[2] x) => (seq(float[2]) y) <float[2] w = {1, 2}> { y = SequenceConstruct(w) }",
        # runtimes write numbers differently
        "m (string[1] x) => (string[1] y) <float[1] w = {0.1}> { s = Cast <to = 8> (w) y = StringConcat(x, s) }",
    ],
)
def test_left_alone(text: str) -> None:
    assert check_untouched(text).notes == []


def test_what_would_show_that_an_output_is_declared_wrongly() -> None:
    """The checker accepts the model as long as the target is computed, and ONNX Runtime runs it."""
    check_untouched(
        """<ir_version: 7, opset_import: ["" : 12]>
        m (float[1, 4, 5] x) => (float[2, 2, n] y) <int64[1] a = {-1}, int64[1] b = {5}>
        { t = Concat <axis = 0> (a, b) y = Reshape(x, t) }"""
    )


def test_what_cannot_be_computed_is_named_and_the_rest_is_folded() -> None:
    model, context = (
        parse(
            """m (float[1] x) => (float[1] y, float[1] z) <float[2] w = {1, 2}, int64[1] i = {7}, float[1] a = {1}>
        { n = Neg(w) g = Gather(n, i) h = Exp(g) y = Add(x, h) b = Neg(a) z = Add(x, b) }""",
            infer=False,
        ),
        Context(),
    )
    assert FoldConstants().run(model, context) == 2
    assert [node.op_type for node in model.graph] == ["Gather", "Exp", "Add", "Add"]
    assert "Gather 'g' is constant but was left alone" in context.notes[0]


def test_a_crash_of_the_runtime_is_found_by_bisection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _evaluate._run

    def crash_on_exp(work: _evaluate._Work) -> object:
        if any(node.op_type == "Exp" for node in work.proto.graph.node):
            import os

            os.abort()
        return original(work)

    monkeypatch.setattr(_evaluate, "_run", crash_on_exp)
    model, context = (
        parse(
            """m (float[1] x) => (float[1] y) <float[1] a = {1}>
        { b = Neg(a) c = Exp(b) d = Add(c, b) e = Abs(b) f = Mul(d, e) y = Add(x, f) }"""
        ),
        Context(),
    )
    assert FoldConstants().run(model, context) == 2
    assert [node.op_type for node in model.graph] == ["Exp", "Add", "Mul", "Add"]
    assert "Exp 'c'" in context.notes[0]
    assert "crashed" in context.notes[0]


def test_large_weights_are_folded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_evaluate, "_HELD", 1 << 16)
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(64, 128)).astype("f4") for i in range(5)}
    text = """g (float[N, 128] x) => (float[N, 64] y) {
        t0 = Transpose (w0) t1 = Transpose (w1) s = Add (w2, w3) t2 = Transpose (s) u = Transpose (w4) v = Add (t2, u)
        a = MatMul (x, t0) b = MatMul (x, t1) c = MatMul (x, v) d = Add (a, b) y = Add (c, d) }"""
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    graph = from_proto(model)
    assert FoldConstants().run(graph, Context()) == 6
    found = {name: value.const_value.numpy() for name, value in graph.graph.initializers.items()}
    assert len(found) == 3
    total = (weights["w2"] + weights["w3"]).T + weights["w4"].T
    assert any(np.array_equal(array, total) for array in found.values())
    assert any(np.array_equal(array, weights["w0"].T) for array in found.values())
