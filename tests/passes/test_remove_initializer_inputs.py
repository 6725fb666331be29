"""Old models list their weights as inputs."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from infconv.passes import Context
from infconv.passes.remove_initializer_inputs import RemoveInitializerInputs
from tests.helpers import check_same_outputs

TEXT = '<ir_version: 3, opset_import: ["" : 9]> m (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1.0, 2.0}> '
TEXT += "{ y = Add(x, w) }"


def load(version: int) -> ir.Model:
    proto = onnx.parser.parse_model(TEXT.replace("ir_version: 3", f"ir_version: {version}"))
    return ir.from_proto(proto)


def test_weights_of_old_models_are_no_inputs() -> None:
    model = load(3)
    before = ir.to_proto(model)
    assert RemoveInitializerInputs().run(model, Context()) == 1
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    check_same_outputs(before, ir.to_proto(model), None, "fp32")
    assert RemoveInitializerInputs().run(model, Context()) == 0


def test_a_default_that_callers_may_override_stays_an_input() -> None:
    model = load(8)
    assert RemoveInitializerInputs().run(model, Context()) == 0
    assert [v.name for v in model.graph.inputs] == ["x", "w"]
    assert RemoveInitializerInputs(overridable=True).run(model, Context()) == 1
    assert [v.name for v in model.graph.inputs] == ["x"]


def with_weights(count: int, listed: int) -> ir.Model:
    """Return a model of IR version 4 with `count` initializers, of which the first `listed` are inputs."""
    names = [f"w{i}" for i in range(count)]
    inputs = "".join(f", float[2] {name}" for name in names[:listed])
    constants = ", ".join(f"float[2] {name} = {{1.0, 2.0}}" for name in names)
    text = f'<ir_version: 4, opset_import: ["" : 9]> m (float[2] x{inputs}) => (float[2] y) <{constants}> '
    return ir.from_proto(onnx.parser.parse_model(text + f"{{ y = Sum(x, {', '.join(names)}) }}"))


def test_many_defaults_that_are_all_there_is_are_an_exporters_habit() -> None:
    """PyTorch's keep_initializers_as_inputs."""
    model, context = with_weights(8, 8), Context()
    before = ir.to_proto(model)
    assert RemoveInitializerInputs().run(model, context) == 8
    assert "All 8 initializers are inputs" in context.notes[0]
    check_same_outputs(before, ir.to_proto(model), None, "fp32")
    assert RemoveInitializerInputs().run(model, Context()) == 0


@pytest.mark.parametrize(("count", "listed"), [(7, 7), (9, 8)])
def test_few_or_only_some_of_them_are_defaults(count: int, listed: int) -> None:
    model, context = with_weights(count, listed), Context()
    assert RemoveInitializerInputs().run(model, context) == 0
    assert len(model.graph.inputs) == 1 + listed
    assert not context.notes


def test_defaults_stay_when_they_are_to() -> None:
    model = with_weights(8, 8)
    assert RemoveInitializerInputs(overridable=False).run(model, Context()) == 0
    assert RemoveInitializerInputs(overridable=False).run(load(3), Context()) == 1
