"""The reproducer of a bug repeats it anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from infconv.api import make_spec
from infconv.crash import report_crash
from infconv.model import load
from infconv.planning import plan
from infconv.quantize.quantize_static import QuantizeStatic
from infconv.runner import StepFailed

BROKEN = """
from infconv.passes import Pass
class Broken(Pass):
    "Fails."
    def run(self, model, context):
        raise ValueError(f"{len(model.graph)} nodes")
"""


def test_the_folder_of_a_users_own_step_can_be_moved(infconv: Any, mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BROKEN)
    done = infconv("convert", mlp, "-o", "o.onnx", "-p", "own:Broken")
    assert (done.code, "3 nodes" in done.err) == (1, True)
    (tmp_path / "own.py").unlink()
    (tmp_path / "infconv-crash").rename(tmp_path / "sent")
    for folder in ("sent", "infconv-crash", "infconv-crash"):  # each run leaves the reproducer anew
        done = infconv("run", f"{folder}/pipeline.yaml")
        assert (done.code, "3 nodes" in done.err) == (1, True)


def test_a_step_that_lowers_the_precision_gets_its_data(
    infconv: Any, mlp: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    np.savez(tmp_path / "calibration.npz", x=np.ones((2, 8), "f4"))
    monkeypatch.chdir(tmp_path)
    spec = make_spec(mlp, target="ort", int8=True, calibration="calibration.npz", output="o.onnx")
    failed = StepFailed(QuantizeStatic(), 3, ValueError("boom"))
    report_crash(failed, lambda: load(mlp), spec, plan(spec)[0])
    written = yaml.safe_load((tmp_path / "infconv-crash/pipeline.yaml").read_text())
    assert written["calibration"]["path"] == str(tmp_path / "calibration.npz")
    assert written["targets"][0]["precision"] == "int8"
    assert infconv("run", "infconv-crash/pipeline.yaml").code == 0
