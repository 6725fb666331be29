"""What comes out of Keras models, and what their environment costs, in one command.

    python benchmarks/keras_models.py        # a table, and benchmarks/results/keras_models.json

Transposes left in three image models (1: NHWC at the input), their latency in ONNX Runtime, that of the Keras ResNet50
beside the PyTorch one (one thread, the models in turn, median of the runs), and the time and size of a new environment
with the wheels in the installer's cache. Needs the environment `tensorflow` and PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from frontends import CASES

from infconv import registry
from infconv.environments import choose_interpreter

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "01-resnet-and-bert"
INFCONV = [sys.executable, "-m", "infconv.cli"]


def convert(source: str, target: Path, *options: str, cwd: Path | None = None) -> Path:
    subprocess.run([*INFCONV, "convert", source, "-o", str(target), "-q", *options], cwd=cwd, check=True)
    return target


def latencies(models: dict[str, Path], runs: int) -> dict[str, float]:
    """Return the median milliseconds of each model at batch 1."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    times: dict[str, list[float]] = {name: [] for name in models}
    sessions: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, path in models.items():
        session = ort.InferenceSession(path, options)
        [given] = session.get_inputs()
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        sessions[name] = session, {given.name: np.random.default_rng(0).normal(size=shape).astype("f4")}
    for _ in range(runs):
        for name, (session, feed) in sessions.items():
            started = time.perf_counter()
            session.run(None, feed)
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(each[2:]) for name, each in times.items()}


def environment() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"INFCONV_CACHE_DIR": folder}
        started = time.perf_counter()
        made = subprocess.run(
            [*INFCONV, "env", "create", "tensorflow", "--json"], env=env, check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "size_mb": json.loads(made.stdout)["environment"]["size_mb"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--no-environment", action="store_true", help="leave the new environment out")
    options = parser.parse_args()
    case = CASES["tensorflow"]
    python = choose_interpreter("tensorflow", registry.get("frontend", "tensorflow").requires) or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Path] = {}
        for name in case.models:
            subprocess.run([python, "-c", case.make, folder, name], check=True, capture_output=True)
            models[name] = convert(f"{folder}/{name}.keras", Path(folder) / f"{name}.onnx")
        torch = ("--input", "pixel_values:batch,3,224,224")
        models["torch resnet50"] = convert("models:resnet50", Path(folder) / "torch.onnx", *torch, cwd=EXAMPLE)
        graphs = {name: onnx.load(path, load_external_data=False).graph for name, path in models.items()}
        milliseconds = latencies(models, options.runs)
    rows = {
        name: {
            "transposes": Counter(node.op_type for node in graph.node)["Transpose"],
            "nodes": len(graph.node),
            "ms": milliseconds[name],
        }
        for name, graph in graphs.items()
    }
    for name, row in rows.items():
        print(f"{name:16} {row['transposes']} transposes, {row['nodes']} nodes, {row['ms']:.1f} ms")
    figures: dict[str, Any] = {"models": rows}
    if not options.no_environment:
        figures["environment"] = environment()
        print("environment     {seconds:.0f} s, {size_mb:.0f} MB".format(**figures["environment"]))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "keras_models.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
