"""The layout of images at the model's inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from infconv.passes import Context
from infconv.passes.convert_layout import ConvertLayout
from infconv.passes.push_transposes import PushTransposes
from tests.helpers import describe, parse, run

WEIGHT = "float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}"
FIRST = f"m (float[n, 3, 4, 5] x) => (float[n, 2, 4, 5] y) <{WEIGHT}> {{ a = Relu (x) c = Conv (a, w) y = Exp (c) }}"
LAST = f"""m (float[n, 4, 5, 3] x) => (float[n, 4, 5, 2] y) <{WEIGHT}>
    {{ a = Relu (x) b = Transpose <perm = [0, 3, 1, 2]> (a) c = Conv (b, w) d = Transpose <perm = [0, 2, 3, 1]> (c)
       y = Exp (d) }}"""
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def convert(text: str, step: ConvertLayout) -> tuple[ir.Model, list[str]]:
    model, context = parse(text), Context()
    before = ir.to_proto(model)
    assert step.run(model, context) == sum(option != "keep" for option in (step.inputs, step.outputs))
    after = ir.to_proto(model)
    x = np.random.default_rng(0).normal(
        size=(2, *[d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim][1:])
    )
    wanted = run(before, {"x": x.astype(np.float32)})["y"]
    turn_in, turn_out = (
        None if option == "keep" else TO_LAST if option == "nhwc" else TO_FIRST
        for option in (step.inputs, step.outputs)
    )
    found = run(after, {"x": x.astype(np.float32).transpose(turn_in or (0, 1, 2, 3))})["y"]
    np.testing.assert_array_equal(found, wanted.transpose(turn_out or (0, 1, 2, 3)))
    assert step.run(model, context) == 0
    return model, context.notes


@pytest.mark.parametrize(("text", "layout"), [(FIRST, "nhwc"), (LAST, "nchw")])
def test_inputs_and_outputs(text: str, layout: str) -> None:
    for options in ({"inputs": layout}, {"outputs": layout}, {"inputs": layout, "outputs": layout}):
        convert(text, ConvertLayout.model_validate(options))


def test_a_tensorflow_graph_needs_no_transposes_then() -> None:
    model, _ = convert(LAST, ConvertLayout(inputs="nchw", outputs="nchw"))
    PushTransposes().run(model, Context())
    assert describe(model) == describe(parse(FIRST))
    assert str(model.graph.inputs[0].shape) == "[n,3,4,5]"


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_is_not_known_to_be_an_image_stays(layout: str) -> None:
    model, context = parse("m (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Relu (x) }"), Context()
    assert ConvertLayout.model_validate({"inputs": layout, "outputs": layout}).run(model, context) == 0
    assert [note.partition(":")[0] for note in context.notes] == [
        "Input 'x' keeps its layout",
        "Output 'y' keeps its layout",
    ]
