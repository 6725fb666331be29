"""What `infconv convert` costs beside the bare exporter calls: start-up, time and peak memory, in one command.

    python benchmarks/spine.py            # all figures, as a table and as benchmarks/results/spine.json

Times are CPU seconds (user + system) of whole processes and their children, the median of three runs, the two sides of
a ratio in turn. Peak memory is the largest resident set of the process named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, a checkout gets it once
HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "01-resnet-and-bert"

BARE = """
import sys, torch, models
torch.set_num_threads(2)
model = getattr(models, sys.argv[1])()
if sys.argv[1] == "resnet50":
    example, shapes = (torch.randn(2, 3, 224, 224),), ({0: "batch"},)
else:
    ids = torch.ones(2, 64, dtype=torch.int64)
    example, shapes = (ids, ids), ({0: "batch", 1: "sequence"},) * 2
torch.onnx.export(model, example, sys.argv[2], dynamo=True, dynamic_shapes=shapes, verbose=False)
"""

INPUTS = {
    "resnet50": ["--input", "pixel_values:batch,3,224,224", "--dim", "batch=1,2,8"],
    "bert_base": [
        *("--input", "input_ids:batch,sequence:int64", "--input", "attention_mask:batch,sequence:int64"),
        *("--dim", "batch=1,2,8", "--dim", "sequence=8,64,512"),
    ],
}


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds of `command` and its children."""
    before = os.times()
    subprocess.run(command, cwd=EXAMPLE, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def median(commands: list[list[str]], runs: int = 3) -> list[float]:
    """Return the median CPU seconds of each command, run in turn."""
    times = [[cpu_seconds(command) for command in commands] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peaks(command: list[str]) -> dict[str, float]:
    """Return the peak resident megabytes of the main process and of the largest worker."""
    process = psutil.Popen(command, cwd=EXAMPLE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, float] = {"main": 0.0, "worker": 0.0, "other": 0.0}

    def watch() -> None:
        while process.poll() is None:
            try:
                near = [process, *process.children()]  # the command runs in a supervised child
                for one in [process, *process.children(recursive=True)]:
                    kind = "main" if one in near else "other"  # "other": runs the artifact to verify it
                    kind = "worker" if any("_worker" in word for word in one.cmdline()) else kind
                    found[kind] = max(found[kind], one.memory_info().rss / 1e6)
            except psutil.Error:
                continue
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    process.wait()
    thread.join()
    return found


def small_model(folder: Path) -> Path:
    """Write a one-node ONNX file."""
    import onnx

    text = "m (float[batch, 8] x) => (float[batch, 8] y) { y = Relu(x) }"
    path = folder / "small.onnx"
    onnx.save(onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="start-up only")
    parser.add_argument("--runs", type=int, default=3, help="runs of each conversion")
    arguments = parser.parse_args()
    infconv = [sys.executable, "-m", "infconv.cli"]
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cpu_seconds([*infconv, "convert", str(small_model(folder)), "-o", str(folder / "s.onnx")])  # for the bytecode
        (help_cpu,) = median([[*infconv, "--help"]], 5)
        rows.append(("infconv --help, CPU s", f"{help_cpu:.2f}", "<= 0.15"))
        (small_cpu,) = median([[*infconv, "convert", str(small_model(folder)), "-o", str(folder / "s.onnx")]], 5)
        rows.append(("infconv convert small.onnx, CPU s", f"{small_cpu:.2f}", "<= 1.0"))
        show(rows)
        for model in () if arguments.quick else INPUTS:
            measured = compare_with_bare(infconv, model, folder, arguments.runs)
            show(measured)
            rows += measured
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "spine.json").write_text(
        json.dumps([dict(zip(("what", "figure", "goal"), r, strict=True)) for r in rows])
    )


def show(rows: list[tuple[str, str, str]]) -> None:
    for what, figure, goal in rows:
        print(f"{what:<58} {figure:>10}   {goal}", flush=True)


def compare_with_bare(infconv: list[str], model: str, folder: Path, runs: int) -> list[tuple[str, str, str]]:
    """Return the overhead over torch.onnx.export and the peaks, for one model."""
    ours = [
        *infconv,
        "convert",
        f"models:{model}",
        *INPUTS[model],
        "-o",
        str(folder / f"{model}.onnx"),
        "--verify",
        "off",
    ]
    verified = [word for word in ours if word not in ("--verify", "off")]
    bare = [sys.executable, "-c", BARE, model, str(folder / "bare.onnx")]
    ours_cpu, verified_cpu, bare_cpu = median([ours, verified, bare], runs)
    size = (folder / f"{model}.onnx").stat().st_size / 1e6
    peak = peaks(verified)
    return [
        (f"{model}: convert / torch.onnx.export, CPU, not verified", f"{ours_cpu / bare_cpu:.2f}", "<= 1.15"),
        (f"{model}: convert / torch.onnx.export, CPU, verified", f"{verified_cpu / bare_cpu:.2f}", "-"),
        (f"{model}: model, MB", f"{size:.0f}", "-"),
        (f"{model}: peak of main processes, MB", f"{peak['main']:.0f}", f"<= {1.5 * size + 250:.0f}"),
        (f"{model}: peak of torch worker, MB", f"{peak['worker']:.0f}", f"<= {4 * size:.0f}"),
    ]


if __name__ == "__main__":
    main()
