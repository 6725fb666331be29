"""Calibration and the ranking of layers, divided among processes: to the bit what one process finds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infconv.errors import UsageError
from infconv.model import load
from infconv.quantize._collect import Wanted, collect
from infconv.quantize._placement import PLACEMENTS, place
from infconv.quantize._ranking import Ranking, rank
from infconv.quantize._schemes import Grid, quantise_weight
from infconv.quantize._search import wanted_tensors
from infconv.quantize._simulate import Setting, Simulator, run_float
from infconv.quantize._sketch import SEGMENTS, Record
from infconv.runs import execute_all
from infconv.spec import PipelineSpec
from infconv.workers import Forked, forked
from tests.conftest import make_mlp

SIZES = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"x": (rng.normal(size=(size, 8)) * 10.0 ** rng.integers(-3, 3)).astype("f4")} for size in SIZES]


def bits(records: dict[str, Record]) -> dict[str, Any]:
    """Return everything that the records hold, as bytes."""
    return {
        name: [
            *(getattr(record.sketch, field) for field in ("count", "odd", "low", "high", "exponent")),
            np.float64(record.sketch.total).tobytes(),
            np.float64(record.sketch.variance).tobytes(),
            record.sketch.bins.tobytes(),
            *([record.channels.mean.tobytes(), record.channels.absmax.tobytes()] if record.channels else []),
        ]
        for name, record in records.items()
    }


@pytest.mark.parametrize("count", [2, 3, SEGMENTS, SEGMENTS + 5])
def test_shards_make_the_records_of_one_process(mlp: Path, count: int) -> None:
    model, wanted = load(mlp), [Wanted("x", -1), Wanted("hb", -1), Wanted("y")]
    alone = bits(collect(model, wanted, batches))
    assert bits(collect(model, wanted, batches, workers=Forked(count))) == alone
    assert bits(collect(model, wanted, batches, group_bytes=64, workers=Forked(count))).keys() == alone.keys()


def test_each_batch_is_run_by_one_worker(mlp: Path) -> None:
    class Counting(Forked):
        found: list[int]

        def spread(self, work: Callable[[Path, int], Any], parts: int, folder: Path) -> list[Any]:
            shards = super().spread(work, parts, folder)
            self.found = [shard["x"].sketch.count for shard in shards]
            return shards

    workers = Counting(2)
    collect(load(mlp), [Wanted("x")], batches, workers=workers)
    assert workers.found == [8 * sum(SIZES[::2]), 8 * sum(SIZES[1::2])]


def test_data_without_samples_is_refused_by_any_number_of_workers(mlp: Path) -> None:
    with pytest.raises(UsageError, match="no samples"):
        collect(load(mlp), [Wanted("x")], list, workers=Forked(2))


def test_an_error_in_one_worker_is_raised() -> None:
    def work(folder: Path, number: int) -> int:
        if number == 1:
            raise UsageError("no")
        return os.getpid()

    with pytest.raises(UsageError, match="no"):
        Forked(2).spread(work, 3, Path())
    found = Forked(2).spread(lambda folder, number: os.getpid(), 2, Path())
    assert os.getpid() not in found


def test_nobody_helps_unless_there_are_several() -> None:
    assert forked(1) is None
    assert forked(4) == Forked(4)


def test_layers_are_ranked_alike_by_several(mlp: Path) -> None:
    model, placement = load(mlp), PLACEMENTS["onnxruntime"]
    placed, data = place(model, placement, frozenset()), batches()[:3]
    grid = Grid(placement.activation, placement.symmetric)
    weights = {layer.name: quantise_weight(np.asarray(layer.weight.const_value), layer.axis) for layer in placed.layers}
    from infconv.quantize._schemes import candidates

    records = collect(model, wanted_tensors(placed), lambda: data)
    params = {g: candidates(records[v[0].name].sketch, grid)["absmax"] for g, v in placed.groups().items()}
    names = [layer.name for layer in placed.layers]
    setting = Setting(params, frozenset(names), frozenset(v.name or "" for v in placed.tensors))
    ranking = Ranking(placement, frozenset(), weights, grid, data, run_float(model, data), setting, names)
    simulator: Simulator = ranking.simulator(model)
    alone = rank(ranking, model, simulator, None)
    assert len(alone) == 2
    assert len(set(alone.values())) == 2
    assert rank(ranking, model, simulator, Forked(2)) == alone


def test_jobs_change_nothing_in_an_int8_artifact(tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(40, 8)).astype("f4"))
    found: list[bytes] = []
    for jobs in (None, 3):
        data = {
            "source": {"path": str(tmp_path / "m.onnx")},
            "calibration": {"path": str(tmp_path / "c.npz")},
            "steps": ["basic", {"quantize-static": {"never_slower": False, "min_sqnr": 45.0}}],
            "targets": [{"target": "onnxruntime", "precision": "int8", "output": str(tmp_path / "o" / "q.onnx")}],
            "jobs": jobs,
        }
        result = execute_all([PipelineSpec.model_validate(data)])
        assert result.error is None, result.error
        found.append((tmp_path / "o" / "q.onnx").read_bytes())
    assert found[0] == found[1]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(found[0]).graph.node}
