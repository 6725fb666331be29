"""The optimiser beside its peers: nodes, time, peak memory and latency on the same files, in one run.

    python benchmarks/optimize.py [--models FOLDER] [--only NAME ...] [--latency]

Builds the models (benchmarks/zoo.py) when FOLDER has none. Every tool runs as a process of its own, the tools in turn;
times are CPU seconds, memory is the peak resident set of the whole process. Latencies are CPU milliseconds
on one thread, the least of interleaved runs: others on the machine hardly change those. Writes
benchmarks/results/optimize.md, .json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, a checkout gets it once
HERE = Path(__file__).resolve().parent
TOOLS = {
    "infconv": ("import infconv", "infconv.save(infconv.optimize(i, level='extended'), o)"),
    "infconv-ort": ("import infconv", "infconv.save(infconv.optimize(i, target='onnxruntime', level='extended'), o)"),
    "onnxsim": ("import onnx, onnxsim", "onnx.save(onnxsim.simplify(i)[0], o)"),
    "onnxslim": ("import onnxslim", "onnxslim.slim(i, o)"),
    "onnxscript": ("import onnx, onnxscript.optimizer as s", "onnx.save(s.optimize(onnx.load(i)), o)"),
    "onnxscript-ort": (
        "import onnx_ir as ir, onnxscript.optimizer as s, onnxscript.rewriter.ort_fusions as f",
        "m = ir.load(i); s.optimize_ir(m); r = f.optimize_for_ort(m); ir.save(r[0] if isinstance(r, tuple) else r, o)",
    ),
    "ort-offline": (
        "import onnxruntime as r",
        "p = r.SessionOptions(); p.optimized_model_filepath = o; p.log_severity_level = 4;"
        "p.graph_optimization_level = r.GraphOptimizationLevel.ORT_ENABLE_EXTENDED;"
        "r.InferenceSession(i, p, providers=['CPUExecutionProvider'])",
    ),
}
"""What a tool's process imports, and what it does to the model at path `i` to write the one at `o`."""
PORTABLE = ("infconv", "onnxsim", "onnxslim", "onnxscript")
"""The tools whose result has standard operators only."""


def run_tool(tool: str, source: Path, output: Path) -> dict[str, Any]:
    """Run one tool in a process; return CPU seconds (whole; after imports), peak MB and nodes left, or the error."""
    imports, work = TOOLS[tool]
    code = f"import sys, time; i, o = sys.argv[1:3]\n{imports}\nt = time.process_time()\n{work}\n"
    code += "open(o + '.work', 'w').write(str(time.process_time() - t))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    words = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not output.exists():
        return {"error": (words.strip().splitlines() or [f"exit {process.returncode}"])[-1][:120]}
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "work": float(output.with_name(f"{output.name}.work").read_text()),
        "peak_mb": usage.ru_maxrss / 1e3,
        "nodes": apart("count_nodes", str(output)),
    }


def apart(function: str, *arguments: Any) -> Any:
    """Return what `function` of this file returns, run in a process of its own.

    This process must stay small: Linux counts the memory of a parent as the peak of the children that it forks.
    """
    code = f"import sys, json, optimize; print(json.dumps(optimize.{function}(*json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], cwd=HERE, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def count_nodes(path: str) -> int:
    """Return the nodes of a file, subgraphs and functions included."""
    from infconv.census import take_census
    from infconv.model import load

    return take_census(load(path)).nodes


def latencies(paths: dict[str, str], runs: int) -> dict[str, dict[str, float]]:
    """Return the least CPU milliseconds of each model in ONNX Runtime and in OpenVINO, on one thread, in turn."""
    from infconv.model import load
    from infconv.reference import describe_inputs, make_inputs, size_plans

    infos = describe_inputs(load(next(iter(paths.values()))))
    feeds = make_inputs(infos, next(size_plans(infos, {}))[1], seed=0)
    found: dict[str, dict[str, float]] = {}
    for runtime, prepare in (("ONNX Runtime", _in_onnxruntime), ("OpenVINO", _in_openvino)):
        calls = {tool: call for tool, path in paths.items() if (call := prepare(path, feeds)) is not None}
        times: dict[str, list[float]] = {tool: [] for tool in calls}
        for turn in range(runs + 2):
            for tool, call in calls.items():
                start = time.process_time()
                call()
                if turn >= 2:
                    times[tool].append(1e3 * (time.process_time() - start))
        found[runtime] = {tool: min(values) for tool, values in times.items()}
    return found


def _in_onnxruntime(path: str, feeds: Any) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def _in_openvino(path: str, feeds: Any) -> Callable[[], object] | None:
    """Return a call of the compiled model; None where OpenVINO lacks an operator (of com.microsoft)."""
    import openvino

    try:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    except RuntimeError:
        return None
    request = compiled.create_infer_request()
    return lambda: request.infer(feeds)


def measure(source: Path, tools: Sequence[str], with_latency: bool, runs: int, folder: Path) -> dict[str, Any]:
    """Return the row of one model: tool -> figures."""
    row: dict[str, Any] = {"mb": source.stat().st_size / 1e6, "nodes": apart("count_nodes", str(source)), "tools": {}}
    outputs = {tool: folder / f"{tool}.onnx" for tool in tools}
    for tool in tools:
        row["tools"][tool] = run_tool(tool, source, outputs[tool])
    if with_latency:
        ready = {t: str(p) for t, p in outputs.items() if "error" not in row["tools"][t]}
        row["latency_ms"] = apart("latencies", {"source": str(source), **ready}, runs)
    for path in folder.iterdir():
        path.unlink()
    return row


def table(rows: dict[str, Any], tools: Sequence[str]) -> str:
    """Return the Markdown tables: nodes, CPU seconds, peak memory, latency."""
    parts: list[str] = []
    for title, key, form in (
        ("Nodes left", "nodes", "{:.0f}"),
        ("CPU s of the whole process", "cpu", "{:.1f}"),
        ("CPU s after the tool's imports", "work", "{:.2f}"),
        ("Peak MB", "peak_mb", "{:.0f}"),
    ):
        parts += [f"### {title}\n", f"| model | MB | before | {' | '.join(tools)} |", "|---" * (len(tools) + 3) + "|"]
        for name, row in rows.items():
            cells = [form.format(row["tools"][t][key]) if key in row["tools"][t] else "failed" for t in tools]
            parts.append(f"| {name} | {row['mb']:.0f} | {row['nodes']} | {' | '.join(cells)} |")
        parts.append("")
    timed = {name: row for name, row in rows.items() if "latency_ms" in row}
    columns = ["source", *tools]
    for runtime in ("ONNX Runtime", "OpenVINO") if timed else ():
        head = f"| model | {' | '.join(columns)} |"
        parts += [f"### Latency in {runtime}, CPU ms on one thread\n", head, "|---" * (len(columns) + 1) + "|"]
        for name, row in timed.items():
            found = row["latency_ms"][runtime]
            parts.append(f"| {name} | {' | '.join(f'{found[c]:.2f}' if c in found else '-' for c in columns)} |")
        parts.append("")
    return "\n".join(parts)


def plot(rows: dict[str, Any], tools: Sequence[str], path: Path) -> None:
    """Draw nodes, time, memory and latency of each tool as a multiple of infconv's, the models side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def value(row: Any, tool: str, key: str) -> float:
        if key == "latency":
            return row.get("latency_ms", {}).get("ONNX Runtime", {}).get(tool, float("nan"))
        return row["tools"][tool].get(key, float("nan"))

    keys = {"nodes": "nodes left", "cpu": "CPU time", "peak_mb": "peak memory", "latency": "ONNX Runtime latency"}
    figure, axes = pyplot.subplots(len(keys), 1, figsize=(max(8, len(rows)), 3.2 * len(keys)), sharex=True)
    width = 0.8 / len(tools)
    for axis, (key, title) in zip(axes, keys.items(), strict=True):
        for index, tool in enumerate(tools):
            heights = [value(row, tool, key) / value(row, "infconv", key) for row in rows.values()]
            axis.bar([x + (index - len(tools) / 2) * width for x in range(len(rows))], heights, width, label=tool)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_ylabel(f"{title} / infconv's")
    axes[0].legend(ncols=len(tools), fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.25))
    axes[-1].set_xticks(range(len(rows)), list(rows), rotation=60, ha="right")
    figure.savefig(path, bbox_inches="tight", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=HERE / "results" / "zoo")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    if not list(arguments.models.glob("*.onnx")):
        subprocess.run([sys.executable, str(HERE / "zoo.py"), str(arguments.models), *arguments.only], check=True)
    files = [
        f
        for f in sorted(arguments.models.glob("*.onnx"))
        if not arguments.only or f.name.split(".")[0] in arguments.only
    ]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for tool in arguments.tools:  # once for the bytecode
            run_tool(tool, min(files, key=lambda f: f.stat().st_size), Path(name) / "warm.onnx")
        for source in files:
            rows[source.stem] = measure(source, arguments.tools, arguments.latency, arguments.runs, Path(name))
            print(source.stem, json.dumps(rows[source.stem]), flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "optimize.json").write_text(json.dumps(rows, indent=1))
    if "infconv" in arguments.tools:
        plot(rows, arguments.tools, results / "optimize.png")
    text = table(rows, arguments.tools)
    (results / "optimize.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
