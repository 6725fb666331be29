"""The built wheel, in a clean environment without extras, converts an ONNX file and takes a plugin."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_clean_install_converts_onnx(tmp_path: Path, mlp: Path) -> None:
    def run(*command: object) -> str:
        done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    command = tmp_path / "venv" / "bin" / "infconv"
    assert "3 samples" in run(command, "convert", mlp, "-o", "out.onnx")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT / "tests" / "plugin")
    assert "rename-graph" in run(command, "passes")
    printed = run(command, "convert", mlp, "-o", "p.onnx", "-p", "rename-graph: {to: mine}", "--json")
    assert {s["name"]: s["status"] for s in json.loads(printed)["steps"]}["rename-graph"] == "applied"
    missing = subprocess.run(
        [command, "convert", mlp, "-t", "openvino"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 8
    assert "pip install 'infconv[openvino]'" in missing.stderr
