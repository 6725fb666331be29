"""ONNX in, verified artifacts out: the Python interface."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import infconv
from infconv.api import make_spec
from infconv.options import DEFAULTS, ConvertOptions
from infconv.passes import Pass
from tests.conftest import make_mlp


class DropRelu(Pass):
    """A wrong step: Relu goes."""

    def run(self, model, context) -> int:
        for node in list(model.graph):
            if node.op_type == "Relu":
                node.outputs[0].replace_all_uses_with(node.inputs[0])
                model.graph.remove(node, safe=True)
                return 1
        return 0


class Unordered(Pass):
    """A wrong step: the graph is no longer valid."""

    def run(self, model, context) -> int:
        first = model.graph[0]
        if first.op_type == "Relu":
            return 0
        first.op_type = "Frobnicate"
        return 1


class Buggy(Pass):
    """A step with a bug."""

    def run(self, model, context) -> int:
        return 1 // 0


class Segfaults(Pass):
    """A step whose native code crashes."""

    def run(self, model, context) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0


class Hangs(Pass):
    """A step that never ends."""

    def run(self, model, context) -> int:
        time.sleep(1000)
        return 0


WRONG = f"{__name__}:DropRelu"
INVALID = f"{__name__}:Unordered"


@pytest.mark.parametrize("precision", [{}, {"fp16": True}])
@pytest.mark.parametrize(("target", "suffix"), [("onnx", "onnx"), ("ort", "onnx"), ("ov", "xml"), ("trt", "engine")])
def test_every_target_is_made_and_verified(mlp: Path, tmp_path: Path, target: str, suffix: str, precision: Any) -> None:
    output = tmp_path / f"out.{suffix}"
    result = infconv.convert(mlp, target=target, output=output, dim={"batch": (1, 2, 4)}, **precision)
    (artifact,) = result.artifacts
    assert output.is_file()
    assert artifact.verification.passed
    assert {s.label for s in artifact.verification.samples} == {"batch=2", "batch=1", "batch=3"}
    assert artifact.verification.artifact_executed == (target != "trt")
    assert artifact.compute == {"float16" if precision else "float32": 2}
    manifest = json.loads(Path(artifact.manifest).read_text())
    assert manifest["artifact"][output.name]["bytes"] == output.stat().st_size
    assert {p.name for p in tmp_path.iterdir()} >= {Path(f).name for f in artifact.files}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".infconv")]


def test_fp16_keeps_float32_at_the_border_unless_told(mlp: Path, tmp_path: Path) -> None:
    for io_types, expected in (("keep", "tensor(float)"), ("follow", "tensor(float16)")):
        infconv.convert(mlp, output=tmp_path / "h.onnx", fp16=True, io_types=io_types)
        session = onnxruntime.InferenceSession(tmp_path / "h.onnx")
        assert session.get_inputs()[0].type == expected
        assert session.get_outputs()[0].type == expected


@pytest.mark.parametrize("target", ["onnx", "ort", "ov", "trt"])
def test_two_runs_give_the_same_bytes(mlp: Path, tmp_path: Path, target: str) -> None:
    contents: list[dict[str, bytes]] = []
    for run in ("a", "b"):
        result = infconv.convert(mlp, target=target, output=tmp_path / run)
        contents.append({Path(f).name: Path(f).read_bytes() for f in result.artifacts[0].files})
    assert contents[0] == contents[1]


def test_a_dim_is_fixed_and_renamed(mlp: Path, tmp_path: Path) -> None:
    infconv.convert(mlp, output=tmp_path / "f.onnx", input={"x": [3, 8]})
    assert onnxruntime.InferenceSession(tmp_path / "f.onnx").get_inputs()[0].shape == [3, 8]
    infconv.convert(mlp, output=tmp_path / "r.onnx", input={"x": ["n", 8]})
    assert onnxruntime.InferenceSession(tmp_path / "r.onnx").get_inputs()[0].shape == ["n", 8]


def test_a_users_sample_is_used(mlp: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.ones((7, 8), "f4"))
    result = infconv.convert(mlp, output=tmp_path / "s.onnx", sample=tmp_path / "s.npz")
    assert [s.label for s in result.artifacts[0].verification.samples] == ["s.npz"]


def test_a_wrong_step_fails_the_conversion_and_leaves_nothing(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(infconv.VerificationError, match="output 'y' at batch=2"):
        infconv.convert(mlp, output=tmp_path / "out" / "w.onnx", passes=[WRONG])
    assert not (tmp_path / "out").exists()


def test_an_old_artifact_survives_a_failure(mlp: Path, tmp_path: Path) -> None:
    infconv.convert(mlp, output=tmp_path / "w.onnx")
    old = (tmp_path / "w.onnx").read_bytes()
    with pytest.raises(infconv.VerificationError):
        infconv.convert(mlp, output=tmp_path / "w.onnx", passes=[WRONG])
    assert (tmp_path / "w.onnx").read_bytes() == old


def test_verify_each_drops_the_wrong_step_and_names_it(mlp: Path, tmp_path: Path) -> None:
    result = infconv.convert(mlp, output=tmp_path / "w.onnx", passes=[WRONG, INVALID], verify="each")
    dropped = {s.name: s.reason for s in result.steps if s.status == "dropped"}
    assert set(dropped) == {WRONG, INVALID}
    assert "output 'y' at batch=2" in dropped[WRONG]
    assert "Frobnicate" in dropped[INVALID]
    assert result.artifacts[0].verification.passed


def test_verify_each_survives_crashes_hangs_and_bugs(mlp: Path, tmp_path: Path) -> None:
    steps = [f"{__name__}:{name}" for name in ("Buggy", "Segfaults", "Hangs")]
    result = infconv.convert(mlp, output=tmp_path / "w.onnx", passes=steps, verify="each", step_timeout=5)
    dropped = {s.name.partition(":")[2]: s.reason for s in result.steps if s.status == "dropped"}
    assert set(dropped) == {"Buggy", "Segfaults", "Hangs"}
    assert "ZeroDivisionError" in dropped["Buggy"]
    assert "SIGSEGV" in dropped["Segfaults"]
    assert "5 s" in dropped["Hangs"]


def test_a_bug_leaves_a_reproducer_that_repeats_it(mlp: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(infconv.InfconvError, match="Buggy failed with ZeroDivisionError") as caught:
            infconv.convert(mlp, output="w.onnx", passes=[f"{__name__}:Buggy"])
        assert caught.value.exit_code == 1
        assert "1 // 0" in Path("infconv-crash/traceback.txt").read_text()
        with pytest.raises(infconv.InfconvError, match="Buggy failed with ZeroDivisionError"):
            infconv.run("infconv-crash/pipeline.yaml")


def test_an_invalid_graph_is_never_written(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(infconv.InfconvError, match="invalid graph") as caught:
        infconv.convert(mlp, output=tmp_path / "w.onnx", passes=[INVALID], verify="off")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "w.onnx").exists()


def test_the_opset_is_raised(mlp: Path, tmp_path: Path) -> None:
    infconv.convert(mlp, output=tmp_path / "o.onnx", opset=20)
    assert onnx.load(tmp_path / "o.onnx").opset_import[0].version == 20


def test_the_source_is_never_the_output(mlp: Path) -> None:
    with pytest.raises(infconv.UsageError, match="is the source itself"):
        infconv.convert(mlp, output=mlp)


def test_a_precision_that_is_nowhere_delivered_is_a_failure(tmp_path: Path) -> None:
    source = make_mlp(tmp_path / "big.onnx", scale=1e5)
    with pytest.raises(infconv.VerificationError, match="fp16 was asked for, but no compute operator") as caught:
        infconv.convert(source, output=tmp_path / "h.onnx", fp16=True)
    assert "beyond the range of FP16" in caught.value.hint


def test_optimize_returns_a_graph_and_leaves_the_model_alone(mlp: Path) -> None:
    proto = onnx.load(mlp)
    before = proto.SerializeToString()
    graph = infconv.optimize(proto)
    assert proto.SerializeToString() == before
    assert next(n.op_type for n in graph.graph) in {"MatMul", "Gemm"}


def test_a_bug_in_a_step_of_optimize_is_an_error_of_ours(mlp: Path, monkeypatch) -> None:
    monkeypatch.setattr("infconv.graphs.level_steps", lambda target, level: [f"{__name__}:Buggy"])
    with pytest.raises(infconv.InfconvError, match="Buggy failed with ZeroDivisionError") as caught:
        infconv.optimize(mlp)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), infconv.InfconvError)


def test_the_options_are_declared_and_shown() -> None:
    shown = inspect.signature(infconv.convert).parameters
    assert list(shown) == ["source", *ConvertOptions.__annotations__, "observers"]
    assert shown["target"].default == "onnx"
    assert shown["opset"].default is None


def test_options_without_a_value_mean_the_defaults() -> None:
    assert make_spec("m.onnx", **DEFAULTS) == make_spec("m.onnx")
    everything = {name: DEFAULTS.get(name) for name in ConvertOptions.__annotations__}
    assert make_spec("m.onnx", **everything) == make_spec("m.onnx")


def test_a_misspelt_option_is_named(mlp: Path) -> None:
    with pytest.raises(TypeError, match="no option 'targt'. Did you mean 'target'?"):
        infconv.convert(mlp, targt="onnx")


def test_limits_hold_in_python_too(mlp: Path, tmp_path: Path) -> None:
    result = infconv.convert(mlp, output=tmp_path / "a.onnx", timeout="5m", memory_limit="64GiB")
    assert result.artifacts[0].verification.passed
    for step, limits in (("Hangs", {"timeout": 2}), ("Hoards", {"memory_limit": "6GiB"})):
        with pytest.raises(infconv.ResourceError, match="did not finish within 2 s|more memory"):
            infconv.convert(mlp, output=tmp_path / "new" / "b.onnx", passes=f"{__name__}:{step}", **limits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.infconv.json", "mlp.onnx"]


class Hoards(Pass):
    """A step that wants more memory than there is."""

    def run(self, model, context) -> int:
        return len(bytearray(1 << 40))


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("target", ["onnx", "ov", "trt"])
def test_outputs_without_shape_or_type_are_converted(tmp_path: Path, target: str, described: bool) -> None:
    model = onnx.load(make_mlp(tmp_path / "m.onnx"))
    output = onnx.helper.make_tensor_value_info("y", 1, None) if described else onnx.ValueInfoProto(name="y")
    del model.graph.output[:]
    model.graph.output.append(output)
    onnx.save(model, tmp_path / "m.onnx")
    assert infconv.convert(tmp_path / "m.onnx", target=target, output=tmp_path / "out").artifacts


LOOP = """<ir_version: 9, opset_import: ["" : 17]> m (float[4] x, bool c) => (float[4] y, float[4] x) {
    n = Constant<value = int64 {3}>()
    y = Loop(n, c, x) <body = b (int64 i, bool ci, float[4] v) => (bool ci, float[4] w) { w = Add(v, v) }>
}"""


def test_tensorrt_takes_an_input_that_is_an_output_or_a_loops_condition(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(LOOP), tmp_path / "loop.onnx")
    for target in ("onnx", "trt"):
        (artifact,) = infconv.convert(tmp_path / "loop.onnx", target=target, output=tmp_path / "out").artifacts
    assert {tensor["name"] for tensor in artifact.facts["inputs"]} == {"x", "c"}
    assert {tensor["name"] for tensor in artifact.facts["outputs"]} == {"y", "x_output"}
    assert any("'x' is called 'x_output'" in note for note in artifact.notes)


def test_a_scalar_condition_is_fed(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17]> m (bool c, float[2] x) => (float[2] y) { y = If (c) <'
    text += "then_branch = t () => (float[2] o) { o = Relu(x) }, else_branch = e () => (float[2] o) { o = Neg(x) }> }"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "if.onnx")
    for target in ("onnx", "ov", "trt"):
        assert infconv.convert(tmp_path / "if.onnx", target=target, output=tmp_path / "out").artifacts


def test_a_missing_output_is_a_difference(mlp: Path, tmp_path: Path) -> None:
    two = onnx.load(mlp)
    two.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, ["batch", 16]))
    onnx.save(two, tmp_path / "two.onnx")
    assert not infconv.compare(tmp_path / "two.onnx", mlp).passed


def test_compare_tells_models_apart(mlp: Path, tmp_path: Path) -> None:
    infconv.convert(mlp, output=tmp_path / "a.onnx")
    other = make_mlp(tmp_path / "other.onnx", scale=1.1)
    assert infconv.compare(mlp, tmp_path / "a.onnx").passed
    assert not infconv.compare(mlp, other).passed


def test_a_slash_at_the_end_names_a_folder(mlp: Path, tmp_path: Path) -> None:
    result = infconv.convert(mlp, target=["onnx", "onnxruntime"], output=f"{tmp_path}/mlp.v1/")
    assert {Path(artifact.path).parent for artifact in result.artifacts} == {tmp_path / "mlp.v1"}
