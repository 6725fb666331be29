"""Steps that are wrong on purpose: each is dropped and named, fails a run with the right code, and is bisected."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import onnx
import pytest

import infconv
from infconv import isolate
from infconv.errors import InfconvError
from infconv.repro import Command, Expected, Repro, typed
from infconv.spec import load_spec
from tests.trust import models
from tests.trust.faults import FAULTS, Planted

STEPS = "tests.trust.faults"
CODES = {"differs": {5}, "invalid": {1, 4}, "crash": {1}, "timeout": {7}, "memory": {7}, "contract": {1}, "error": {1}}
bisection = importlib.import_module("infconv.bisect")


def options(fault: Planted, name: str) -> dict:
    """Return the conversion with the wrong step between two that are right."""
    return {
        "steps": ["infer-shapes", f"{STEPS}:{name}", "remove-unused"],
        "edge_cases": list(fault.edge_cases),
        "step_timeout": 0.5 if fault.kind == "timeout" else 30,
    }


def in_a_child(convert, fault: Planted):
    """Run a conversion whose step may take the process with it."""
    limit = 8 << 30 if fault.kind == "memory" else None
    timeout = 1 if fault.kind == "timeout" else 60
    return isolate.call(convert, what="The conversion", timeout=timeout, memory_limit=limit)


@pytest.fixture(params=FAULTS)
def name(request) -> str:
    return request.param


@pytest.fixture
def fault(name: str) -> Planted:
    return FAULTS[name]


@pytest.fixture
def source(fault: Planted, tmp_path: Path) -> Path:
    return models.write(fault.model, tmp_path)


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 25
    assert {fault.kind for fault in FAULTS.values()} == set(CODES)


def test_verify_each_drops_it_and_goes_on(name: str, fault: Planted, source: Path, tmp_path: Path) -> None:
    limit = {"memory_limit": "8GiB"} if fault.kind == "memory" else {}
    result = infconv.convert(source, output=tmp_path / "o.onnx", verify="each", **options(fault, name), **limit)
    dropped = [step for step in result.steps if step.status == "dropped"]
    assert [step.name for step in dropped] == [f"{STEPS}:{name}"]
    assert dropped[0].reason
    assert [step.name for step in result.steps] == ["infer-shapes", f"{STEPS}:{name}", "remove-unused"]
    (artifact,) = result.artifacts
    assert artifact.verification.passed
    assert dropped[0].name in Path(artifact.manifest).read_text()


def test_without_it_the_run_fails_with_the_right_code(name: str, fault: Planted, source: Path, tmp_path: Path) -> None:
    def convert() -> object:
        return infconv.convert(source, output=tmp_path / "o.onnx", **options(fault, name))

    with pytest.raises(InfconvError) as caught:
        in_a_child(convert, fault)
    assert caught.value.exit_code in CODES[fault.kind], caught.value
    assert not (tmp_path / "o.onnx").exists()


def attempt_here(folder: Path, command: Command, expected: Expected) -> Repro:
    """Do as the command says, in a forked process instead of a fresh one."""
    spec = load_spec(folder / "pipeline.yaml")

    def run() -> int:
        result = importlib.import_module("infconv.limits").execute_limited(spec)
        return result.exit_code

    try:
        code = isolate.call(run, what="The conversion", timeout=60)
    except InfconvError as error:
        code = error.exit_code
    return Repro(str(folder), typed(command, folder), code in expected.codes, "")


def test_bisection_names_the_step_and_the_rewrite(
    name: str, fault: Planted, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infconv.repro.attempt", attempt_here)
    monkeypatch.chdir(tmp_path)
    limit = {"memory_limit": "8GiB"} if fault.kind == "memory" else {}
    found = infconv.bisect(source, repro=tmp_path / "repro", **options(fault, name), **limit)
    assert found.culprit == f"{STEPS}:{name}"
    assert found.fault is not None
    assert found.fault.kind == fault.kind
    assert fault.at in (found.rewrite.rewrite if found.rewrite else found.node)
    assert (found.rewrite is not None) == hasattr(fault.step, "rules")
    assert found.repro is not None
    assert found.repro.reproduced
    assert found.nodes <= 2
    assert {p.name for p in (tmp_path / "repro").iterdir()} >= {
        *("model.onnx", "inputs.npz", "pipeline.yaml", "command.txt", "versions.json")
    }


# --- as a user does it --------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(name: str, source: Path, tmp_path: Path) -> Path:
    """A pipeline file with the wrong step."""
    path = {"path": source.name, "python_path": [str(Path(__file__).parents[2])]}
    steps = ["infer-shapes", f"{STEPS}:{name}"]
    text = json.dumps({"version": 1, "source": path, "steps": steps, "targets": [{"target": "onnx"}]})
    (tmp_path / "p.yaml").write_text(text)
    return tmp_path / "p.yaml"


@pytest.mark.parametrize("name", ["OneOfMany", "CrashesAtOne"], indirect=True)
def test_the_reproducer_fails_the_same_way_in_a_fresh_process(
    infconv, fault: Planted, source: Path, pipeline: Path
) -> None:
    done = infconv("bisect", source.name, "--pipeline", pipeline, "--json")
    assert done.code == 5
    assert done.json["rewrite"]["rewrite"].endswith(fault.at)
    assert done.json["repro"]["reproduced"] is True


def test_nothing_to_find_is_exit_code_0(infconv, tmp_path: Path) -> None:
    done = infconv("bisect", models.write("mlp", tmp_path).name)
    assert done.code == 0
    assert "nothing differs" in done.out
    assert not (tmp_path / "repro").exists()


@pytest.mark.parametrize("name", ["DropBias"], indirect=True)
def test_a_folder_of_the_users_is_not_overwritten(infconv, source: Path, pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "repro").mkdir()
    (tmp_path / "repro" / "thesis.txt").write_text("all of it")
    done = infconv("bisect", source.name, "--pipeline", pipeline)
    assert done.code == 2
    assert "no reproducer of an earlier run" in done.err
    assert [p.name for p in (tmp_path / "repro").iterdir()] == ["thesis.txt"]


def test_two_models_are_bisected_to_the_node(infconv, tmp_path: Path) -> None:
    a = models.write("text", tmp_path)
    model = onnx.load(a)
    next(node for node in model.graph.node if node.op_type == "Sqrt").op_type = "Exp"
    onnx.save(model, tmp_path / "b.onnx")
    done = infconv("bisect", "text.onnx", "b.onnx", "--json")
    assert done.code == 5
    assert (done.json["node"], done.json["nodes"]) == ("Exp 'sd'", 1)
    assert done.json["repro"]["reproduced"] is True
    assert infconv("bisect", "text.onnx", "text.onnx").code == 0
