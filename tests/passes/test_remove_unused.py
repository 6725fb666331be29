"""Dead code goes; the interface of the model stays."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from infconv.passes.remove_unused import RemoveUnused
from tests.helpers import apply, check_rewrite, parse


def test_a_chain_that_leads_nowhere() -> None:
    check_rewrite(
        RemoveUnused(),
        "m (float[2] x) => (float[2] y) { y = Relu(x) a = Exp(x) b = Neg(a) }",
        "m (float[2] x) => (float[2] y) { y = Relu(x) }",
        changes=2,
    )


def test_initializers_are_removed_inputs_and_their_defaults_are_not() -> None:
    model = check_rewrite(
        RemoveUnused(),
        """m (float[2] x, float[2] unused, float[1] d) => (float[2] y) <float[1] d = {1}, float[1] w = {2}>
        { y = Relu(x) }""",
        "m (float[2] x, float[2] unused, float[1] d) => (float[2] y) <float[1] d = {1}> { y = Relu(x) }",
        changes=1,
    )
    assert list(model.graph.initializers) == ["d"]


def test_an_if_that_nobody_needs_takes_what_its_branches_used_with_it() -> None:
    check_rewrite(
        RemoveUnused(),
        """m (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}>
        { a = Exp(x)
          y = Relu(x)
          z = If (c) <then_branch = t () => (float[2] o) { o = Add(a, w) },
                      else_branch = e () => (float[2] o) { p = Sub(a, w) o = Neg(p) }> }""",
        "m (float[2] x, bool c) => (float[2] y) { y = Relu(x) }",
        changes=3,
    )


def test_dead_code_inside_a_branch() -> None:
    check_rewrite(
        RemoveUnused(),
        """m (float[2] x, bool c) => (float[2] y)
        { a = Exp(x)
          y = If (c) <then_branch = t () => (float[2] o) { dead = Neg(a) o = Relu(x) },
                      else_branch = e () => (float[2] o) <float[2] w = {1, 2}> { o = Abs(x) }> }""",
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) { o = Relu(x) },
                      else_branch = e () => (float[2] o) { o = Abs(x) }> }""",
        changes=3,
    )


def test_optional_outputs() -> None:
    model = check_rewrite(
        RemoveUnused(),
        """m (float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] y)
        { y, indices = MaxPool <kernel_shape = [2, 2]> (x) }""",
        "m (float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] y) { y = MaxPool <kernel_shape = [2, 2]> (x) }",
        changes=1,
    )
    assert len(model.graph[0].outputs) == 1


def test_an_optional_output_before_a_used_one_loses_its_name_only() -> None:
    model = parse(
        """m (float[1, 1, 2] x, float[1, 4, 2] w, float[1, 4, 1] r) => (float[1, 1, 1] h)
        { y, h, c = LSTM <hidden_size = 1> (x, w, r) }"""
    )
    assert apply(RemoveUnused(), model) == 2
    assert [output.name for output in model.graph[0].outputs] == ["", "h"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert apply(RemoveUnused(), model) == 0


def test_the_outputs_of_a_batch_normalization_say_that_it_trains() -> None:
    old = """<ir_version: 7, opset_import: ["" : 9]>
    m (float[2, 3] x, float[3] s, float[3] b, float[3] mean, float[3] var) => (float[2, 3] y)
    { y, new_mean, new_var, kept_mean, kept_var = BatchNormalization (x, s, b, mean, var) }"""
    new = """m (float[2, 3] x, float[3] s, float[3] b, float[3] mean, float[3] var) => (float[2, 3] y)
    { y, new_mean, new_var = BatchNormalization <training_mode = 1> (x, s, b, mean, var) }"""
    assert apply(RemoveUnused(), parse(old)) == 0
    assert apply(RemoveUnused(), parse(new)) == 0


def test_functions_and_opset_imports() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 20, "ai.onnx.ml" : 3, "local" : 1]>
        m (float[2] x) => (float[2] y) { y = local.used(x) z = local.unused(x) }
        <domain: "local", opset_import: ["" : 20, "local" : 1]> used (a) => (b) { b = local.inner(a) }
        <domain: "local", opset_import: ["" : 20, "ai.onnx.ml" : 3]> inner (a) => (b) { b = Relu(a) c = Exp(a) }
        <domain: "local", opset_import: ["" : 20]> unused (a) => (b) { b = Abs(a) }""",
        infer=False,
    )
    # z, c, the function `unused`, the import in the model and the one in `inner`
    assert apply(RemoveUnused(), model) == 5
    assert [name for _, name, _ in model.functions] == ["used", "inner"]
    assert dict(model.opset_imports) == {"": 20, "local": 1}
    onnx.checker.check_model(ir.to_proto(model))
    assert apply(RemoveUnused(), model) == 0


def test_a_node_without_outputs_is_there_for_its_effect() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    log = ir.Node("acme", "Log", [x], num_outputs=0)
    relu = ir.node("Relu", [x])
    graph = ir.Graph([x], relu.outputs, nodes=[log, relu], opset_imports={"": 20, "acme": 1}, name="m")
    assert apply(RemoveUnused(), ir.Model(graph, ir_version=10)) == 0


def test_order_of_nodes_and_depth_do_not_matter() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    nodes = [ir.node("Relu", [x])]
    for _ in range(5000):
        nodes.append(ir.node("Exp", nodes[-1].outputs))
    graph = ir.Graph([x], nodes[0].outputs, nodes=reversed(nodes), opset_imports={"": 20}, name="m")
    model = ir.Model(graph, ir_version=10)
    assert apply(RemoveUnused(), model) == 5000
    assert apply(RemoveUnused(), model) == 0
