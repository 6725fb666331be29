"""The same pipelines on a Ray cluster of several nodes on this machine, one of which is lost on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infconv import on_ray
from infconv.errors import ResourceError, UsageError
from infconv.runs import execute_all
from infconv.spec import PipelineSpec
from tests.conftest import make_mlp

ray: Any = pytest.importorskip("ray", reason="ray is not installed: pip install 'infconv[ray]'")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that takes no tasks, and two nodes with a processor each."""
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    found.nodes = [found.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    yield found
    found.shutdown()


@pytest.fixture(autouse=True)
def address(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


def pipelines(folder: Path, count: int, **more: Any) -> list[PipelineSpec]:
    """Return `count` pipelines for two targets each; the second source is no model."""
    specs: list[PipelineSpec] = []
    for number in range(count):
        source = folder / f"m{number}.onnx"
        if number == 1:
            source.write_bytes(b"not a model")
        else:
            make_mlp(source, width=8 + number)
        outputs = {t: str(folder / "out" / f"m{number}.{t}.onnx") for t in ("onnx", "onnxruntime")}
        targets = [{"target": target, "output": output} for target, output in outputs.items()]
        data = {"source": {"path": str(source)}, "targets": targets, "cache": False, **more}
        specs.append(PipelineSpec.model_validate(data))
    return specs


def outcome(specs: list[PipelineSpec], folder: Path, on: str | None) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Run; return the artifacts' bytes and what is told, without seconds. The files are gone then."""
    document = execute_all(specs, on=on).as_json()
    for step in [document, *document["steps"], *(s for a in document["artifacts"] for s in a["steps"])]:
        step["seconds"] = 0
    files = {f.name: f.read_bytes() for f in sorted((folder / "out").glob("*.onnx"))}
    for file in (folder / "out").iterdir():
        file.unlink()
    return files, document


def test_the_outcome_is_that_of_this_machine(tmp_path: Path) -> None:
    specs = pipelines(tmp_path, 3)
    here, there = outcome(specs, tmp_path, None), outcome(specs, tmp_path, "ray")
    assert len(here[0]) == 4
    assert here[1]["exit_code"] == 3
    assert there == here


def test_targets_of_one_source_go_to_several_nodes(tmp_path: Path) -> None:
    spec = pipelines(tmp_path, 1)
    assert [len(task.spec.targets) for task in on_ray._tasks(spec, 2)] == [1, 1]
    assert [len(task.spec.targets) for task in on_ray._tasks(spec, 1)] == [2]
    assert outcome(spec, tmp_path, "ray") == outcome(spec, tmp_path, None)


def test_nodes_share_a_cache(tmp_path: Path) -> None:
    specs = pipelines(tmp_path, 3, cache=str(tmp_path / "cache"))
    assert [a.cached for a in execute_all(specs, on="ray").artifacts] == [False] * 4
    again = execute_all(specs, on="ray")
    assert [a.cached for a in again.artifacts] == [True] * 4
    assert again.notes == ["From the cache, with the verification of the same bytes: 4 of 4 artifacts."]


def test_a_node_that_is_lost_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    specs = pipelines(tmp_path, 8)
    expected = outcome(specs, tmp_path, None)
    lost = False

    class KillsANode:
        """Kills a node with what runs on it when the first artifacts are there."""

        def stage(self, name: str) -> None:
            nonlocal lost
            if not lost and name[0] in "234" and "tasks are done" in name:
                lost = True
                cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)

        def before(self, step: str) -> None: ...

        def after(self, result: Any) -> None: ...

    document = execute_all(specs, [KillsANode()], on="ray").as_json()
    assert lost
    assert document["exit_code"] == expected[1]["exit_code"]
    assert [a["path"] for a in document["artifacts"]] == [a["path"] for a in expected[1]["artifacts"]]
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.onnx")} == expected[0]
    left = {f.name for f in (tmp_path / "out").iterdir()} - {n + s for n in expected[0] for s in ("", ".infconv.json")}
    deadline = time.monotonic() + 10  # the processes of a lost node end when they notice
    while time.monotonic() < deadline and left - {".infconv-lock"}:
        left = {name for name in left if (tmp_path / "out" / name).exists()}
        time.sleep(0.2)
    assert not {name for name in left if not name.startswith(".infconv-")}


SLOW_DATA = """
import os, time
from pathlib import Path
import numpy as np

def batches():
    rng = np.random.default_rng(0)
    for number in range(16):
        (Path(__file__).parent / f"seen-{os.getpid()}-{number}").touch()
        time.sleep(SECONDS)
        yield {"x": rng.normal(size=(2, 8)).astype("f4")}
"""


def quantised(folder: Path, seconds: float) -> tuple[list[PipelineSpec], Path]:
    """Return a pipeline to INT8 that is short of accuracy, with data that takes its time, and its artifact."""
    (folder / "slow_data.py").write_text(SLOW_DATA.replace("SECONDS", str(seconds)))
    output = folder / "out" / "q.onnx"
    steps = ["basic", {"quantize-static": {"never_slower": False, "min_sqnr": 45.0}}]
    targets = [{"target": "onnxruntime", "precision": "int8", "output": str(output)}]
    more: dict[str, Any] = {"steps": steps, "targets": targets, "calibration": {"path": "slow_data:batches"}}
    return pipelines(folder, 1, **more), output


def readers(folder: Path) -> set[str]:
    """Return the processes that read calibration data."""
    return {file.name.split("-")[1] for file in folder.glob("seen-*")}


def test_calibration_and_search_are_divided_and_survive_a_lost_node(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    specs, output = quantised(tmp_path, 0.0)
    assert execute_all(specs).error is None
    expected = output.read_bytes()
    output.unlink()
    node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    specs, output = quantised(tmp_path, 0.2)
    for seen in tmp_path.glob("seen-*"):
        seen.unlink()

    lost: list[int] = []

    def lose() -> None:
        deadline = time.monotonic() + 120
        while len(readers(tmp_path)) < 4 and time.monotonic() < deadline:  # its own look, and a shard on each node
            time.sleep(0.05)
        lost.append(len(readers(tmp_path)))
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=lose)
    killer.start()
    result = execute_all(specs, on="ray")
    killer.join()
    assert lost[0] >= 4
    assert result.error is None, result.error
    assert output.read_bytes() == expected
    assert [artifact.path for artifact in result.artifacts] == [str(output)]


def test_sources_and_outputs_at_urls_need_no_shared_disk(tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    place = f"dir://out/o.onnx::file://{tmp_path}"
    data = {"source": {"path": f"dir://m.onnx::file://{tmp_path}"}, "targets": [{"target": "onnx", "output": place}]}
    result = execute_all([PipelineSpec.model_validate(data | {"cache": False})], on="ray")
    assert [artifact.path for artifact in result.artifacts] == [place]
    assert (tmp_path / "out" / "o.onnx").is_file()


def test_the_memory_of_this_process_is_no_place_for_a_cluster(tmp_path: Path) -> None:
    targets = [{"target": "onnx", "output": "memory://o.onnx"}]
    with pytest.raises(UsageError, match="memory of a process that ends"):
        execute_all(pipelines(tmp_path, 1, targets=targets), on="ray")


def test_a_baseline_is_made_checked_and_replaced(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    specs = pipelines(tmp_path, 1, gates={"baseline": str(baseline), "max_regression": 0.05})
    assert execute_all(specs, on="ray").exit_code == 0
    before = json.loads(baseline.read_text())["artifacts"]
    make_mlp(tmp_path / "m0.onnx", width=40)
    assert execute_all(specs, on="ray").exit_code == 6
    assert json.loads(baseline.read_text())["artifacts"] == before
    result = execute_all(specs, on="ray", update_baseline=True)
    assert (result.exit_code, result.gates) == (0, [])
    after = json.loads(baseline.read_text())["artifacts"]
    assert list(after) == list(before)
    assert after != before


def test_time_is_not_measured_on_a_busy_node(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="latency_ms"):
        execute_all(pipelines(tmp_path, 1, gates={"latency_ms": {"max": 10}}), on="ray")


@pytest.mark.parametrize("address", ["slurm", "http://x"])
def test_other_clusters_are_unknown(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="is no cluster"):
        execute_all(pipelines(tmp_path, 1), on=address)


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(
        ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("Could not find a running Ray instance"))
    )
    with pytest.raises(ResourceError, match="cannot be reached"):
        execute_all(pipelines(tmp_path, 1), on="ray")
