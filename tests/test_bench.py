"""`infconv bench`: models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from infconv.bench import Settings, bench, ratio_interval
from infconv.errors import SourceError, UnsupportedError, UsageError

SMALL = "m (float[batch, 64] x) => (float[batch, 64] y) { y = Relu(x) }"
LARGE = """m (float[batch, 64] x) => (float[batch, 64] y) {
    w = ConstantOfShape <value = float[1] {0.1}> (s)
    a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, w) y = Relu(c) }"""


def write(path: Path, text: str) -> str:
    text = text.replace("=> (float[batch, 64] y) {", "=> (float[batch, 64] y) <int64[2] s = {64, 64}> {")
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text)
    onnx.save(model, path)
    return str(path)


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [write(tmp_path / "small.onnx", SMALL), write(tmp_path / "large.onnx", LARGE)]


def test_each_model_gets_a_row(models: list[str]) -> None:
    rows = bench(models, settings=Settings(runs=5, warmup=1, threads=1))
    assert [row.path for row in rows] == models
    assert rows[0].ratio == rows[0].ratio_low == rows[0].ratio_high == 1
    assert all(row.latency_ms_p10 <= row.latency_ms <= row.latency_ms_p90 for row in rows)
    assert all(row.memory_mb > 0 and row.load_seconds > 0 for row in rows)
    assert rows[0].throughput == pytest.approx(2e3 / rows[0].latency_ms)  # the usual batch is 2


def test_sizes_and_inputs_are_the_users(models: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((7, 64), np.float32))
    (row,) = bench(models[:1], inputs=str(tmp_path / "x.npz"), settings=Settings(runs=3))
    assert row.throughput == pytest.approx(7e3 / row.latency_ms)


def test_an_ir_runs_beside_onnx(models: list[str], infconv, tmp_path: Path) -> None:
    assert infconv("convert", models[0], "-t", "openvino", "-o", str(tmp_path / "small.xml")).code == 0
    done = infconv("bench", models[0], str(tmp_path / "small.xml"), "--runs", "3", "--dim", "batch=3", "--json")
    rows = json.loads(done.out)["models"]
    assert [row["runtime"].split()[0] for row in rows] == ["onnxruntime", "openvino"]
    assert rows[1]["ratio_low"] <= rows[1]["ratio"] <= rows[1]["ratio_high"]


def test_the_table_names_every_model(models: list[str], infconv) -> None:
    done = infconv("bench", *models, "--runs", "3")
    assert done.code == 0
    assert "small.onnx" in done.out
    assert "large.onnx" in done.out


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"")
    (tmp_path / "x.txt").write_bytes(b"")
    (tmp_path / "x.xml").write_bytes(b"")
    with pytest.raises(SourceError, match="does not exist"):
        bench([str(tmp_path / "none.onnx")])
    with pytest.raises(SourceError, match="is not a TensorRT engine"):
        bench([str(tmp_path / "x.engine")])
    with pytest.raises(UsageError, match="is no ONNX file, OpenVINO IR or TensorRT engine"):
        bench([str(tmp_path / "x.txt")])
    with pytest.raises(UsageError, match="Inputs can only be made from an ONNX file"):
        bench([str(tmp_path / "x.xml")])


def test_models_of_other_inputs_are_refused(models: list[str], tmp_path: Path) -> None:
    other = write(tmp_path / "other.onnx", "m (float[batch, 8] q) => (float[batch, 8] z) { z = Relu(q) }")
    with pytest.raises(UnsupportedError, match="cannot run"):
        bench([models[0], other])


def test_the_interval_of_a_ratio_holds_it_despite_drift() -> None:
    draw = np.random.default_rng(1)
    base = np.linspace(1, 3, 200) * draw.uniform(0.95, 1.05, 200)  # the machine slows down threefold
    ratio, low, high = ratio_interval(base * 0.8 * draw.uniform(0.95, 1.05, 200), base)
    assert low < 0.8 < high
    assert high - low < 0.05
    assert ratio == pytest.approx(0.8, abs=0.02)
