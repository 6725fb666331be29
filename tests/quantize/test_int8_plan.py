"""An INT8 plan applied again: the same bytes without calibration data, and what may be changed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from infconv.errors import UsageError
from infconv.model import save
from infconv.passes import Context
from infconv.quantize._plan_file import PrecisionPlan
from infconv.quantize.quantize_static import QuantizeStatic
from tests.quantize.nets import attention, context, decibel, inverted, residual, run, samples

FAST = QuantizeStatic(trials=4, never_slower=False)


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def made(build: Callable[[], ir.Model], target: str, folder: Path, **options: Any) -> tuple[ir.Model, Path]:
    """Quantise with calibration; return the model and its plan."""
    model, path = build(), folder / "plan.yaml"
    ctx = context(model, target)
    FAST.model_copy(update=options).run(model, ctx)
    path.write_text(ctx.documents["precision.yaml"])
    return model, path


def again(build: Callable[[], ir.Model], target: str, plan: Path, **options: Any) -> tuple[ir.Model, Context]:
    """Quantise by the plan, without data."""
    model, ctx = build(), Context(target=target)
    FAST.model_copy(update={"precision_plan": str(plan), **options}).run(model, ctx)
    return model, ctx


@pytest.mark.parametrize("build", [residual, inverted, attention])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_a_plan_makes_the_same_bytes_without_data_and_is_its_own_result(
    build: Callable[[], ir.Model], target: str, tmp_path: Path
) -> None:
    model, plan = made(build, target, tmp_path)
    second, ctx = again(build, target, plan)
    assert content(second) == content(model)
    assert ctx.documents["precision.yaml"] == plan.read_text()


def test_the_bits_of_weights_are_the_plans(tmp_path: Path) -> None:
    model, plan = made(residual, "onnxruntime", tmp_path, reduce_range=True)
    assert content(again(residual, "onnxruntime", plan)[0]) == content(model)


def test_a_layer_made_float_by_hand_is_float_for_the_user(tmp_path: Path) -> None:
    _, path = made(residual, "openvino", tmp_path)
    path.write_text(path.read_text().replace("op: Gemm\n  type: int8", "op: Gemm\n  type: float32"))
    model, ctx = again(residual, "openvino", path)
    (gemm,) = [node for node in model.graph if node.op_type == "Gemm"]
    assert gemm.inputs[1] is not None
    assert gemm.inputs[1].is_initializer()
    path.write_text(ctx.documents["precision.yaml"])
    assert [entry.reason for entry in PrecisionPlan.load(path).nodes if entry.type == "float32"] == ["user"]


def test_a_scale_set_by_hand_is_used(tmp_path: Path) -> None:
    _, path = made(residual, "onnxruntime", tmp_path)
    scale = PrecisionPlan.load(path).nodes[0].quantization["input 0"]["scale"]
    path.write_text(path.read_text().replace(f"scale: {scale}", "scale: 0.5", 1))
    model, _ = again(residual, "onnxruntime", path)
    (quantise,) = [use.node for use in model.graph.inputs[0].uses()]
    assert quantise.inputs[1] is not None
    assert quantise.inputs[1].const_value is not None
    assert quantise.inputs[1].const_value.numpy() == np.float32(0.5)


@pytest.mark.parametrize(("first", "second"), [("onnxruntime", "openvino"), ("onnx", "onnxruntime")])
def test_a_plan_for_one_target_serves_another(first: str, second: str, tmp_path: Path) -> None:
    _, plan = made(attention, first, tmp_path)
    model, _ = again(attention, second, plan)
    x = samples(attention(), seed=2)
    assert decibel(run(attention(), x), run(model, x)) > 25


def test_scales_of_unsigned_integers_become_symmetric_where_the_target_wants_that(tmp_path: Path) -> None:
    _, plan = made(attention, "onnxruntime", tmp_path)
    model, _ = again(attention, "tensorrt", plan)
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert node.inputs[2] is not None
            assert node.inputs[2].const_value is not None
            assert node.inputs[2].const_value.numpy() == np.int8(0)
    x = samples(attention(), seed=2)
    assert decibel(run(attention(), x), run(model, x)) > 20


def trained() -> ir.Model:
    """The same network with other weights."""
    model = residual()
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.9), name=value.name)
    return model


def test_after_training_the_scales_hold_and_the_corrected_biases_do_not(tmp_path: Path) -> None:
    _, plan = made(residual, "openvino", tmp_path)
    assert PrecisionPlan.load(plan).biases
    model, _ = again(trained, "openvino", plan)
    x = samples(residual(), seed=2)
    assert decibel(run(trained(), x), run(model, x)) > 20


def test_a_tensor_without_a_scale_needs_data(tmp_path: Path) -> None:
    _, plan = made(residual, "openvino", tmp_path, keep=("op:Gemm",))
    plan.write_text(plan.read_text().replace("type: float32", "type: int8"))
    with pytest.raises(UsageError, match="no scale for 2 of the tensors"):
        again(residual, "openvino", plan)
    model = residual()
    FAST.model_copy(update={"precision_plan": str(plan)}).run(model, context(model, "openvino"))
    assert all(n.inputs[1].producer() is not None for n in model.graph if n.op_type in {"Conv", "Gemm"})  # type: ignore


def test_the_command_line_needs_no_calibration_with_a_plan(infconv: Any, tmp_path: Path) -> None:
    save(residual(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(residual(), 16))
    first = infconv("convert", "net.onnx", "-t", "ort", "--int8", "--calibration", "calib.npz", "-o", "a.onnx")
    assert first.code == 0, first.err
    second = infconv(
        "convert", "net.onnx", "-t", "ort", "--precision-plan", "a.onnx.precision.yaml", "-o", "b.onnx", "--json"
    )
    assert second.code == 0, second.err
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("3", "`quantization` that is no mapping"),
        ("{first: {scale: 1.0}}", "not 'first'"),
        ("{input 0: {scale: -1.0}}", "the scale -1.0; it must be a positive number"),
        ("{input 0: {scale: much}}", "the scale much"),
        ("{input 0: {scale: .inf}}", "the scale inf"),
        ("{input 0: {type: int3, scale: 1.0}}", "the type 'int3'"),
        ("{input 0: {type: int8, scale: 1.0, zero_point: 200}}", "zero_point 200; int8 goes from -128 to 127"),
        ("{input 0: {type: uint8, scale: 1.0, zero_point: 1.5}}", "zero_point 1.5"),
    ],
)
def test_wrong_parameters_are_refused_with_their_entry(quantization: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"{{version: 1, precision: int8, nodes: [{{node: a, type: int8, quantization: {quantization}}}]}}")
    with pytest.raises(UsageError, match=message):
        PrecisionPlan.load(path)
