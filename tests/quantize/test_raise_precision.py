"""`raise-precision`: float32 inside, the model's own types outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from infconv.model import save
from infconv.passes import Context
from infconv.quantize.raise_precision import RaisePrecision
from tests.quantize.nets import decibel, residual, run


def half(*, direct: bool = False) -> ir.Model:
    """Return products in float16, one of them in a branch, with a Cast and a Constant."""
    weight = numpy_helper.from_array((np.random.default_rng(0).normal(size=(64, 64)) * 0.1).astype("f2"), "w")
    one = numpy_helper.from_array(np.array(1.0, "f2"))
    then = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["then"])],
        "then",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT16, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["else"])],
        "other",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT16, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Add", ["m", "one"], ["h"]),
        helper.make_node("Cast", ["flag"], ["c"], to=TensorProto.FLOAT16),
        helper.make_node("Greater", ["c", "one"], ["p"]),
        helper.make_node("If", ["p"], ["y"], then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 64]),
            helper.make_tensor_value_info("flag", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 64])]
        + ([helper.make_tensor_value_info("m", TensorProto.FLOAT16, ["n", 64])] if direct else []),
        [weight],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def outputs(model: ir.Model, flag: int) -> list[np.ndarray]:
    import onnxruntime as ort

    x = np.linspace(-1, 1, 4 * 64, dtype="f2").reshape(4, 64)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "flag": np.array(flag)})


def test_results_and_types_at_the_border_stay() -> None:
    for direct in (False, True):
        model = half(direct=direct)
        assert RaisePrecision().run(model, Context()) > 0
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        inside = {value.dtype for node in model.graph for value in node.outputs} - {ir.DataType.BOOL, None}
        assert inside == {ir.DataType.FLOAT, ir.DataType.FLOAT16}  # FLOAT16: the casts at the outputs
        assert [value.name for value in model.graph.outputs] == ["y", "m"][: 1 + direct]
        for flag in (0, 5):
            for exact, found in zip(outputs(half(direct=direct), flag), outputs(model, flag), strict=True):
                assert found.dtype == np.float16
                assert decibel(exact.astype("f8"), found.astype("f8")) > 55


def test_a_model_in_float32_stays() -> None:
    model = residual()
    assert RaisePrecision().run(model, Context()) == 0
    assert run(model, np.zeros((1, 3, 8, 8), "f4")).dtype == np.float32


def test_a_model_in_float16_can_be_quantised(infconv: Any, tmp_path: Any) -> None:
    save(half(), tmp_path / "net.onnx")
    done = infconv("convert", "net.onnx", "-t", "ort", "--int4", "--json")
    assert done.code == 0, done.err
    assert done.json["artifacts"][0]["compute"]["int4"] == 1
