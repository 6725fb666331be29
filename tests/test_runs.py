"""Several pipelines as one run on the command line: plan, outcome, reports however it ends, plain output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

import infconv
from infconv.errors import ResourceError, SourceError
from tests.conftest import make_mlp

TEXT = """
sources: [{path: mlp.onnx}, {path: more.onnx, name: more}]
matrix: {precision: [fp32, fp16]}
targets: [{target: onnx, precision: '${matrix:precision}', output: 'out/${source}.${precision}.onnx'}]
verify: {when: 'off'}
"""


@pytest.fixture
def pipeline(mlp: Path, tmp_path: Path) -> Path:
    make_mlp(tmp_path / "more.onnx", scale=2.0)
    (tmp_path / "p.yaml").write_text(TEXT)
    return tmp_path / "p.yaml"


def test_the_plan_is_a_row_for_each_artifact(infconv: Any, pipeline: Path, tmp_path: Path) -> None:
    done = infconv("run", "p.yaml", "--dry-run")
    rows = [line.split() for line in done.out.splitlines() if ".onnx" in line]
    assert [row[:4] for row in rows] == [
        ["mlp", "onnx", "fp32", "out/mlp.fp32.onnx"],
        ["mlp", "onnx", "fp16", "out/mlp.fp16.onnx"],
        ["more", "onnx", "fp32", "out/more.fp32.onnx"],
        ["more", "onnx", "fp16", "out/more.fp16.onnx"],
    ]
    assert not (tmp_path / "out").exists()


def test_the_plan_in_full_is_what_would_run(infconv: Any, pipeline: Path, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(infconv("run", "p.yaml", "--dry-run", "-v", "--only", "fp16").out))
    assert [d["source"]["path"] for d in documents] == [str(tmp_path / "mlp.onnx"), str(tmp_path / "more.onnx")]
    assert [t["precision"] for d in documents for t in d["targets"]] == ["fp16", "fp16"]
    document = infconv("run", "p.yaml", "--dry-run", "--json", "--set", "verify.when=end").json
    assert len(document["jobs"]) == 4
    assert "verify" not in document["pipelines"][0], "the default is left out"


def test_every_source_is_made_and_a_failure_stops_no_other(infconv: Any, pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "mlp.onnx").write_bytes(b"broken")
    done = infconv("run", "p.yaml", "--report", "r.xml", "--report", "r.json", "--json")
    assert done.code == 3
    assert done.json["error"]["message"].startswith("mlp: ")
    assert [Path(a["path"]).name for a in done.json["artifacts"]] == ["more.fp32.onnx", "more.fp16.onnx"]
    assert [Path(f["path"]).name for f in done.json["failures"]] == ["mlp.fp32.onnx", "mlp.fp16.onnx"]
    assert json.loads((tmp_path / "r.json").read_text()) == done.json
    assert ET.parse(tmp_path / "r.xml").getroot().get("errors") == "2"


def test_reports_are_written_when_the_run_cannot_start(infconv: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("version: 1\nsorce: {path: x}\n")
    done = infconv("run", "p.yaml", "--report", "r.xml", "--report", "r.sarif")
    assert done.code == 2
    assert "unknown key 'sorce'" in (tmp_path / "r.xml").read_text()
    (run,) = json.loads((tmp_path / "r.sarif").read_text())["runs"]
    assert run["results"][0]["ruleId"] == "usage"
    assert infconv("convert", "gone.onnx", "--report", "c.md").code == 3
    assert "'gone.onnx' does not exist" in (tmp_path / "c.md").read_text().replace("\\", "")


def test_python_raises_what_failed_even_when_the_report_cannot_be_written(mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "way.md").mkdir()
    options: dict[str, Any] = {"output": tmp_path / "a.onnx", "report": [tmp_path / "way.md", tmp_path / "r.md"]}
    with pytest.raises(SourceError, match="gone.onnx"):
        infconv.convert("gone.onnx", **options)
    assert "gone.onnx" in (tmp_path / "r.md").read_text()
    with pytest.raises(ResourceError, match="way.md"):
        infconv.convert(mlp, **options)
    assert (tmp_path / "a.onnx").exists()


CRASH = """
import os
from infconv.passes import Pass
class Dies(Pass):
    "Ends the process."
    def run(self, model, context):
        os.kill(os.getpid(), 11)
"""


def test_reports_are_written_when_the_process_dies(infconv: Any, mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(CRASH)
    text = "source: {path: mlp.onnx}\nadd: ['dies:Dies']\ntargets: [{target: onnx, output: a.onnx}]\nreports: [r.xml]\n"
    (tmp_path / "p.yaml").write_text(text)
    done = infconv("run", "p.yaml")
    assert done.code == 1
    assert "crashed (SIGSEGV) in a native library, at: step dies:Dies" in done.err
    assert "crashed (SIGSEGV)" in (tmp_path / "r.xml").read_text()


def test_a_report_that_cannot_be_written_is_told_and_changes_no_failure(
    infconv: Any, mlp: Path, tmp_path: Path
) -> None:
    (tmp_path / "way.md").mkdir()
    done = infconv("convert", mlp, "-o", "a.onnx", "--report", "way.md", "--report", "r.json")
    assert (done.code, "The report 'way.md' cannot be written" in done.err) == (7, True)
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "ok"
    done = infconv("convert", "gone.onnx", "--report", "way.md")
    assert (done.code, "way.md" in done.err, "gone.onnx" in done.err) == (3, True, True)
    assert infconv("convert", mlp, "--report", "a.pdf").code == 2


def test_a_ci_service_gets_annotations_and_a_summary_and_plain_text(mlp: Path, tmp_path: Path) -> None:
    text = "source: {path: mlp.onnx}\ntargets: [{target: onnx, output: a.onnx}]\ngates: {nodes: {max: 1}}\n"
    (tmp_path / "p.yaml").write_text(text)
    command = [sys.executable, "-m", "infconv.cli", "run", "p.yaml", "--json"]
    own = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "FORCE_COLOR": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, **own}, timeout=300
    )
    assert done.returncode == 6
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert line.startswith("::error file=p.yaml,title=infconv gate nodes::a.onnx: it has 3 nodes")
    assert line.count("a.onnx") == 1
    assert json.loads(done.stdout)["exit_code"] == 6, "stdout has the document alone"
    assert (tmp_path / "summary.md").read_text().startswith("## ❌ infconv: p.yaml")


def test_without_a_terminal_the_output_is_plain(infconv: Any, pipeline: Path) -> None:
    done = infconv("run", "p.yaml", "--only", "more")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert "\r" not in done.out
