"""What many conversions cost at once: a sweep of small ones with one and with two workers, and what a cache saves.

    python benchmarks/scale.py                  # 200 small conversions in processes, and on Ray where it is installed
    python benchmarks/scale.py --count 40       # fewer
    python benchmarks/scale.py --model bert.onnx    # also: three targets of this model, without and with a cache

Efficiency is the time of one worker over twice the time of two, after each worker has converted one model (its
libraries are loaded then). The runs with one and with two workers take turns, so that other work on the machine falls
on both, and the median of their ratios counts. Results go to benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent


def make_model(path: Path, seed: int, layers: int = 12, width: int = 64) -> None:
    """Write a stack of `layers` products, biases and activations, each with weights of its own."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for layer in range(layers):
        w, b = f"w{layer}", f"b{layer}"
        weights += [numpy_helper.from_array((rng.normal(size=(width, width)) / 8).astype("f4"), w)]
        weights += [numpy_helper.from_array(rng.normal(size=width).astype("f4"), b)]
        nodes += [
            helper.make_node("MatMul", [value, w], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", b], [f"a{layer}"]),
            helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"]),
        ]
        value = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def pipelines(folder: Path, count: int, jobs: int) -> list[Any]:
    """Return `count` pipelines of a small model each."""
    from infconv.spec import PipelineSpec

    specs: list[Any] = []
    for number in range(count):
        source = folder / f"m{number}.onnx"
        if not source.exists():
            make_model(source, number)
        target = {"target": "onnx", "output": str(folder / "out" / source.name)}
        data = {"source": {"path": str(source)}, "targets": [target], "cache": False, "jobs": jobs}
        specs.append(PipelineSpec.model_validate(data))
    return specs


class Clock:
    """Wall seconds, and CPU seconds of this process and all that it started, ended or not."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, _cpu() - self._cpu


def _cpu() -> float:
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def sweep(folder: Path, count: int, jobs: int) -> tuple[float, float]:
    """Return the wall and CPU seconds that the pipelines take."""
    from infconv.runs import execute_all

    specs = pipelines(folder, count, jobs)
    clock = Clock()
    result = execute_all(specs)
    taken = clock.read()
    assert result.error is None, result.error
    assert len(result.artifacts) == count
    return taken


def efficiency(run: Callable[[int], tuple[float, float]], rounds: int) -> dict[str, Any]:
    """Return wall and CPU seconds with one and with two workers, in turn, and the efficiency by either.

    By CPU time it is how much of the work with two workers is that of one: what an idle machine would show, less the
    time in which a worker has nothing to do.
    """
    pairs = [(run(1), run(2)) for _ in range(rounds)]
    return {
        "one": [one for one, _ in pairs],
        "two": [two for _, two in pairs],
        "efficiency": statistics.median(one[0] / (2 * two[0]) for one, two in pairs),
        "efficiency by cpu time": statistics.median(one[1] / two[1] for one, two in pairs),
    }


def on_ray(folder: Path, count: int, workers: int) -> tuple[float, float]:
    """Return wall and CPU seconds of a sweep on a Ray cluster of `workers` nodes of one processor, when it is warm."""
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, object_store_memory=memory)
        import ray

        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        return _warm_sweep(ray, folder, count, workers)
    finally:
        cluster.shutdown()


def _warm_sweep(ray: Any, folder: Path, count: int, workers: int) -> tuple[float, float]:
    """Run the tasks as infconv.on_ray does, after each worker has done one."""
    from infconv.observe import Observers
    from infconv.on_ray import run_tasks

    specs = pipelines(folder, count, 1)
    try:
        run_tasks(ray, specs[: 2 * workers], Observers())
        clock = Clock()
        outcomes = run_tasks(ray, specs, Observers())
        taken = clock.read()
        assert all(outcome.error is None for outcome in outcomes)
        return taken
    finally:
        ray.shutdown()


def cached(model: str, folder: Path) -> dict[str, Any]:
    """Return wall and CPU seconds of three targets of `model`: first, again, and again without the outputs."""
    targets = "".join(f"  - {{target: {t}, output: {folder}/out/}}\n" for t in ("onnx", "onnxruntime", "openvino"))
    pipeline = folder / "p.yaml"
    pipeline.write_text(f"source: {{path: {Path(model).resolve()}}}\ncache: {folder}/cache\ntargets:\n{targets}")
    command = [sys.executable, "-m", "infconv.cli", "run", str(pipeline), "--quiet"]
    rows: dict[str, Any] = {}
    for name in ("first", "again", "outputs deleted"):
        if name == "outputs deleted":
            for file in (folder / "out").iterdir():
                file.unlink()
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, check=True)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        rows[name] = {"seconds": time.perf_counter() - start, "cpu": cpu}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="conversions in a sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="a large model, for the figures of the cache")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"count": arguments.count, "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep(folder, 2, 1)
        run = partial(sweep, folder, arguments.count)
        found["processes"] = efficiency(run, arguments.rounds)
        print("processes", found["processes"], flush=True)
        if importlib.util.find_spec("ray") is not None:
            found["ray"] = efficiency(partial(on_ray, folder, arguments.count), arguments.rounds)
            print("ray", found["ray"], flush=True)
        if arguments.model:
            (folder / "large").mkdir()
            found["cache"] = cached(arguments.model, folder / "large")
            print("cache", found["cache"], flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "scale.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
