"""The worked example of a frontend plugin: found through its entry point, run as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin-frontend"


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not installed: pip install -e {EXAMPLE.name}"
    )


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the example is installed: its package on the path, its entry points beside it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"infconv_more_frontends-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["infconv.frontends"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[infconv.frontends]", *lines]))
    path = os.pathsep.join([str(info.parent), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


@pytest.fixture
def run(installed: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """Run a command of Python in tmp_path with the example installed."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=300, check=False
        )

    return call


def test_the_frontends_are_listed_though_their_libraries_may_be_missing(run: Callable[..., Any]):
    listed = run("-m", "infconv.cli", "frontends", "--json")
    assert listed.returncode == 0, listed.stderr
    assert {'"jax"', '"sklearn"'} <= set(listed.stdout.replace(",", " ").split()), listed.stdout


def test_a_jax_module_is_known_by_its_imports_and_leaves_torch_its_own(run: Callable[..., Any], tmp_path: Path):
    (tmp_path / "net.py").write_text("import jax\ndef f(x): return x\n")
    (tmp_path / "other.py").write_text("import torch\nimport jax\ndef f(x): return x\n")
    code = "from infconv.convert import recognise; print(recognise('net:f'), recognise('other:f'))"
    assert run("-c", code).stdout.split("\n")[0] == "('jax', 'function') ('torch', 'factory')"


@needs("sklearn", "skl2onnx", "joblib")
def test_a_forest_becomes_a_verified_artifact(run: Callable[..., Any], tmp_path: Path):
    assert run(EXAMPLE / "train.py").returncode == 0
    refused = run("-m", "infconv.cli", "convert", "iris.joblib")
    assert (refused.returncode, "--trust-pickle" in refused.stderr) == (2, True)
    done = run("-m", "infconv.cli", "convert", "iris.joblib", "--trust-pickle", "-o", "iris.onnx", "--json")
    assert done.returncode == 0, done.stderr
    artifact = json.loads(done.stdout)["artifacts"][0]
    assert artifact["verification"]["passed"]
    assert artifact["verification"]["reference"].startswith("scikit-learn ")
    graph = onnx.load(tmp_path / "iris.onnx").graph
    assert [o.name for o in graph.output] == ["label", "probabilities"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@needs("sklearn", "skl2onnx", "joblib")
@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        ("Ridge().fit(x, x[:, 0])", 0, ""),
        ("StandardScaler().fit(x)", 0, ""),
        ("KMeans(3, n_init=1, random_state=0).fit(x)", 0, ""),
        ("Ridge()", 3, "was not fitted"),
    ],
)
def test_regressors_transformers_and_clusters(
    run: Callable[..., Any], tmp_path: Path, make: str, code: int, words: str
):
    lines = [
        "import joblib, numpy as np",
        "from sklearn.linear_model import Ridge",
        "from sklearn.preprocessing import StandardScaler",
        "from sklearn.cluster import KMeans",
        "x = np.random.default_rng(0).normal(size=(40, 4)).astype('float32')",
        f"joblib.dump({make}, 'model.joblib')",
    ]
    made = run("-c", "\n".join(lines))
    assert made.returncode == 0, made.stderr
    done = run("-m", "infconv.cli", "convert", "model.joblib", "--trust-pickle", "-o", "model.onnx")
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


@needs("jax", "jax2onnx")
def test_a_jax_function_becomes_a_verified_artifact(run: Callable[..., Any], tmp_path: Path):
    (tmp_path / "models.py").write_text((EXAMPLE / "models.py").read_text())
    dims = "x:batch,length,32"
    done = run("-m", "infconv.cli", "convert", "models:attention", "--input", dims, "-o", "attention.onnx", "--json")
    assert done.returncode == 0, done.stderr
    artifact = json.loads(done.stdout)["artifacts"][0]
    assert artifact["verification"]["reference"].startswith("jax ")
    assert len(artifact["verification"]["samples"]) == 3
    value = onnx.load(tmp_path / "attention.onnx").graph.input[0]
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["batch", "length", 32]


@needs("jax", "jax2onnx")
def test_what_a_jax_function_lacks_is_told(run: Callable[..., Any], tmp_path: Path):
    (tmp_path / "models.py").write_text("import jax\ndef f(x): return x\n")
    for arguments, code, words in [
        (["models:f"], 2, "its inputs have to be told"),
        (["models:g", "--input", "x:2"], 3, "cannot be imported"),
        (["models:f", "--input", "y:2"], 2, "does not take these inputs"),
    ]:
        done = run("-m", "infconv.cli", "convert", *arguments, "-o", "out.onnx")
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
