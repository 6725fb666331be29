"""What every test may use: small models on disk, and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("INFCONV_CACHE", "off")  # what a test runs is run, unless the test is about the cache


def make_mlp(path: Path, width: int = 8, scale: float = 1.0) -> Path:
    """Write `y = relu(x w + b) w2` with a dynamic batch, opset 17."""
    rng = np.random.default_rng(0)
    weights = {"w": (width, 16), "b": (16,), "w2": (16, 4)}
    tensors = [numpy_helper.from_array((rng.normal(size=s) * scale).astype("f4"), n) for n, s in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["hb"]),
        helper.make_node("Relu", ["hb"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """A small ONNX file."""
    return make_mlp(tmp_path / "mlp.onnx")


class Outcome:
    """What a command printed and returned."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def infconv(tmp_path: Path) -> Any:
    """Run `infconv ARGS` in tmp_path and return its Outcome."""

    def run(*arguments: object) -> Outcome:
        command = [sys.executable, "-m", "infconv.cli", *map(str, arguments)]
        return Outcome(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False))

    return run
