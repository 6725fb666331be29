"""Loops as tf2onnx writes them, put as runtimes want them: TensorFlow is not needed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from infconv.convert._worker_tensorflow_loops import count_trips, free_invariants

WHILE = """
<ir_version: 9, opset_import: ["" : 17]>
main (float[2] x) => (float[2] last, float[n, 2] all)
<int64 forever = {9223372036854775807}, bool yes = {1}, int32 zero = {0}, float[2] step = {1.0, 2.0}>
{
    i, last, same, all = Loop (forever, yes, zero, x, step) <body = turn (int64 number, bool on, int32 i_in,
        float[2] x_in, float[2] step_in)
        => (bool again, int32 i_next, float[2] x_next, float[2] step_in, float[2] each) {
        one = Constant <value = int32 {BY}> ()
        end = Constant <value = float {5.0}> ()
        i_next = Add (i_in, one)
        i_float = Cast <to = 1> (i_next)
        few = TEST (i_float, end)
        again = And (few, few)
        x_next = Add (x_in, step_in)
        each = Identity (x_next)
    }>
}
"""


def loop_model(by: str = "1", test: str = "Less") -> onnx.ModelProto:
    model = onnx.parser.parse_model(WHILE.replace("{BY}", f"{{{by}}}").replace("TEST", test))
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.array([0.5, -1.0], "f4")})


def test_a_loop_that_counts_to_a_constant_has_that_number_of_iterations() -> None:
    model = loop_model()
    expected = run(model)
    assert len(expected[1]) == 5
    assert count_trips(model.graph) == 1
    loop = model.graph.node[0]
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert given[loop.input[0]] == 5
    # what says whether to go on is what was handed in: no condition of the loop's own
    body = loop.attribute[0].g
    assert {body.output[0].name} == {name for node in body.node if "on" in node.input for name in node.output}
    for before, after in zip(expected, run(model), strict=True):
        assert np.array_equal(before, after)
    assert count_trips(model.graph) == 0, "it has a number now"


@pytest.mark.parametrize(("by", "test"), [("2", "Less"), ("1", "LessOrEqual")])
def test_other_loops_stay(by: str, test: str) -> None:
    model = loop_model(by, test)
    text = model.SerializeToString()
    assert count_trips(model.graph) == 0
    assert model.SerializeToString() == text


def test_a_loop_that_is_limited_stays() -> None:
    model = loop_model()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(3), "forever"))
    assert count_trips(model.graph) == 0
    assert len(run(model)[1]) == 3


def test_what_a_loop_only_hands_on_is_read_from_outside() -> None:
    model = loop_model()
    expected = run(model)
    assert free_invariants(model.graph) == 1
    loop = model.graph.node[0]
    assert "step" not in loop.input
    assert any("step" in node.input for node in loop.attribute[0].g.node)
    for before, after in zip(expected, run(model), strict=True):
        assert np.array_equal(before, after)
