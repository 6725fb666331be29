"""What `infconv diff` finds: nodes are matched by what they compute and where they stand, not by their names."""

from __future__ import annotations

from infconv.difference import Change, Difference, find_difference
from tests.helpers import parse

BASE = """
m (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}> {
    h = MatMul(x, w)
    r = Relu(h)
    s = Softmax<axis = 1>(r)
    y = Neg(s)
}
"""


def diff(old: str, new: str) -> Difference:
    found = find_difference(parse(BASE, infer=False), parse(BASE.replace(old, new), infer=False))
    mirrored = find_difference(parse(BASE.replace(old, new), infer=False), parse(BASE, infer=False))
    assert (found.nodes.removed, found.nodes.added) == (mirrored.nodes.added, mirrored.nodes.removed)
    assert found.same_nodes == mirrored.same_nodes
    return found


def test_names_of_inner_values_do_not_count() -> None:
    model = BASE.replace("h ", "hidden ").replace("(h)", "(hidden)").replace("r ", "q ").replace("(r)", "(q)")
    assert find_difference(parse(BASE), parse(model)).equal


def test_an_attribute() -> None:
    found = diff("axis = 1", "axis = 0")
    assert not found.equal
    assert found.nodes.changed == [Change("Softmax → s", ["axis: 1 → 0"])]
    assert (found.nodes.removed, found.nodes.added, found.same_nodes) == ([], [], 3)
    assert not found.operators


def test_an_inserted_node_leaves_its_neighbours_matched() -> None:
    found = diff("s = Softmax<axis = 1>(r)", "a = Abs(r) s = Softmax<axis = 1>(a)")
    assert found.nodes.added == ["Abs → a"]
    assert found.nodes.changed == [Change("Softmax → s", ["input 0: Relu r → Abs a"])]
    assert found.nodes.removed == []
    assert found.operators.added == ["Abs 1"]


def test_a_replaced_node() -> None:
    found = diff("Relu", "Tanh")
    assert (found.nodes.removed, found.nodes.added) == (["Relu → r"], ["Tanh → r"])
    assert [change.name for change in found.nodes.changed] == ["Softmax → s"]


def test_weights() -> None:
    found = diff("{1, 0", "{2, 0")
    assert found.initializers.changed == [Change("w", ["other values, float32[4,4]"])]
    assert [change.name for change in found.nodes.changed] == ["MatMul → h"]
    assert found.same_nodes == 3


def test_the_interface_and_the_opset() -> None:
    found = diff("(float[N, 4] x)", "(float[N, 4] x, int64 unused)")
    assert found.inputs.added == ["unused int64[]"]
    assert not found.nodes
    older = parse('<ir_version: 10, opset_import: ["" : 19]>' + BASE)
    assert find_difference(parse(BASE), older).opsets.changed == [Change("ai.onnx", ["20 → 19"])]
    found = diff("=> (float[N, 4] y)", "=> (float[M, 4] y)")
    assert found.outputs.changed == [Change("y", ["float32[N,4] → float32[M,4]"])]


IF = """
m (bool c, float[2] x) => (float[2] y) {
    y = If (c) <then_branch = t () => (float[2] o) { o = Relu(x) }, else_branch = e () => (float[2] p) { p = Neg(x) }>
}
"""


def test_a_subgraph_is_compared_by_what_it_computes() -> None:
    assert find_difference(parse(IF), parse(IF.replace("o)", "q)").replace("o =", "q ="))).equal
    found = find_difference(parse(IF), parse(IF.replace("Neg", "Abs")))
    assert [change.name for change in found.nodes.changed] == ["If → y"]
    assert found.nodes.changed[0].how[0].startswith("else_branch: 1 nodes")


FUNCTION = """
<ir_version: 10, opset_import: ["" : 20, "my" : 1]>
m (float[2] x) => (float[2] y) { y = my.f(x) }
<opset_import: ["" : 20], domain: "my"> f (a) => (b) { b = Relu(a) }
"""


def test_a_function_is_compared_by_its_body() -> None:
    found = find_difference(parse(FUNCTION, infer=False), parse(FUNCTION.replace("Relu", "Abs"), infer=False))
    assert found.functions.changed == [Change("my.f", ["another body"])]
    assert find_difference(parse(FUNCTION, infer=False), parse(FUNCTION, infer=False)).equal
