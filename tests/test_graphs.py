"""The interface for graphs: load, optimise, save, without what pipelines need."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import infconv
from infconv.garbage import rare_collections


def test_optimising_imports_nothing_of_pipelines(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 20]> m (float[2] x) => (float[2] y) { y = Identity(x) }'
        ),
        tmp_path / "m.onnx",
    )
    code = (
        "import sys, infconv; infconv.save(infconv.optimize('m.onnx'), 'o.onnx');"
        "unwanted = {'infconv.spec', 'infconv.result', 'infconv.verify', 'rich', 'typer', 'sympy'};"
        "print(sorted(unwanted & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "o.onnx").is_file()


def test_an_unknown_level_has_a_suggestion() -> None:
    with pytest.raises(infconv.UsageError, match="Unknown level 'extend'.*\n.*'extended'"):
        infconv.optimize(onnx.ModelProto(), level="extend")  # pyright: ignore[reportArgumentType]


def test_garbage_is_looked_for_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), rare_collections():
        assert gc.get_threshold()[0] > before[0]
        raise KeyError
    assert gc.get_threshold() == before
