"""The fewest layers stay float with which the user's own metric stays within its budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from onnx import numpy_helper

from infconv.errors import UsageError
from infconv.metrics import Model
from infconv.model import save
from infconv.passes import Quality
from infconv.quantize._quality import QualitySearch
from infconv.quantize.quantize_static import QuantizeStatic
from tests.quantize.nets import Net, context, run, samples

HIDDEN = "matmul1_out"
"""The layer that is planted: its input has one value that is thousands of times as large as those that count."""


def spoilt() -> ir.Model:
    """Four products, the second of which cannot be quantised: what it computes lies below one step of its input."""
    net = Net(17)
    first = net.constant(8, 8, scale=0.3)
    columns = np.full(8, 1.0, "f4")
    columns[0] = 20_000.0
    weight = numpy_helper.to_array(net.tensors[0]) * columns
    net.tensors[0] = numpy_helper.from_array(weight.astype("f4"), first)
    second = net.constant(8, 8, scale=0.5)
    rows = numpy_helper.to_array(net.tensors[1]).copy()
    rows[0] = 0.0
    net.tensors[1] = numpy_helper.from_array(rows, second)
    hidden = net.add("MatMul", net.add("MatMul", "x", first), second)
    for _ in range(2):
        hidden = net.add("MatMul", net.add("Tanh", hidden), net.constant(8, 8, scale=0.5))
    return net.model({"x": ["n", 8]}, "y", ["n", 8])


DATA = samples(spoilt(), 64, seed=3)
LABELS = run(spoilt(), DATA).argmax(1)


def accuracy(model: Model) -> float:
    """Return the share of samples whose largest output is where it is in float."""
    return float((model({"x": DATA})["y"].argmax(1) == LABELS).mean())


def quality(max_drop: float) -> Quality:
    return Quality("my_eval:accuracy", accuracy, 1.0, max_drop)


def test_the_layer_that_spoils_the_metric_stays_float_and_no_other() -> None:
    told: list[str] = []
    model = spoilt()
    ctx = context(model, "openvino", quality=quality(0.1), progress=told.append)
    QuantizeStatic(never_slower=False, min_sqnr=-99).run(model, ctx)
    plan = yaml.safe_load(ctx.documents["precision.yaml"])
    types = {entry["node"]: entry["type"] for entry in plan["nodes"]}
    assert [name for name, kind in types.items() if kind == "float32"] == ["matmul1"]
    assert accuracy(lambda inputs: {"y": run(model, inputs["x"])}) >= 0.9
    assert plan["facts"]["metric_drop"] <= 0.1
    assert any(
        "my_eval:accuracy is 1 in float and" in note and "1 sensitive layer stays float" in note for note in ctx.notes
    )
    assert any("sensitive layers in float: 1" in text for text in told)


def test_nothing_is_searched_when_the_first_result_meets_the_budget() -> None:
    model = spoilt()
    ctx = context(model, "openvino", quality=quality(1.0))
    QuantizeStatic(never_slower=False, min_sqnr=-99).run(model, ctx)
    plan = yaml.safe_load(ctx.documents["precision.yaml"])
    assert plan["facts"]["metric_trials"] == 1
    assert {entry["type"] for entry in plan["nodes"]} == {"int8"}


class Costs:
    """A metric that falls by what each quantised layer costs."""

    def __init__(self, costs: Mapping[str, float], max_drop: float, seconds: float = 60) -> None:
        self.costs, self.calls = costs, 0
        self._search = QualitySearch(Quality("costs", self._measure, 1.0, max_drop), self._quantise, seconds)
        self._floats: frozenset[str] = frozenset()

    def _quantise(self, floats: frozenset[str]) -> ir.Model:
        self._floats = floats
        return spoilt()

    def _measure(self, _model: Model) -> float:
        self.calls += 1
        return 1.0 - sum(cost for name, cost in self.costs.items() if name not in self._floats)

    def kept(self, sensitivity: Mapping[str, float]) -> set[str]:
        return set(self._search.run(lambda: sensitivity).floats)


NAMES = [f"layer{number:02}" for number in range(16)]


def test_the_fewest_of_many_are_found_in_few_trials() -> None:
    costs = dict.fromkeys(NAMES, 0.0) | {"layer03": 0.2, "layer11": 0.3}
    sensitivity = {name: 40.0 + number for number, name in enumerate(NAMES)} | {"layer03": 5.0, "layer11": 20.0}
    found = Costs(costs, 0.01)
    assert found.kept(sensitivity) == {"layer03", "layer11"}
    assert found.calls <= 8


def test_a_wrong_ranking_costs_trials_but_no_layers() -> None:
    costs = dict.fromkeys(NAMES, 0.0) | {"layer09": 0.5}
    found = Costs(costs, 0.01)
    assert found.kept({name: float(number) for number, name in enumerate(NAMES)}) == {"layer09"}
    assert found.calls <= 16


def test_when_the_time_is_up_what_is_kept_surely_is_enough() -> None:
    costs = dict.fromkeys(NAMES, 0.0) | {"layer09": 0.5}
    found = Costs(costs, 0.01, seconds=0)
    assert "layer09" in found.kept({name: float(number) for number, name in enumerate(NAMES)})
    assert found.calls == 1


def test_from_a_pipeline(infconv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(spoilt(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=DATA)
    np.savez(tmp_path / "labels.npz", labels=LABELS)
    (tmp_path / "my_eval.py").write_text(
        "import numpy as np\ndata, labels = np.load('calib.npz')['x'], np.load('labels.npz')['labels']\n"
        "def accuracy(model):\n    return float((model({'x': data})['y'].argmax(1) == labels).mean())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pipeline = {
        "source": {"path": "net.onnx"},
        "calibration": {"path": "calib.npz"},
        "steps": ["openvino", {"quantize-static": {"never_slower": False}}, "remove-unused"],
        "targets": [{"target": "openvino", "precision": "int8", "output": "net.xml"}],
        "verify": {"metric": "my_eval:accuracy", "max_drop": 0.1, "min_sqnr": 0.01},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(pipeline))
    done = infconv("run", "p.yaml", "--json")
    assert done.code == 0, done.json["error"]
    (artifact,) = done.json["artifacts"]
    assert artifact["compute"]["int8"] == 3
    assert artifact["verification"]["metric"]["drop"] <= 0.1
