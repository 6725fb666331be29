"""Bodies of If, Loop and Scan are written out as they ran, and the first divergence is found inside them."""

from __future__ import annotations

import numpy as np
import pytest

from infconv import bodies
from infconv.align import Layer, align, first_divergence, record
from infconv.bodies import observe
from infconv.compare import TOLERANCES
from tests.helpers import parse

X = np.random.default_rng(0).normal(size=(4, 3)).astype("f4")

IF = """
    m (float[4, 3] x, bool c) => (float[4, 3] y) {
        a = Sigmoid(x)
        [pick] b = If (c) <
            then_branch = t () => (float[4, 3] r) { h = Neg(a) [inner] r = If (c) <
                then_branch = tt () => (float[4, 3] q) { [deep] q = Exp(h) },
                else_branch = te () => (float[4, 3] q) { q = Abs(h) }> },
            else_branch = e () => (float[4, 3] r) { h = Sqrt(a) r = Identity(h) }>
        y = Tanh(b)
    }
"""
LOOP = """
    m (float[4, 3] x, int64 n, bool go) => (float[4, 3] y, float[k, 3] rows)
    <float limit = {100}, int64[1] axis = {0}> {
        [round] s, rows = Loop (n, go, x) <
            body = b (int64 i, bool c, float[4, 3] h) => (bool c2, float[4, 3] h2, float[3] row) {
                f = CastLike(i, h)
                g = Add(h, f)
                [step] h2 = Mul(g, f)
                row = ReduceMax<keepdims = 0>(h2, axis)
                top = ReduceMax<keepdims = 0>(row)
                c2 = Less(top, limit)
            }>
        y = Tanh(s)
    }
"""
SCAN = """
    m (float[4, 3] x, float[4] start) => (float[4] total, float[3, 4] y) {
        [walk] total, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
                                scan_output_directions = [1],
            body = b (float[4] h, float[4] column) => (float[4] h2, float[4] out) {
                [mix] m = Mul(column, column)
                h2 = Add(h, m)
                out = Neg(h2)
            }> (start, x)
    }
"""


def divergence(text: str, other: str, inputs: dict[str, np.ndarray]) -> Layer | None:
    a, b = observe(parse(text), inputs), observe(parse(other), inputs)
    return first_divergence(align(a.model, b.model, a.values, b.values, TOLERANCES["fp32"]), b.model)


def feeds(text: str, **more: object) -> dict[str, np.ndarray]:
    extra = {"c": np.array(True), "n": np.array(3), "go": np.array(True), "start": np.ones(4, "f4"), **more}
    return {value.name or "": np.asarray({"x": X, **extra}[value.name or ""]) for value in parse(text).graph.inputs}


@pytest.mark.parametrize("text", [IF, LOOP, SCAN, f'<ir_version: 5, opset_import: ["": 9]> {SCAN}'])
def test_what_is_written_out_has_no_bodies_and_computes_the_same(text: str) -> None:
    for flag in (True, False):
        inputs = feeds(text, c=flag)
        plain, seen = record(parse(text), inputs), observe(parse(text), inputs)
        assert not {node.op_type for node in seen.model.graph} & {"If", "Loop", "Scan"}
        for value in parse(text).graph.outputs:
            np.testing.assert_allclose(seen.values[value.name or ""], plain[value.name or ""], rtol=1e-6)


def test_a_branch_within_a_branch_is_named() -> None:
    first = divergence(IF, IF.replace("q = Exp(h)", "q = Softplus(h)"), feeds(IF))
    assert first is not None
    assert first.node == "Softplus 'deep' in the then branch of If 'inner', in the then branch of If 'pick'"
    assert divergence(IF, IF.replace("q = Exp(h)", "q = Softplus(h)"), feeds(IF, c=False)) is None
    other = divergence(IF, IF.replace("Sqrt(a)", "Exp(a)"), feeds(IF, c=False))
    assert other is not None
    assert other.node == "Exp 'h' in the else branch of If 'pick'"


def test_the_iteration_is_named() -> None:
    first = divergence(LOOP, LOOP.replace("g = Add(h, f)", "g = Max(h, f)"), feeds(LOOP))
    assert first is not None  # at i = 0, Mul makes all zero; Add and Max still differ before it
    assert first.node == "Max 'g@1' in iteration 1 of 3 of Loop 'round'"
    late = LOOP.replace(
        "[step] h2 = Mul(g, f)", "two = Add(f, f) three = Add(two, f) ff = Min(three, f) [step] h2 = Mul(g, ff)"
    )
    assert divergence(LOOP, late, feeds(LOOP)) is None
    late = late.replace("ff = Min(three, f)", "one = CastLike(go, f) ff = Min(one, f)")
    first = divergence(LOOP, late, feeds(LOOP))
    assert first is not None
    assert first.node == "Mul 'step' in iteration 3 of 3 of Loop 'round'"


def test_a_condition_that_ends_a_loop_early_is_the_culprit() -> None:
    first = divergence(LOOP, LOOP.replace("Less(top, limit)", "Greater(top, limit)"), feeds(LOOP))
    assert first is not None
    assert first.node == "Greater 'c2@1' in iteration 1 of 1 of Loop 'round'"


def test_a_scan_that_goes_backwards_is_written_out() -> None:
    first = divergence(SCAN, SCAN.replace("m = Mul(column, column)", "m = Mul(column, h)"), feeds(SCAN))
    assert first is not None
    assert first.node == "Mul 'mix' in iteration 1 of 3 of Scan 'walk'"


def test_a_loop_that_does_not_run_is_written_out_as_nothing() -> None:
    text = LOOP.replace(", float[k, 3] rows)\n", ")\n").replace("s, rows = Loop", "s = Loop")
    text = text.replace(", float[3] row) {", ") {")
    seen = observe(parse(text), feeds(text, n=0))
    assert not any(node.op_type == "Loop" for node in seen.model.graph)
    closed = observe(parse(LOOP), feeds(LOOP, n=0))
    assert [bodies.label(n, "") for n in closed.model.graph if n.op_type == "Loop"] == [
        "Loop 'round' (its inside was not looked into: it ran no iteration)"
    ]


def test_what_cannot_be_looked_into_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = LOOP.replace("g = Add(h, f)", "g = Max(h, f)")
    monkeypatch.setattr(bodies, "MOST_NODES", 10)
    first = divergence(LOOP, wrong, feeds(LOOP))
    assert first is not None
    assert first.node == "Loop 'round' (its inside was not looked into: its 3 iterations of 6 nodes are too many)"
    mapped = """
        m (float[4, 3] x) => (float[4, 3] y) {
            s = SequenceConstruct(x, x)
            [each] t = SequenceMap <body = b (float[4, 3] h) => (float[4, 3] r) { r = Exp(h) }> (s)
            zero = Constant<value_int = 0>()
            y = SequenceAt(t, zero)
        }
    """
    first = divergence(mapped, mapped.replace("Exp", "Softplus"), {"x": X})
    assert first is not None
    assert first.node == "SequenceMap 'each' (its inside was not looked into: SequenceMap is not written out)"


def test_values_of_functions_are_seen() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "own": 1]>
        m (float[4, 3] x) => (float[4, 3] y) { [call] y = own.Half(x) }
        <domain: "own", opset_import: ["": 20]>
        Half (v) => (w) { [twice] u = Exp(v) w = Tanh(u) }
    """
    first = divergence(text, text.replace("Exp(v)", "Softplus(v)"), {"x": X})
    assert first is not None
    assert first.node == "Softplus 'call/twice'"


def test_a_copy_that_computes_something_else_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_integers", lambda _node, _name, count: [0] * count)  # axes and directions are lost
    seen = observe(
        parse(SCAN.replace("[4, 3] x", "[4, 4] x").replace("[3, 4] y", "[4, 4] y")),
        {"x": np.arange(16, dtype="f4").reshape(4, 4), "start": np.ones(4, "f4")},
    )
    assert [bodies.label(node, "") for node in seen.model.graph] == [
        "Scan 'walk' (its inside was not looked into: written out it computes something else)"
    ]
