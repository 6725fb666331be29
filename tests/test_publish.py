"""Artifacts appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infconv.errors import UsageError
from infconv.publish import publish, staging


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_files_move_into_place(tmp_path: Path) -> None:
    with staging(tmp_path / "a.xml") as stage:
        for name in ("a.xml", "a.bin"):
            (stage / name).write_text("new")
        publish([stage / "a.xml", stage / "a.bin"], tmp_path)
    assert names(tmp_path) == ["a.bin", "a.xml"]


def test_an_error_leaves_the_old_artifact(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    with pytest.raises(RuntimeError), staging(tmp_path / "a.onnx") as stage:
        (stage / "a.onnx").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "old"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from infconv.publish import staging
with staging(Path({str(tmp_path)!r}) / "a.onnx") as stage:
    (stage / "a.onnx").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert len(names(tmp_path)) == 1
    with staging(tmp_path / "b.onnx"):
        pass
    assert names(tmp_path) == []


def test_a_staging_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    with staging(tmp_path / "a.onnx") as first, staging(tmp_path / "b.onnx"):
        assert first.is_dir()


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), staging(tmp_path):
        pass


def test_an_unwritable_folder_is_told() -> None:
    with pytest.raises(UsageError, match="cannot be written"), staging(Path("/proc/infconv/a.onnx")):
        pass


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), staging(tmp_path / "file" / "a.onnx"):
        pass
