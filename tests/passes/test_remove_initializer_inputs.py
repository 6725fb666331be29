"""Old models list their weights as inputs."""

from __future__ import annotations

import onnx
import onnx_ir as ir

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
