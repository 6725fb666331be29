"""Artifacts appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import infconv
from infconv.errors import UsageError
from infconv.publish import publish, session, staging
from tests.conftest import make_mlp


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


def test_a_staging_folder_just_being_made_is_left_alone(tmp_path: Path) -> None:
    young, old = tmp_path / ".infconv-young", tmp_path / ".infconv-old"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    with staging(tmp_path / "b.onnx"):
        pass
    assert names(tmp_path) == [young.name]


def test_a_failure_removes_the_folders_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(RuntimeError), staging(tmp_path / "old" / "new" / "newer" / "a.onnx"):
        raise RuntimeError
    assert names(tmp_path / "old") == []
    with pytest.raises(RuntimeError), staging(tmp_path / "old" / "a.onnx"):
        raise RuntimeError
    assert names(tmp_path) == ["old"]


def test_what_a_killed_child_left_goes_with_its_session(tmp_path: Path) -> None:
    with session():
        if os.fork() == 0:
            with staging(tmp_path / "new" / "a.onnx"):
                os._exit(0)
        os.wait()
        assert len(names(tmp_path / "new")) == 1
    assert names(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
from infconv.publish import publish, staging
folder, word = Path(sys.argv[1]), sys.argv[2]
for _ in range(30):
    with staging(folder / "a.xml") as stage:
        files = [stage / "a.xml", *(stage / f"a.{i}" for i in range(8))]
        for file in files:
            file.write_text(word)
        publish(files, folder)
"""


def test_concurrent_runs_never_mix_their_files(tmp_path: Path) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), word]) for word in ("one", "two")]
    assert [run.wait() for run in runs] == [0, 0]
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 1
    assert names(tmp_path) == [*(f"a.{i}" for i in range(8)), "a.xml"]


def test_weights_of_the_old_artifact_go_with_it(tmp_path: Path) -> None:
    model = infconv.load(make_mlp(tmp_path / "mlp.onnx", width=64))
    (tmp_path / "b.onnx.data").write_text("of something else")
    for name in ("a.onnx", "b.onnx"):
        infconv.save(model, tmp_path / name, external=name == "a.onnx")
    assert "a.onnx.data" in names(tmp_path)
    infconv.save(model, tmp_path / "a.onnx", external=False)
    infconv.save(model, tmp_path / "b.onnx", external=False)
    assert names(tmp_path) == ["a.onnx", "b.onnx", "b.onnx.data", "mlp.onnx"]


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
