"""INT8 beside its peers: quality, signal-to-noise ratio, latency, time and peak memory on the same files, in one run.

    python benchmarks/quantize.py [--models FOLDER] [--only NAME ...] [--tools NAME ...] [--samples 64]
                                  [--nncf PYTHON] [--minilm FOLDER] [--zoo FOLDER] [--results FOLDER]

Makes the models (benchmarks/quantize_models.py) that FOLDER lacks; that takes long, once. Every tool runs as a process
of its own with one thread; memory is its peak resident set. Files are judged on inputs that no tool has seen; latency
is processor time on one thread, the 20th percentile of interleaved runs. `--only` runs a part, and what an earlier run
found for the other models stays in RESULTS/quantize.json and .md. NNCF runs in the interpreter `--nncf`.
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
import quantize_models

HERE = Path(__file__).resolve().parent
PRELUDE = """
import sys, numpy as np
source, output, data, count, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
def batches():
    with np.load(data) as arrays:
        rows = {name: arrays[name][:count] for name in arrays.files}
    for start in range(0, count - size + 1, size):
        yield {name: values[start:start + size] for name, values in rows.items()}
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
OURS = """
import infconv
infconv.convert(source, target='{target}', int8=True, output=output, calibration={'path': data, 'samples': count},
                verify='off')
"""
TOOLS = {
    "infconv": OURS.replace("{target}", "ort"),
    "ort-minmax": STATIC.replace("{method}", "MinMax"),
    "ort-entropy": STATIC.replace("{method}", "Entropy"),
    "ort-percentile": STATIC.replace("{method}", "Percentile"),
    "nncf": "import nncf, onnx; onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(list(batches())),"
    " subset_size=count), output)",
    "infconv-dynamic": "import infconv; infconv.convert(source, target='ort', int8=True, output=output, verify='off')",
    "ort-dynamic": "from onnxruntime.quantization import quantize_dynamic; quantize_dynamic(source, output)",
    "infconv-openvino": OURS.replace("{target}", "ov"),
    "nncf-openvino": "import nncf, openvino; openvino.save_model(nncf.quantize(openvino.convert_model(source),"
    " nncf.Dataset(list(batches())), subset_size=count), output, compress_to_fp16=False)",
}


# --- tools -----------------------------------------------------------------------------------------------------------


def run_tool(
    tool: str, source: Path, output: Path, data: Path, samples: int, size: int = 8, python: str = sys.executable
) -> dict[str, Any]:
    """Run one tool in a process; return CPU and wall seconds and peak MB, or the error."""
    start = time.perf_counter()
    arguments = [str(source), str(output), str(data), str(samples), str(size)]
    process = subprocess.Popen(
        [python, "-c", PRELUDE + TOOLS[tool], *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    words = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode or not output.exists():
        return {"error": (words.strip().splitlines() or [f"exit {process.returncode}"])[-1][:160]}
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}


def prepare(name: str, given: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Make the model where it is not there, and write its calibration rows to `data`."""
    source = quantize_models.make(name, given.models, given.minilm, given.zoo)
    with np.load(source.with_suffix(".npz")) as arrays:
        rows = {name.split("/")[1]: arrays[name] for name in arrays.files if name.startswith("calibration/")}
    np.savez(data, **rows)
    return {"source": str(source), "rows": len(next(iter(rows.values()))), "size": batch_of(source)}


def alone(*arguments: str) -> Any:
    """Return what this script says in a process of its own: what this one held would count as the peak of the tools."""
    command = [sys.executable, __file__, *sys.argv[1:], *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def bench(name: str, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return tool -> what it made of a model, and at what cost."""
    data = work / f"{name}.calibration.npz"
    facts = alone("--prepare", name, str(data))
    source, samples, size = Path(facts["source"]), min(given.samples, facts["rows"]), facts["size"]
    found: dict[str, dict[str, Any]] = {}
    files = {"float": source}
    for tool in given.tools:
        output = work / f"{source.stem}.{tool}{'.xml' if 'openvino' in tool else '.onnx'}"
        python = given.nncf if tool.startswith("nncf") else sys.executable
        found[tool] = run_tool(tool, source, output, data, samples, size, python)
        if "error" not in found[tool]:
            files[tool] = output
        print(f"{source.stem}: {tool} {found[tool]}", file=sys.stderr, flush=True)
    if any(path.suffix == ".xml" for path in files.values()):
        files["float-openvino"] = source
    for tool, judged in alone("--judge", json.dumps({k: str(v) for k, v in files.items()})).items():
        found.setdefault(tool, {}).update(judged)
    return found


def batch_of(source: Path) -> int:
    """Return the batch size of a model, 8 where it is dynamic."""
    import onnx

    dims = onnx.load(source, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return dims[0].dim_value or 8


# --- judging ---------------------------------------------------------------------------------------------------------


def runner(name: str, path: Path) -> Any:
    """Return a function from inputs to the first output, on one thread."""
    if "openvino" in name:
        import openvino

        one = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", one)
        known = {port.get_any_name(): port.get_names() for port in compiled.inputs}
        request = compiled.create_infer_request()

        def infer(inputs: dict[str, np.ndarray]) -> np.ndarray:
            feed = {own: inputs[next(n for n in names if n in inputs)] for own, names in known.items()}
            return np.array(request.infer(feed)[compiled.output(0)])

        return infer
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def judge_files(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return tool -> measure, SQNR (dB), milliseconds and kB of its file, the float ones among them."""
    source = Path(files["float"])
    with np.load(source.with_suffix(".npz")) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    inputs = {name.split("/")[1]: values for name, values in data.items() if name.startswith("test/")}
    runners = {name: runner(name, Path(path)) for name, path in files.items()}
    size, count = batch_of(source), len(next(iter(inputs.values())))
    batches = [{k: v[i : i + size] for k, v in inputs.items()} for i in range(0, count - size + 1, size)]
    if count % size and size == 8:
        batches.append({k: v[count - count % size :] for k, v in inputs.items()})
    outputs = {name: np.concatenate([run(batch) for batch in batches]) for name, run in runners.items()}
    real, ms = outputs["float"].astype(np.float64), latencies(runners, batches[0])
    result: dict[str, dict[str, Any]] = {}
    for name, found in outputs.items():
        what, value = quantize_models.measure(source.stem, found, real, data)
        noise = float(((found - real) ** 2).sum())
        sqnr = 10 * np.log10((real**2).sum() / noise) if noise else None
        parts = [Path(files[name]), Path(files[name]).with_suffix(".bin")]
        kb = sum(part.stat().st_size for part in parts if part.exists()) / 1000
        result[name] = {"measure": what, "value": value, "sqnr": sqnr, "ms": ms[name], "kb": kb}
    return result


def latencies(runners: dict[str, Any], batch: dict[str, np.ndarray], rounds: int = 30) -> dict[str, float]:
    """Return tool -> milliseconds of processor time (20th percentile), the tools in another order each round.

    In a fixed order the one behind a large model would always find the caches full of that.
    """
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = time.process_time()
    for done in range(rounds):
        if done >= 5 and time.process_time() - start > 10:
            break
        for name in rng.permutation(list(runners)):
            begin = time.process_time()
            runners[name](batch)
            times[name].append(1e3 * (time.process_time() - begin))
    return {name: float(np.percentile(values, 20)) for name, values in times.items()}


# --- tables ----------------------------------------------------------------------------------------------------------


def table(name: str, rows: dict[str, dict[str, Any]]) -> str:
    what = rows["float"]["measure"]
    lines = [
        f"\n### {name}\n",
        f"| tool | {what} | SQNR dB | ms | CPU s | peak MB | kB |",
        "|---|---|---|---|---|---|---|",
    ]
    for tool, row in rows.items():
        if "error" in row:
            lines.append(f"| {tool} | {row['error']} |")
            continue
        cost = f"{row['cpu']:.1f} | {row['mb']:.0f}" if "cpu" in row else "- | -"
        sqnr = "-" if row["sqnr"] is None else f"{row['sqnr']:.1f}"
        lines.append(f"| {tool} | {row['value']:.4f} | {sqnr} | {row['ms']:.2f} | {cost} | {row['kb']:.0f} |")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=HERE / "models" / "quantize")
    parser.add_argument("--only", nargs="*", default=list(quantize_models.NAMES))
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--nncf", default=sys.executable)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--judge", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = options()
    if given.prepare:
        print(json.dumps(prepare(given.prepare[0], given, Path(given.prepare[1]))))
        return
    if given.judge:
        print(json.dumps(judge_files(json.loads(given.judge))))
        return
    given.results.mkdir(parents=True, exist_ok=True)
    kept = given.results / "quantize.json"
    for name in given.only:
        with tempfile.TemporaryDirectory(prefix="quantize-bench-") as folder:
            rows = bench(name, given, Path(folder))
        print(table(name, rows), flush=True)
        results = json.loads(kept.read_text()) if kept.exists() else {}
        results[name] = rows  # all of them of one run: latencies of different runs cannot be compared
        kept.write_text(json.dumps(results, indent=1))
        text = "\n".join(table(known, results[known]) for known in quantize_models.NAMES if known in results)
        (given.results / "quantize.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
