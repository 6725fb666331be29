"""`quantize-static`: what the real compilers make of the Q/DQ, and what is kept float and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml

from infconv import isolate
from infconv.census import compute_types
from infconv.compare import TOLERANCES
from infconv.convert.to_openvino import ToOpenVINO
from infconv.convert.to_tensorrt import ToTensorRT
from infconv.errors import UnsupportedError, UsageError
from infconv.model import save
from infconv.quantize._latency import Race, Racer
from infconv.quantize._placement import PLACEMENTS, place
from infconv.quantize._plan_file import PrecisionPlan
from infconv.quantize._qdq import widened
from infconv.quantize._schemes import Grid, Params, Weights, candidates, params_of, quantise_weight
from infconv.quantize._sketch import Sketch
from infconv.quantize.quantize_static import QuantizeStatic
from tests.quantize.nets import Net, attention, context, decibel, inverted, kernels, residual, run, samples

BUILDERS = pytest.mark.parametrize("build", [residual, inverted, attention])
FAST = QuantizeStatic(trials=4, never_slower=False)


def quantised(build: Callable[[], ir.Model], target: str, step: QuantizeStatic = FAST, **more: Any) -> ir.Model:
    model = build()
    assert step.run(model, context(model, target, **more)) > 0
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


# --- ONNX Runtime --------------------------------------------------------------------------------------------------


@BUILDERS
def test_the_outputs_stay_close(build: Callable[[], ir.Model]) -> None:
    x = samples(build(), seed=2)
    assert decibel(run(build(), x), run(quantised(build, "onnxruntime"), x)) > 25


def test_every_convolution_of_a_residual_net_becomes_an_integer_kernel(tmp_path: Path) -> None:
    found = kernels(quantised(residual, "onnxruntime"), tmp_path)
    assert found["QLinearConv"] == 4
    assert found["QLinearAdd"] == found["QGemm"] == found["QLinearGlobalAveragePool"] == 1
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "Add", "Relu", "GlobalAveragePool"}
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 0)  # the input alone


def test_depthwise_convolutions_clips_and_concats_too(tmp_path: Path) -> None:
    model = quantised(inverted, "onnxruntime")
    found = kernels(model, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QLinearConcat"]) == (5, 1, 1)
    assert not found.keys() & {"Conv", "FusedConv", "Clip", "Concat", "Add"}
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 0)


def test_products_write_float_and_products_of_activations_stay_float(tmp_path: Path) -> None:
    found = kernels(quantised(attention, "onnxruntime"), tmp_path)
    assert found["MatMulIntegerToFloat"] == 4
    assert found["MatMul"] + found["FusedMatMul"] == 2


def test_biases_are_int32_behind_a_scale_that_is_the_product_of_both(tmp_path: Path) -> None:
    model = quantised(residual, "onnxruntime")
    for node in model.graph:
        if node.op_type in {"Conv", "Gemm"}:
            data, weight, bias = (value.producer() for value in node.inputs if value is not None)
            assert bias.inputs[0].dtype == ir.DataType.INT32  # type: ignore
            scales = [producer.inputs[1].const_value.numpy() for producer in (data, weight, bias)]  # type: ignore
            np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-6)


def concat_groups(model: ir.Model) -> set[int]:
    placed = place(model, PLACEMENTS["onnxruntime"])
    (concat,) = [node for node in model.graph if node.op_type == "Concat"]
    return {placed.tensors[value] for value in (*concat.inputs, *concat.outputs) if value is not None}


def test_concat_inputs_share_scale_and_zero_point() -> None:
    net = Net()
    both = net.add("Concat", *(net.add("Relu", net.conv("x", 3, 8)) for _ in range(2)), axis=1)
    net.add("Relu", net.add("GlobalAveragePool", net.conv(both, 16, 4)))
    assert len(concat_groups(net.model({"x": ["n", 3, 8, 8]}, "y", ["n", 4, 1, 1]))) == 1
    assert len(concat_groups(inverted())) == 3  # with one range the Clip of one would have to stay, and its Conv float


def test_a_convolution_that_writes_the_models_output_stays_float() -> None:
    def detector() -> ir.Model:
        net = Net()
        net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 4)
        return net.model({"x": ["n", 3, 8, 8]}, "boxes", ["n", 4, 8, 8])

    model = quantised(detector, "onnxruntime")
    assert compute_types(model) == {"int8": 1, "float32": 1}
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    assert [node.inputs[1].producer() is not None for node in convolutions] == [True, False]


# --- OpenVINO and TensorRT -----------------------------------------------------------------------------------------


@BUILDERS
def test_openvino_runs_every_layer_in_8_bits(build: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = quantised(build, "openvino")
    layers = len(place(build(), PLACEMENTS["openvino"]).layers)
    exporter = ToOpenVINO()
    exported = exporter.export(model, tmp_path / "m.xml", {})
    assert exporter.delivered(exported).compute["int8"] == layers
    assert _openvino_kernels(tmp_path / "m.xml")["u8"] + _openvino_kernels(tmp_path / "m.xml")["i8"] == layers
    x = samples(build(), seed=2)
    (outputs,) = exporter.execute(exported, [{"x": x}]).outputs
    assert decibel(run(build(), x), outputs["y"]) > 25


def _openvino_kernels(path: Path) -> Counter[str]:
    import openvino

    runtime = openvino.Core().compile_model(path, "CPU").get_runtime_model()
    facts = [operator.get_rt_info() for operator in runtime.get_ordered_ops()]
    heavy = {"Convolution", "FullyConnected"}
    return Counter(f["runtimePrecision"].astype(str) for f in facts if f["layerType"].astype(str) in heavy)


@pytest.mark.parametrize("build", [residual, attention])
def test_tensorrt_builds_an_engine_of_int8_kernels(build: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = quantised(build, "tensorrt")
    zeros = [n.inputs[2].const_value.numpy() for n in model.graph if n.op_type == "QuantizeLinear"]  # type: ignore
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert not any(v.dtype == ir.DataType.INT32 for v in model.graph.initializers.values())
    exporter = ToTensorRT()
    exported = exporter.export(model, tmp_path / "m.engine", {})
    compute = exporter.delivered(exported).compute
    others = sum(node.op_type == "MatMul" for node in model.graph) - len(place(build(), PLACEMENTS["tensorrt"]).layers)
    assert compute.get("float32", 0) == max(others, 0)  # products of activations; equal readers share a kernel
    assert compute["int8"] >= 3


def test_tensorrt_adds_what_is_in_8_bits_already() -> None:
    (add,) = [node for node in quantised(residual, "tensorrt").graph if node.op_type == "Add"]
    assert [value.producer().op_type for value in add.inputs] == ["Conv", "DequantizeLinear"]  # type: ignore


# --- what is decided -----------------------------------------------------------------------------------------------


def test_layers_stay_float_until_the_outputs_are_good_enough() -> None:
    told: list[str] = []
    everything, some = context(residual(), "openvino", progress=told.append), context(residual(), "openvino")
    model, better = residual(), residual()
    FAST.run(model, everything)
    x = samples(model, seed=2)
    reached = decibel(run(residual(), x), run(model, x))
    FAST.model_copy(update={"min_sqnr": reached + 12}).run(better, some)
    assert decibel(run(residual(), x), run(better, x)) > reached + 2
    assert operators(better)["QuantizeLinear"] < operators(model)["QuantizeLinear"]
    assert any("sensitive layers stay float" in note for note in some.notes)
    assert told == ["calibrating 7 tensors", "choosing scales"]


def test_the_tolerance_is_the_budget() -> None:
    strict = TOLERANCES["int8"].override(None, None, 60.0)
    model = residual()
    ctx = context(model, "openvino", tolerance=strict)
    FAST.run(model, ctx)
    x = samples(model)
    assert decibel(run(residual(), x), run(model, x)) > 55


def outcome(monkeypatch: pytest.MonkeyPatch, slow: set[str], target: str = "onnxruntime") -> tuple[int, ir.Model, Any]:
    """Quantise on a machine where models that have one of the kernels `slow` in 8 bits take twice as long."""

    def cost(model: ir.Model) -> float:
        eight_bits = {n.op_type for n in model.graph if n.op_type in {"Conv", "Gemm"} and n.inputs[1].producer()}  # type: ignore
        return 2.0 if eight_bits & slow else 1.0 if eight_bits else 1.5

    def race(_racer: Racer, first: ir.Model, second: ir.Model) -> Race:
        return Race([cost(first)] * 9, [cost(second)] * 9)

    monkeypatch.setattr(Racer, "race", race)
    model = residual()
    ctx = context(model, target)
    return QuantizeStatic(trials=4).run(model, ctx), model, ctx


def test_layers_that_are_slower_in_8_bits_stay_float(monkeypatch: pytest.MonkeyPatch) -> None:
    changes, model, ctx = outcome(monkeypatch, {"Gemm"})
    assert changes > 0
    assert {n.op_type: n.inputs[1].producer() is not None for n in model.graph if n.op_type in {"Conv", "Gemm"}} == {  # type: ignore
        "Conv": True,
        "Gemm": False,
    }
    assert "Gemm nodes stay float" in ctx.notes[0]
    assert "67% of the FP32 time" in ctx.notes[1]
    assert "the whole is faster when it is float" in ctx.documents["precision.yaml"]


def test_a_model_that_does_not_pay_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    changes, model, ctx = outcome(monkeypatch, {"Gemm", "Conv"})
    assert changes == 0
    assert operators(model)["QuantizeLinear"] == 0
    assert "INT8 takes 133% of the FP32 time" in ctx.notes[-1]


def test_two_runs_of_the_same_model_are_no_race(tmp_path: Path) -> None:
    model = inverted()
    for target in ("onnxruntime", "openvino"):
        racer = Racer(target, {"x": samples(model, 2)}, tmp_path)
        found = isolate.call(partial(racer.race, model, model.clone()), what="A race")
        assert len(found.first) >= 6
        assert not found.second_is_faster(0.05)
    assert Race([2.0] * 8, [1.0] * 8).second_is_faster(0.05)
    assert not Race([2.0] * 8, [1.95] * 8).second_is_faster(0.05)
    assert not Race([2.0] * 8, [1.0, 3.0] * 4).second_is_faster(0.05)  # the rounds disagree


def test_a_race_that_is_won_by_chance_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0] * 9)
    monkeypatch.setattr(Racer, "race", lambda *_: Race([1.5] * 9, [next(times)] * 9))
    model = residual()
    ctx = context(model, "onnxruntime")
    assert QuantizeStatic().run(model, ctx) > 0
    assert not any("stay float" in note for note in ctx.notes)


def test_the_plan_says_what_became_of_each_layer_and_can_be_applied_again(tmp_path: Path) -> None:
    model, again = residual(), residual()
    ctx = context(model, "openvino")
    FAST.model_copy(update={"keep": ("op:Gemm",)}).run(model, ctx)
    (tmp_path / "p.yaml").write_text(ctx.documents["precision.yaml"])
    plan = PrecisionPlan.load(tmp_path / "p.yaml")
    layers = [entry for entry in plan.nodes if entry.op in {"Conv", "Gemm"}]
    assert Counter(entry.type for entry in layers) == {"int8": 4, "float32": 1}
    assert plan.facts["sqnr_db"] > 20
    assert plan.nodes[0].quantization["input 0"]["scale"] > 0
    step = FAST.model_copy(update={"precision_plan": str(tmp_path / "p.yaml")})
    step.run(again, context(again, "openvino"))
    assert operators(again) == operators(model)


def test_layers_can_be_kept() -> None:
    step = FAST.model_copy(update={"keep": ("op:Gemm", "conv0")})
    model = quantised(residual, "openvino", step)
    kept = [n.name for n in model.graph if n.op_type in {"Conv", "Gemm"} and n.inputs[1].producer() is None]  # type: ignore
    assert len(kept) == 2
    assert "conv0" in kept


def test_seven_bits_keep_within_what_older_processors_add_up() -> None:
    model = quantised(residual, "onnxruntime", FAST.model_copy(update={"reduce_range": True}))
    weights = [v.const_value.numpy() for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]  # type: ignore
    assert max(np.abs(weight).max() for weight in weights) == 63


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (ir.to_proto(quantised(inverted, "onnxruntime")).SerializeToString() for _ in range(2))
    assert first == second


def test_q_dq_of_the_models_own_are_kept() -> None:
    model = quantised(residual, "onnxruntime")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    ctx = context(model, "onnxruntime")
    assert FAST.run(model, ctx) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert "kept as they are" in ctx.notes[0]


def test_without_calibration_data_or_a_new_enough_opset_it_says_so() -> None:
    model = residual()
    ctx = context(model, "onnxruntime")
    ctx.calibration = None
    with pytest.raises(UsageError, match="calibration"):
        FAST.run(model, ctx)
    old = residual()
    old.graph.opset_imports[""] = 11
    with pytest.raises(UnsupportedError, match="opset 13"):
        FAST.run(old, context(old, "onnxruntime"))


# --- schemes -------------------------------------------------------------------------------------------------------


def sketch(values: np.ndarray) -> Sketch:
    found = Sketch()
    found.add(values)
    return found


def squared_error(values: np.ndarray, params: Params) -> float:
    low, high = params.grid.limits
    integers = np.clip(np.rint(values / params.scale) + params.zero, low, high)
    return float(np.sum(((integers - params.zero) * params.scale - values) ** 2))


@pytest.mark.parametrize("grid", [Grid("uint8", symmetric=False), Grid("int8", symmetric=True)])
def test_each_scheme_is_best_at_what_it_is_for(grid: Grid) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=100_000), [40.0, -35.0]]).astype("f4")
    found = candidates(sketch(values), grid)
    ranges = {name: params.range() for name, params in found.items()}
    assert ranges["absmax"][1] == pytest.approx(40, rel=0.01)
    assert 3 < ranges["percentile"][1] < 5
    errors = {name: squared_error(values.astype("f8"), p) for name, p in found.items()}
    assert errors["mse"] == min(errors.values())
    assert 2 < ranges["entropy"][1] < 40


def test_a_grid_has_zero_on_a_point_and_covers_the_range() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 5.0), (2.0, 5.0), (-4.0, -1.0), (0.0, 0.0)):
        params = params_of(low, high, Grid("uint8", symmetric=False))
        assert 0 <= params.zero <= 255
        start, end = params.range()
        assert start <= low + params.scale / 2
        assert end >= high - params.scale / 2


def test_a_large_bias_beside_tiny_weights_fits_int32() -> None:
    weights = quantise_weight(np.array([[1e-9, -1e-9], [0.5, 1.0]], "f4"), 0)
    wide = widened(weights, np.array([3.0, 3.0], "f4"), 0.02)
    assert (np.abs([3.0, 3.0]) / (0.02 * wide.scales) <= 2**30 * 1.01).all()
    np.testing.assert_array_equal(wide.integers[1], weights.integers[1])
    assert isinstance(wide, Weights)


# --- from the command line -----------------------------------------------------------------------------------------


def test_int8_from_the_command_line_is_verified_on_the_calibration_data(infconv: Any, tmp_path: Path) -> None:
    save(residual(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(residual(), 40))
    done = infconv(
        "convert",
        "net.onnx",
        "-t",
        "ort",
        "--int8",
        "--calibration",
        "calib.npz",
        "--calibration-samples",
        24,
        "--json",
    )
    assert done.code == 0, done.err
    (artifact,) = done.json["artifacts"]
    assert artifact["compute"] == {"int8": 5}
    assert "24 samples" in " ".join(artifact["notes"])
    labels = [sample["label"] for sample in artifact["verification"]["samples"]]
    assert labels == ["the first calibration batch", "the first calibration sample"]
    printed = infconv("convert", "net.onnx", "-t", "ort", "--int8", "--calibration", "calib.npz", "--dry-run")
    assert yaml.safe_load(printed.out)["calibration"]["path"] == str(tmp_path / "calib.npz")


def test_what_is_wrong_with_calibration_is_a_usage_error(infconv: Any, tmp_path: Path) -> None:
    save(residual(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(residual()).transpose(0, 2, 3, 1))
    nhwc = infconv("convert", "net.onnx", "-t", "ort", "--int8", "--calibration", "calib.npz")
    assert (nhwc.code, "NHWC data for an NCHW model" in nhwc.err) == (2, True)
    none = infconv("convert", "net.onnx", "-t", "trt", "--int8")
    assert (none.code, "--calibration" in none.err) == (4, True)
    vain = infconv("convert", "net.onnx", "--fp16", "--calibration", "calib.npz")
    assert vain.code == 2


def test_a_model_that_arrives_quantised_keeps_its_q_dq(infconv: Any, tmp_path: Path) -> None:
    """QAT: the pipeline must neither fold the weights' DequantizeLinear nor drop a pair."""
    model = quantised(residual, "onnxruntime")
    save(model, tmp_path / "qat.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(residual(), 40))
    done = infconv(
        "convert", "qat.onnx", "-t", "ort", "--int8", "--calibration", "calib.npz", "-o", "out.onnx", "--json"
    )
    assert done.code == 0, done.err
    result = ir.load(tmp_path / "out.onnx")
    assert operators(result)["QuantizeLinear"] == operators(model)["QuantizeLinear"]
    assert done.json["artifacts"][0]["compute"] == {"int8": 5}
