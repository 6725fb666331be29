"""INT8 beside its peers: accuracy, signal-to-noise ratio, latency, time and peak memory on the same files, in one run.

    python benchmarks/quantize.py [--models FOLDER] [--only NAME ...] [--tools NAME ...] [--samples 320]

Trains the digits networks (benchmarks/digits.py) when FOLDER has none; needs scikit-learn and, for its rows, nncf.
Every tool runs as a process of its own with one thread; memory is its peak resident set. Files are judged on the 597
held-out images in ONNX Runtime; latencies are 20th percentiles of interleaved runs on batches of 8. Writes
benchmarks/results/quantize.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PRELUDE = """
import sys, numpy as np
source, output, data, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def batches():
    rows = np.load(data)['image'][:count]
    for start in range(0, len(rows), 8):
        yield {'image': rows[start:start + 8]}
"""
STATIC = """
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
class Reader(CalibrationDataReader):
    def __init__(self): self.rows = batches()
    def get_next(self): return next(self.rows, None)
quant_pre_process(source, output + '.pre', skip_symbolic_shape=True)
quantize_static(output + '.pre', output, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.{method})
"""
TOOLS = {
    "infconv": "import infconv; infconv.convert(source, target='ort', int8=True, output=output,"
    " calibration={'path': data, 'samples': count}, verify='off')",
    "ort-minmax": STATIC.replace("{method}", "MinMax"),
    "ort-entropy": STATIC.replace("{method}", "Entropy"),
    "ort-percentile": STATIC.replace("{method}", "Percentile"),
    "infconv-dynamic": "import infconv; infconv.convert(source, target='ort', int8=True, output=output, verify='off')",
    "ort-dynamic": "from onnxruntime.quantization import quantize_dynamic; quantize_dynamic(source, output)",
    "nncf": "import nncf, onnx; onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(list(batches())),"
    " subset_size=count), output)",
}


def run_tool(tool: str, source: Path, output: Path, data: Path, samples: int) -> dict[str, Any]:
    """Run one tool in a process; return CPU and wall seconds and peak MB, or the error."""
    start = time.perf_counter()
    command = [sys.executable, "-c", PRELUDE + TOOLS[tool], str(source), str(output), str(data), str(samples)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    words = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode or not output.exists():
        return {"error": (words.strip().splitlines() or [f"exit {process.returncode}"])[-1][:160]}
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}


def open_session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def judge(sessions: dict[str, Any], images: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Return tool -> accuracy and SQNR (dB) against the float model, `float` itself among the sessions."""
    outputs = {
        name: np.concatenate([s.run(None, {"image": images[i : i + 64]})[0] for i in range(0, len(images), 64)])
        for name, s in sessions.items()
    }
    real = outputs["float"].astype(np.float64)
    return {
        name: {
            "accuracy": float((found.argmax(1) == labels).mean()),
            "sqnr": float(10 * np.log10((real**2).sum() / max(((found - real) ** 2).sum(), 1e-30))),
        }
        for name, found in outputs.items()
    }


def latencies(sessions: dict[str, Any], batch: np.ndarray, rounds: int = 40) -> dict[str, float]:
    """Return tool -> milliseconds (20th percentile: others use the machine too), the tools in turn."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"image": batch})
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.percentile(values, 20)) for name, values in times.items()}


def bench(source: Path, data: Path, tools: list[str], samples: int, work: Path) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    files = {"float": source}
    for tool in tools:
        output = work / f"{source.stem}.{tool}.onnx"
        rows[tool] = run_tool(tool, source, output, work / "calibration.npz", samples)
        if "error" not in rows[tool]:
            files[tool] = output
    # In a process of its own: what this one held would count as the peak of the tools that it starts.
    command = [sys.executable, __file__, "--judge", json.dumps({k: str(v) for k, v in files.items()}), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, found in json.loads(done.stdout).items():
        rows.setdefault(name, {}).update(found)
    return rows


def judge_files(files: dict[str, str], data: str) -> dict[str, dict[str, float]]:
    """Return tool -> accuracy, SQNR, milliseconds and kB of its file."""
    with np.load(data) as arrays:
        images, labels = arrays["test"], arrays["labels"]
    sessions = {name: open_session(Path(path)) for name, path in files.items()}
    found, ms = judge(sessions, images, labels), latencies(sessions, images[:8])
    return {n: {**found[n], "ms": ms[n], "kb": Path(path).stat().st_size / 1000} for n, path in files.items()}


def table(name: str, rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"\n### {name}\n",
        "| tool | accuracy | SQNR dB | ms | s (CPU) | peak MB | kB |",
        "|---|---|---|---|---|---|---|",
    ]
    for tool, row in rows.items():
        if "error" in row:
            lines.append(f"| {tool} | {row['error']} |")
            continue
        cost = f"{row['wall']:.1f} ({row['cpu']:.1f}) | {row['mb']:.0f}" if "wall" in row else "- | -"
        sqnr = "-" if tool == "float" else f"{row['sqnr']:.1f}"
        lines.append(f"| {tool} | {row['accuracy']:.2%} | {sqnr} | {row['ms']:.2f} | {cost} | {row['kb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=HERE / "models" / "digits")
    parser.add_argument("--only", nargs="*", default=["resnet", "mobilenet", "vit"])
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.judge:
        print(json.dumps(judge_files(json.loads(given.judge[0]), given.judge[1])))
        return
    if not all((given.models / f"{name}.onnx").exists() for name in given.only):
        subprocess.run([sys.executable, str(HERE / "digits.py"), str(given.models)], check=True)
    data = given.models / "digits.npz"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="quantize-bench-") as folder:
        with np.load(data) as arrays:
            np.savez(Path(folder) / "calibration.npz", image=arrays["train"])
        for name in given.only:
            results[name] = bench(given.models / f"{name}.onnx", data, given.tools, given.samples, Path(folder))
            print(table(name, results[name]), flush=True)
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "quantize.json").write_text(json.dumps(results, indent=1))
    (given.results / "quantize.md").write_text("\n".join(table(name, rows) for name, rows in results.items()) + "\n")


if __name__ == "__main__":
    main()
