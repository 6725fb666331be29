"""The GitHub action, the GitLab template and the example repository, as far as they run without their services."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "ci"
PIPELINE = "source: {path: mlp.onnx}\ntargets: [{target: onnx, output: out/m.onnx}]\nverify: {when: 'off'}\n"


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with `infconv` and `python` on PATH; `python -m pip` only writes down what it is asked."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = {
        "infconv": f'exec "{sys.executable}" -m infconv.cli "$@"',
        "python": f'if [ "$2" = pip ]; then printf "%s\\n" "$@" > "{folder}/pip.txt"; '
        f'else exec "{sys.executable}" "$@"; fi',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "INFCONV_CACHE": "off"}


def bash(script: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script as GitHub does with `shell: bash`."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False, timeout=300
    )


# --- GitHub ----------------------------------------------------------------------------------------------------------

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}


def run_step(
    name: str, folder: Path, environment: Mapping[str, str], **inputs: str
) -> subprocess.CompletedProcess[str]:
    """Run a step of the action with its defaults and `inputs`; what it outputs goes to `folder`/output."""
    given = {key: entry["default"] for key, entry in ACTION["inputs"].items()} | inputs

    def value(match: re.Match[str]) -> str:
        return given[match[1]]

    own = {key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", value, text) for key, text in STEPS[name]["env"].items()}
    service = {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return bash(STEPS[name]["run"], folder, {**environment, "GITHUB_ACTIONS": "true", **service, **own})


def test_the_action_is_composite_and_says_what_it_takes() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert all(entry["description"] for entry in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))
    assert all(step["shell"] == "bash" for step in STEPS.values() if "run" in step)
    text = "\n".join(step["run"] for step in STEPS.values() if "run" in step)
    assert "${{" not in text, "an input in a script could be code: they come through the environment"
    used = set(re.findall(r"inputs\.(\w+)", json.dumps(ACTION)))
    assert used == set(ACTION["inputs"])


def test_the_action_installs_what_is_asked(tmp_path: Path, environment: dict[str, str]) -> None:
    assert STEPS["Install infconv"]["if"] == "inputs.install != ''"
    done = run_step("Install infconv", tmp_path, environment, install="infconv[openvino]  onnx>=1.19")
    assert done.returncode == 0, done.stderr
    asked = Path(environment["PATH"].split(os.pathsep)[0], "pip.txt").read_text().split()
    assert asked == ["-m", "pip", "install", "--quiet", "infconv[openvino]", "onnx>=1.19"]


def test_the_action_converts_and_reports(mlp: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "my pipeline.yaml").write_text(PIPELINE)
    done = run_step("Convert", tmp_path, environment, pipeline="my pipeline.yaml", args="--set seed=3  --only onnx")
    assert done.returncode == 0, done.stderr
    reports = {path.name for path in (tmp_path / "infconv-reports").iterdir()}
    assert reports == {"infconv.json", "infconv.xml", "infconv.sarif", "infconv.html"}
    assert (tmp_path / "output").read_text() == "exit-code=0\njson=infconv-reports/infconv.json\n"
    assert (tmp_path / "summary.md").read_text().startswith("## ✅ infconv: my pipeline.yaml")
    assert done.stderr == ""


def test_the_action_fails_as_the_run_does(mlp: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE + "gates: {nodes: {max: 1}}\n")
    done = run_step("Convert", tmp_path, environment)
    assert done.returncode == 6
    assert "::error file=pipeline.yaml,title=infconv gate nodes::out/m.onnx: it has 3 nodes" in done.stderr
    assert (tmp_path / "output").read_text().startswith("exit-code=6\n")
    assert (tmp_path / "infconv-reports" / "infconv.sarif").exists()


# --- GitLab ----------------------------------------------------------------------------------------------------------

JOB: dict[str, Any] = yaml.safe_load((ROOT / "ci" / "gitlab-template.yml").read_text(encoding="utf-8"))[".infconv"]


def run_job(folder: Path, environment: Mapping[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the job's scripts, as GitLab's runner does: one after another in one shell that ends at the first error."""
    return bash(
        "\n".join([*JOB["before_script"], *JOB["script"]]), folder, {**environment, **JOB["variables"], **variables}
    )


def test_the_gitlab_job_converts_and_keeps_the_reports(mlp: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    done = run_job(tmp_path, environment, INFCONV_ARGS="--only onnx -q")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(environment["PATH"].split(os.pathsep)[0], "pip.txt").read_text().split()[-1] == "infconv"
    junit = JOB["artifacts"]["reports"]["junit"].replace("$INFCONV_REPORTS", JOB["variables"]["INFCONV_REPORTS"])
    assert ET.parse(tmp_path / junit).getroot().get("failures") == "0"
    assert JOB["artifacts"]["when"] == "always"


def test_the_gitlab_job_fails_as_the_run_does(mlp: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE + "gates: {nodes: {max: 1}}\n")
    assert run_job(tmp_path, environment, INFCONV_INSTALL="").returncode == 6
    assert ET.parse(tmp_path / "infconv-reports" / "infconv.xml").getroot().get("failures") == "1"


# --- the example repository ------------------------------------------------------------------------------------------


def test_the_commands_of_the_example_do_what_its_text_says(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "ci"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("out", "reports", "*.onnx", "*.npz", "baseline*"))
    blocks = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        done = bash(block, folder, environment)
        assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
    assert set(json.loads((folder / "baseline.json").read_text())["artifacts"]) == {
        "out/model.fp32.onnx",
        "out/model.fp16.onnx",
    }
    assert (folder / "out" / "model.cdx.json").exists()
    assert "accuracy.min" in (folder / "reports" / "infconv.xml").read_text()
    done = bash("infconv run pipeline.yaml -q --set gates.accuracy.min=1.1", folder, environment)
    assert (done.returncode, "accuracy.min: the metric is" in done.stderr) == (6, True)


def test_the_workflows_of_the_example_use_what_there_is() -> None:
    workflow = yaml.safe_load((EXAMPLE / ".github" / "workflows" / "convert.yml").read_text(encoding="utf-8"))
    (step,) = [s for s in workflow["jobs"]["convert"]["steps"] if "infconv" in s.get("uses", "")]
    assert set(step["with"]) <= set(ACTION["inputs"])
    job = yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text(encoding="utf-8"))["convert"]
    assert job["extends"] == ".infconv"
