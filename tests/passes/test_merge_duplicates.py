"""What is computed or stored twice is merged, where that is exact."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.passes.merge_duplicates import MergeDuplicates
from tests.helpers import apply, check_rewrite, parse


def test_a_chain_of_equal_nodes() -> None:
    check_rewrite(
        MergeDuplicates(),
        """m (float[2] x) => (float[2] y)
        { a = Exp(x) b = Neg(a) c = Exp(x) d = Neg(c) y = Add(b, d) }""",
        "m (float[2] x) => (float[2] y) { a = Exp(x) b = Neg(a) y = Add(b, b) }",
        changes=2,
    )


def test_operands_of_commutative_operators_may_be_swapped() -> None:
    check_rewrite(
        MergeDuplicates(),
        """m (float[2] x, float[2] w) => (float[2] y)
        { a = Add(x, w) b = Add(w, x) c = Sub(x, w) d = Sub(w, x) e = Sum(a, b) f = Sum(c, d) y = Div(e, f) }""",
        """m (float[2] x, float[2] w) => (float[2] y)
        { a = Add(x, w) c = Sub(x, w) d = Sub(w, x) e = Sum(a, a) f = Sum(c, d) y = Div(e, f) }""",
        changes=1,
    )


def test_an_output_of_the_graph_keeps_its_name() -> None:
    model = check_rewrite(
        MergeDuplicates(),
        "m (float[2] x) => (float[2] y, float[2] z) { a = Exp(x) z = Neg(a) y = Exp(x) }",
        "m (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Neg(y) }",
        changes=1,
    )
    assert [output.name for output in model.graph.outputs] == ["y", "z"]


def test_of_two_outputs_one_becomes_an_identity() -> None:
    check_rewrite(
        MergeDuplicates(),
        "m (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Exp(x) }",
        "m (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Identity(y) }",
        changes=1,
    )


def test_attributes_are_compared_bit_by_bit() -> None:
    text = """m (float[2] x) => (float[2] y)
    {{ a = LeakyRelu <alpha = {}> (x) b = LeakyRelu <alpha = {}> (x) y = Sub(a, b) }}"""
    assert apply(MergeDuplicates(), parse(text.format("0.0", "-0.0"))) == 0
    assert apply(MergeDuplicates(), parse(text.format("0.5", "0.5"))) == 1


@pytest.mark.parametrize(
    "twins",
    [
        "a = RandomNormalLike(x) b = RandomNormalLike(x)",
        "a = RandomUniform <shape = [2]> () b = RandomUniform <shape = [2]> ()",
        "p = Sigmoid(x) a = Bernoulli(p) b = Bernoulli(p)",
        "r = Constant <value_float = 0.5> () t = Constant <value = bool {1}> () "
        "a = Dropout(x, r, t) b = Dropout(x, r, t)",
    ],
)
def test_random_operators_are_drawn_twice(twins: str) -> None:
    assert apply(MergeDuplicates(), parse("m (float[2] x) => (float[2] y) { %s y = Sub(a, b) }" % twins)) == 0


def test_operators_of_which_nothing_is_known_stay_and_so_do_functions_made_of_them() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "acme" : 1, "local" : 1]>
    m (float[2] x) => (float[2] y) { a = local.f(x) b = local.f(x) y = Sub(a, b) }
    <domain: "local", opset_import: ["" : 20, "acme" : 1, "local" : 1]> f (a) => (b) { b = local.g(a) }
    <domain: "local", opset_import: ["" : 20, "acme" : 1]> g (a) => (b) { b = %s(a) }"""
    for operator, changes in (("acme.Roll", 0), ("RandomNormalLike", 0), ("Exp", 1)):
        model = ir.from_proto(onnx.parser.parse_model(text % operator))
        assert apply(MergeDuplicates(), model) == changes


def test_nothing_moves_between_scopes() -> None:
    check_rewrite(
        MergeDuplicates(),
        """m (float[2] x, bool c) => (float[2] y, float[2] z)
        { z = Exp(x)
          y = If (c) <then_branch = t () => (float[2] o) { a = Exp(x) b = Exp(x) o = Add(a, b) },
                      else_branch = e () => (float[2] o) { a = Exp(x) o = Neg(a) }> }""",
        """m (float[2] x, bool c) => (float[2] y, float[2] z)
        { z = Exp(x)
          y = If (c) <then_branch = t () => (float[2] o) { a = Exp(x) o = Add(a, a) },
                      else_branch = e () => (float[2] o) { a = Exp(x) o = Neg(a) }> }""",
        changes=1,
    )


def test_a_different_number_of_outputs_is_a_different_node() -> None:
    text = """m (float[1, 1, 4] x) => (float[1, 1, 3] y, float[1, 1, 3] z, int64[1, 1, 3] i)
    { y = MaxPool <kernel_shape = [2]> (x) z, i = MaxPool <kernel_shape = [2]> (x) }"""
    assert apply(MergeDuplicates(), parse(text)) == 0


def test_equal_initializers() -> None:
    model = check_rewrite(
        MergeDuplicates(),
        """m (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 3}>
        { p = Add(x, a) q = Mul(p, b) y = Sub(q, c) }""",
        """m (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] c = {1, 3}>
        { p = Add(x, a) q = Mul(p, a) y = Sub(q, c) }""",
        changes=1,
    )
    assert list(model.graph.initializers) == ["a", "c"]


def test_initializers_that_are_inputs_or_outputs_are_part_of_the_interface() -> None:
    text = """m (float[2] x, float[2] a) => (float[2] y, float[2] b) <float[2] a = {1, 2}, float[2] b = {1, 2}>
    { p = Add(x, a) y = Mul(p, b) }"""
    assert apply(MergeDuplicates(), parse(text)) == 0


def graph_of(*weights: np.ndarray) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [1])
    values = [
        ir.Value(
            name=f"w{i}", const_value=ir.tensor(w), type=ir.TensorType(ir.tensor(w).dtype), shape=ir.Shape(w.shape)
        )
        for i, w in enumerate(weights)
    ]
    node = ir.node("Concat", [x, *values], {"axis": 0})
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=values, opset_imports={"": 20}, name="m")
    return ir.Model(graph, ir_version=10)


def test_large_initializers_that_differ_in_one_element_are_told_apart() -> None:
    base = np.arange(100_000, dtype=np.float32)
    for index in (0, 1, 50_001, 99_999):
        other = base.copy()
        other[index] += 1
        assert apply(MergeDuplicates(), graph_of(base, other)) == 0
    assert apply(MergeDuplicates(), graph_of(base, base.copy(), base)) == 2


def test_type_and_shape_count() -> None:
    zeros = np.zeros(4, np.float32)
    assert apply(MergeDuplicates(), graph_of(zeros, zeros.reshape(2, 2), zeros.astype(np.int32))) == 0
    assert apply(MergeDuplicates(), graph_of(zeros, -zeros)) == 0  # 1/0.0 is not 1/-0.0
