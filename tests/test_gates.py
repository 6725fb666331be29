"""Gates: limits of artifacts, and the comparison with an earlier run that noise does not fool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import infconv
from infconv.baseline import machine
from infconv.errors import GateError, InfconvError, UsageError
from infconv.result import Result
from infconv.run_file import load_run
from infconv.runs import execute_all
from tests.conftest import make_mlp

LIMITS = {
    "latency_ms": "{max: 1000, runs: 10}",
    "memory_mb": "{max: 4000}",
    "size_mb": "{max: 1}",
    "nodes": "{max: 3}",
    "error": "{max_abs: 1.0e-4, min_sqnr: 60}",
}


def pipeline(
    folder: Path, gates: str, *, target: str = "{target: onnxruntime, output: out/m.onnx}", more: str = ""
) -> Path:
    path = folder / "p.yaml"
    path.write_text(f"source: {{path: mlp.onnx}}\ntargets: [{target}]\ngates: {gates}\n{more}")
    return path


def checked(path: Path, *overrides: str, update_baseline: bool = False) -> dict[str, Any]:
    """Run the pipeline and return gate -> its check."""
    result = execute_all(load_run(path, overrides), update_baseline=update_baseline)
    assert result.error is None or isinstance(result.error, GateError), result.error
    return {gate.gate: gate for gate in result.gates}


def test_limits_that_are_kept(mlp: Path, tmp_path: Path) -> None:
    gates = checked(pipeline(tmp_path, "{" + ", ".join(f"{k}: {v}" for k, v in LIMITS.items()) + "}"))
    assert list(gates) == ["latency_ms", "memory_mb", "size_mb", "nodes", "error.max_abs", "error.min_sqnr"]
    assert {gate.status for gate in gates.values()} == {"passed"}
    assert gates["nodes"].message == "it has 3 nodes, allowed is at most 3"
    assert 0 < gates["latency_ms"].value < 1000


@pytest.mark.parametrize(
    ("limit", "gate", "message"),
    [
        ("latency_ms: {max: 1.0e-6, runs: 5}", "latency_ms", ", allowed is at most 1e-06: "),
        ("memory_mb: {max: 0}", "memory_mb", "MB of memory, allowed is at most 0: "),
        ("size_mb: {max: 0.0001}", "size_mb", "MB, allowed is at most 0.0001: "),
        ("nodes: {max: 2}", "nodes", "it has 3 nodes, allowed is at most 2: 50.0 % too much"),
        ("error: {min_sqnr: 1000}", "error.min_sqnr", "allowed is at least 1000: "),
    ],
)
def test_a_limit_that_is_not_kept_is_told_with_value_and_distance(
    mlp: Path, tmp_path: Path, limit: str, gate: str, message: str
) -> None:
    target = "{target: onnxruntime, precision: fp16, output: out/m.onnx}" if "error" in limit else None
    path = pipeline(tmp_path, f"{{{limit}}}", **({"target": target} if target else {}))
    result = execute_all(load_run(path))
    (check,) = result.gates
    assert (check.gate, check.status, message in check.message) == (gate, "failed", True), check.message
    assert isinstance(result.error, GateError)
    assert f"{gate}: {check.message}" in result.error.message
    assert Path(result.artifacts[0].path).exists(), "the artifact is published, and reported"


def test_a_target_has_limits_of_its_own(mlp: Path, tmp_path: Path) -> None:
    target = "{target: onnx, output: a.onnx}, {target: onnx, output: b.onnx, gates: {nodes: {max: 1}}}"
    result = execute_all(load_run(pipeline(tmp_path, "{nodes: {max: 9}, size_mb: {max: 1}}", target=target)))
    found = [(Path(g.artifact).name, g.gate, g.status, g.limit) for g in result.gates]
    assert found == [
        ("a.onnx", "size_mb", "passed", 1.0),
        ("a.onnx", "nodes", "passed", 9.0),
        ("b.onnx", "size_mb", "passed", 1.0),
        ("b.onnx", "nodes", "failed", 1.0),
    ]


def test_the_metric_is_a_gate(mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "my_eval.py").write_text("def score(model): return 0.75\n")
    more = "verify: {metric: 'my_eval:score'}\n"
    gates = checked(pipeline(tmp_path, "{accuracy: {min: 0.8}}", more=more))
    assert gates["accuracy.min"].message == "the metric is 0.75, allowed is at least 0.8: 6.2 % too little"


@pytest.mark.parametrize(
    ("gates", "more", "target", "message"),
    [
        ("{accuracy: {min: 1}}", "", "onnx", "'gates.accuracy' needs 'verify.metric'"),
        ("{error: {max_abs: 1}}", "verify: {when: 'off'}\n", "onnx", "'gates.error' needs verification"),
        ("{latency_ms: {max: 1}}", "", "tensorrt", "'gates.latency_ms': a tensorrt artifact is not measured here"),
        ("{memory_mb: {max: 1}}", "", "tensorrt", "'gates.memory_mb': a tensorrt artifact is not measured here"),
    ],
)
def test_a_gate_that_cannot_be_checked_is_refused_before_the_work(
    mlp: Path, tmp_path: Path, gates: str, more: str, target: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        execute_all(load_run(pipeline(tmp_path, gates, target=f"{{target: {target}}}", more=more)))
    assert message in caught.value.message


def test_only_the_named_runtime_is_measured(mlp: Path, tmp_path: Path) -> None:
    target = "{target: onnx, output: a.onnx}, {target: openvino, output: a.xml}"
    result = execute_all(
        load_run(pipeline(tmp_path, "{latency_ms: {max: 1000, runtime: openvino, runs: 5}}", target=target))
    )
    assert [Path(gate.artifact).name for gate in result.gates] == ["a.xml"]


def test_an_artifact_that_cannot_be_measured_does_not_pass(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InfconvError("the runtime refuses it")

    monkeypatch.setattr("infconv.bench.bench", refuse)
    gates = checked(pipeline(tmp_path, "{latency_ms: {max: 1000}}"))
    assert (gates["latency_ms"].status, gates["latency_ms"].message) == (
        "failed",
        "it cannot be measured: the runtime refuses it",
    )


# --- the baseline ----------------------------------------------------------------------------------------------------

RACE = "{latency_ms: {max: 1000, runs: 15, threads: 1}, baseline: base.json, max_regression: 0.2}"


def test_the_baseline_is_written_when_it_is_absent_and_kept_to(mlp: Path, tmp_path: Path) -> None:
    path = pipeline(tmp_path, RACE)
    first = execute_all(load_run(path))
    assert first.notes == [f"The figures of 1 artifact are the new baseline in '{tmp_path / 'base.json'}'."]
    assert not [gate for gate in first.gates if gate.gate.startswith("regression")]
    before = (tmp_path / "base.json").read_bytes()
    gates = checked(path)
    assert {gate: check.status for gate, check in gates.items() if gate != "latency_ms"} == {
        "regression.size_mb": "passed",
        "regression.nodes": "passed",
        "regression.latency_ms": "passed",
    }
    assert gates["regression.latency_ms"].message == "the artifact is the baseline's"
    assert (tmp_path / "base.json").read_bytes() == before


def test_a_slower_and_larger_artifact_fails_until_it_is_the_baseline(mlp: Path, tmp_path: Path) -> None:
    path = pipeline(tmp_path, RACE)
    checked(path)
    make_mlp(mlp, width=20_000)
    gates = checked(path)
    latency = gates["regression.latency_ms"]
    assert (gates["regression.nodes"].status, gates["regression.size_mb"].status) == ("passed", "failed")
    assert "of two runs" in latency.message, "the old one takes other inputs: there is no race"
    checked(path, update_baseline=True)
    assert {check.status for check in checked(path).values()} == {"passed"}
    assert len(list((tmp_path / "base.artifacts").iterdir())) == 1, "the old copy is gone"


def slow(path: Path, times: int) -> Path:
    """Write a model that multiplies by a matrix `times` times."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array((rng.normal(size=(256, 256)) / 16).astype("f4"), f"w{n}") for n in range(times)]
    nodes = []
    for n in range(times):
        nodes += [
            helper.make_node("MatMul", [f"h{n}", f"w{n}"], [f"m{n}"]),
            helper.make_node("Tanh", [f"m{n}"], [f"h{n + 1}"]),
        ]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 256]) for name in "xy"]
    graph = helper.make_graph(nodes, "slow", value[:1], value[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_slower_is_found_side_by_side_and_by_the_figures_of_this_machine(tmp_path: Path) -> None:
    slow(tmp_path / "mlp.onnx", 2)
    path = pipeline(tmp_path, RACE)
    checked(path)
    slow(tmp_path / "mlp.onnx", 12)
    latency = checked(path)["regression.latency_ms"]
    assert (latency.status, "side by side" in latency.message) == ("failed", True), latency.message
    assert latency.value is not None
    assert latency.value > 2
    for copy in (tmp_path / "base.artifacts").rglob("*.onnx"):
        copy.unlink()
    assert "of two runs" in checked(path)["regression.latency_ms"].message
    document = json.loads((tmp_path / "base.json").read_text())
    (entry,) = document["artifacts"].values()
    assert entry["machine"] == machine()
    entry["machine"]["processor"] = "another"
    (tmp_path / "base.json").write_text(json.dumps(document))
    latency = checked(path)["regression.latency_ms"]
    assert (latency.status, "of another machine" in latency.message) == ("skipped", True)


def test_an_interval_that_reaches_the_limit_is_no_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infconv import bench, gates

    slow(tmp_path / "mlp.onnx", 2)
    path = pipeline(tmp_path, RACE)
    checked(path)
    slow(tmp_path / "mlp.onnx", 3)
    real = bench.bench

    def noisy(models: Any, **options: Any) -> Any:
        return [
            gates.dataclasses.replace(row, ratio=1.4, ratio_low=1.1, ratio_high=1.9) for row in real(models, **options)
        ]

    monkeypatch.setattr("infconv.bench.bench", noisy)
    latency = checked(path)["regression.latency_ms"]
    assert (latency.status, "1.4 times the baseline's" in latency.message) == ("passed", True), latency.message


def test_latency_may_be_measured_for_the_baseline_only(mlp: Path, tmp_path: Path) -> None:
    path = pipeline(tmp_path, "{latency_ms: {runs: 5}, baseline: base.json}")
    assert checked(path) == {}
    assert "regression.latency_ms" in checked(path)


def test_a_new_artifact_joins_the_baseline(mlp: Path, tmp_path: Path) -> None:
    gates = "{nodes: {max: 9}, baseline: base.json}"
    checked(pipeline(tmp_path, gates))
    two = "{target: onnxruntime, output: out/m.onnx}, {target: onnx, output: out/n.onnx}"
    result = execute_all(load_run(pipeline(tmp_path, gates, target=two)))
    assert [g.message for g in result.gates if g.gate == "regression"] == ["it is new: the baseline gets its figures"]
    assert set(json.loads((tmp_path / "base.json").read_text())["artifacts"]) == {"out/m.onnx", "out/n.onnx"}


def test_a_failed_gate_writes_no_baseline(mlp: Path, tmp_path: Path) -> None:
    checked(pipeline(tmp_path, "{nodes: {max: 1}, baseline: base.json}"))
    assert not (tmp_path / "base.json").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"baseline_version": 9}', '{"baseline_version": 1, "artifacts": {"out/m.onnx": {}}}']
)
def test_a_broken_baseline_is_told_and_can_be_written_anew(mlp: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "base.json").write_text(text)
    path = pipeline(tmp_path, "{nodes: {max: 9}, baseline: base.json}")
    with pytest.raises(UsageError, match="is not a baseline") as caught:
        execute_all(load_run(path))
    assert "--update-baseline" in caught.value.hint
    checked(path, update_baseline=True)
    assert checked(path)["regression.nodes"].status == "passed"


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_failed_gate_exits_with_6_and_is_in_the_document(infconv: Any, mlp: Path, tmp_path: Path) -> None:
    pipeline(tmp_path, "{nodes: {max: 1}, size_mb: {max: 1}}", more="reports: [out/r.xml]\n")
    done = infconv("run", "p.yaml")
    assert done.code == 6
    assert "nodes: it has 3 nodes, allowed is at most 1" in done.err
    assert (tmp_path / "out" / "m.onnx").exists()
    assert "<failure" in (tmp_path / "out" / "r.xml").read_text()
    document = infconv("run", "p.yaml", "--json").json
    assert (document["exit_code"], document["error"]["code"]) == (6, "gate")
    assert [(gate["gate"], gate["status"]) for gate in document["gates"]] == [
        ("size_mb", "passed"),
        ("nodes", "failed"),
    ]


def test_python_raises_the_gate_error_and_writes_the_reports(mlp: Path, tmp_path: Path) -> None:
    path = pipeline(tmp_path, "{nodes: {max: 1}}", more="reports: [out/r.json]\n")
    with pytest.raises(GateError, match="nodes: it has 3 nodes"):
        infconv.run(path)
    assert json.loads((tmp_path / "out" / "r.json").read_text())["exit_code"] == 6
    result = infconv.run(path, set={"gates.nodes.max": 3}, report=tmp_path / "r.md")
    assert isinstance(result, Result)
    assert (tmp_path / "r.md").exists()
