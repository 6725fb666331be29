"""FP16 beside its peers, on the same files in one run: valid, finite, error, FP32 nodes, casts, time, peak memory.

    python benchmarks/precision.py [--only NAME ...] [--zoo FOLDER] [--large] [--tools NAME ...] [--peers PYTHON]

The models are those of benchmarks/breakers.py, and the zoo's where FOLDER has some (benchmarks/zoo.py), optimised in
FP32 first so that every tool starts from the same graph. Peers that need packages of their own (nvidia-modelopt,
onnxconverter-common) run in an environment that the script makes below benchmarks/results/. Every tool runs as a
process of its own; times are CPU seconds, memory is the peak resident set.

Errors are ||y - y32|| / ||y32||, the worst over the outputs (in the .json also max |y - y32| / max |y32|, which for one
and the same graph changes by a tenth and more when a single weight is rounded the other way). They are measured with a
rounding after every operator, as on a GPU: ONNX Runtime's CPU provider computes neighbouring FP16 operators in float32
and hides what they lose.
FP32 nodes are those of the graph and its subgraphs that write a float32 value, casts and constants aside; casts are
the Cast nodes from one float type to another, those at inputs and outputs included.

`--large` adds a model of 2.5 GB. Writes benchmarks/results/precision.md and .json; with `--only` what the .json has of
other models stays, so that a long comparison can be made in parts.
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

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PEERS = ("torch==2.13.0", "nvidia-modelopt[onnx]", "onnxconverter-common", "onnxruntime")
TOOLS = {
    "infconv": (
        "import numpy as np; from infconv.model import load, save; from infconv.passes import Context;"
        "from infconv.quantize.lower_precision import LowerPrecision; m = load(i);"
        "LowerPrecision().run(m, Context(samples=[dict(np.load(s))] if s else [])); save(m, o)"
    ),
    "onnxconverter": (
        "import onnx; from onnxconverter_common import float16 as f;"
        "onnx.save(f.convert_float_to_float16(onnx.load(i), keep_io_types=True), o)"
    ),
    "onnxruntime": (
        "import onnx; from onnxruntime.transformers import float16 as f, onnx_model as n;"
        "m = n.OnnxModel(f.convert_float_to_float16(onnx.load(i), keep_io_types=True));"
        "m.topological_sort(); onnx.save(m.model, o)"
    ),
    "autocast": (
        "import onnx; from modelopt.onnx.autocast import convert_to_mixed_precision as c;"
        "onnx.save(c(i, low_precision_type='fp16', keep_io_types=True, calibration_data=s or None), o)"
    ),
}
IN_PEERS = {"onnxconverter", "autocast"}
WIDTH, LAYERS = 10240, 6
TOLERANCE = 1e-2
"""Of FP16; what errs more does not count as a result."""
TIE = 0.05
"""Errors that differ by less are the same: so much comes of rounding a weight here or there."""


def peers_python() -> str:
    """Return the interpreter of the peers' environment, made when it is not there."""
    folder = RESULTS / "peers"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS], check=True)
    return str(python)


def run_tool(tool: str, python: str, source: Path, output: Path, samples: Path | None) -> dict[str, Any]:
    """Run one tool in a process; return CPU seconds and peak MB, or the error."""
    code = f"import sys; i, o, s = sys.argv[1:4]; {TOOLS[tool]}"
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [python, "-c", code, str(source), str(output), str(samples or "")],
            stdout=subprocess.DEVNULL,
            stderr=words,
            cwd=output.parent,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        words.seek(0)
        told = words.read().decode(errors="replace").strip().splitlines() or [f"exit {process.returncode}"]
    if process.returncode or not output.exists():
        return {"error": told[-1][:150]}
    return {"cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1e3}


def apart(function: str, *arguments: Any) -> Any:
    """Return what `function` of this file returns, run in a process of its own, so that this one stays small."""
    code = f"import sys, json, precision; print(json.dumps(precision.{function}(*json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], cwd=HERE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:150]}
    return json.loads(done.stdout.splitlines()[-1])


def judge(path: str, source: str, samples: str) -> dict[str, Any]:
    """Return whether a result is valid and finite, its errors, its FP32 nodes and its casts."""
    import numpy as np
    import onnx

    from infconv.convert._onnxruntime import open_session, run_session
    from infconv.convert._rounded import run_rounded

    counts = count(path)
    try:
        onnx.checker.check_model(path, full_check=True)
        session = open_session(path, optimize=True)
    except Exception as error:
        return {**counts, "valid": False, "reason": str(error).splitlines()[0][:150]}
    inputs = dict(np.load(samples))
    expected = run_session(open_session(source, optimize=False), inputs)
    rounded = run_rounded(path, [inputs])
    outcomes = {"": rounded[1][0] if rounded else None, "_ort_cpu": run_session(session, inputs)}
    found: dict[str, Any] = {**counts, "valid": True}
    for suffix, actual in outcomes.items():
        errors = (None, None) if actual is None else errors_of(expected, actual)
        found[f"error{suffix}"], found[f"max_error{suffix}"] = errors
    found["finite"] = found["error"] is None or bool(np.isfinite(found["error"]))
    return found


def errors_of(expected: Any, actual: Any) -> tuple[float, float]:
    """Return the norm of the error over that of the output, and the largest error over the largest magnitude.

    The worst over the outputs; infinity for a wrong NaN.
    """
    import numpy as np

    worst = largest = 0.0
    for (_, e), a in zip(expected.items(), actual.values(), strict=True):
        if e.dtype.kind != "f" or not e.size:
            continue
        exact, found = e.astype(np.float64), np.asarray(a).astype(np.float64)
        if not np.isfinite(found[np.isfinite(exact)]).all():
            return float("inf"), float("inf")
        inside = np.isfinite(exact)
        off, exact = (found - exact)[inside], exact[inside]
        worst = max(worst, float(np.linalg.norm(off) / max(np.linalg.norm(exact), 1e-30)))
        largest = max(largest, float(np.abs(off).max() / max(np.abs(exact).max(), 1e-30)))
    return worst, largest


def count(path: str) -> dict[str, int]:
    """Return the nodes of a file, those that compute in FP32, and the casts between float types."""
    import onnx_ir as ir

    from infconv.model import load
    from infconv.quantize._schemas import Schemas

    model = load(path)
    types = Schemas(model).types(model)
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    nodes = [node for node in model.graph.all_nodes() if node.op_type != "Constant"]
    casts = [
        n
        for n in nodes
        if n.op_type == "Cast" and n.inputs[0] and {types.get(n.inputs[0]), types.get(n.outputs[0])} <= floats
    ]
    wide = [n for n in nodes if n.op_type != "Cast" and any(types.get(v) == ir.DataType.FLOAT for v in n.outputs)]
    return {"nodes": len(nodes), "fp32_nodes": len(wide), "casts": len(casts)}


def prepare(source: str, path: str, samples: str) -> int:
    """Optimise a model of the zoo in FP32, write inputs for it, and return how many nodes it has."""
    import numpy as np

    import infconv
    from infconv.reference import describe_inputs, make_inputs, size_plans

    model = infconv.optimize(source, level="extended")
    infos = describe_inputs(model)
    np.savez(samples, **make_inputs(infos, next(size_plans(infos, {}))[1], seed=0))  # type: ignore[arg-type]
    infconv.save(model, path)
    return len(list(model.graph.all_nodes()))


def write_large(folder: str) -> str:
    """Write a model of 2.5 GB, its weights in a file beside it, one at a time; return its path."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    size = WIDTH * WIDTH * 4
    path = Path(folder) / "large.onnx"
    tensors: list[onnx.TensorProto] = []
    with (Path(folder) / "large.data").open("wb") as stream:
        for layer in range(LAYERS):
            for _ in range(WIDTH // 1024):
                stream.write((rng.standard_normal((1024, WIDTH), np.float32) / WIDTH**0.5).tobytes())
            tensor = onnx.TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "large.data"), ("offset", str(layer * size)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
    nodes = [helper.make_node("MatMul", [f"h{n}", f"w{n}"], [f"h{n + 1}"], name=f"mm{n}") for n in range(LAYERS)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("h0", f"h{LAYERS}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return str(path)


def measure(source: Path, samples: Path | None, pythons: dict[str, str], folder: Path) -> dict[str, Any]:
    """Return the row of one model: tool -> figures."""
    row: dict[str, Any] = {}
    for tool, python in pythons.items():
        output = folder / f"{tool}.onnx"
        row[tool] = run_tool(tool, python, source, output, samples)
        if "error" in row[tool]:
            row[tool] = {"failed": row[tool]["error"]}
        else:
            row[tool] |= (
                apart("judge", str(output), str(source), str(samples)) if samples else apart("count", str(output))
            )
        for file in folder.glob(f"{tool}.*"):
            file.unlink()
    return row


def cell(figures: dict[str, Any]) -> str:
    """Return error / FP32 nodes / casts / CPU seconds / peak MB, or what went wrong."""
    if "failed" in figures:
        return "fails"
    counts = f"{figures.get('fp32_nodes', '?')} / {figures.get('casts', '?')}"
    tail = f"{counts} / {figures['cpu']:.1f} / {figures['peak_mb']:.0f}"
    if figures.get("valid") is False:
        return f"**invalid** / {tail}"
    if "finite" not in figures:
        return f"- / {tail}" if "fp32_nodes" in figures else f"unreadable / {tail}"
    if figures["error"] is None:
        return f"all FP32 / {tail}"
    return (f"{figures['error']:.1e}" if figures["finite"] else "**not finite**") + f" / {tail}"


def table(rows: dict[str, Any], tools: list[str]) -> str:
    """Return the Markdown table and what it adds up to."""
    lines = [
        "error / FP32 nodes / casts / CPU s / peak MB\n",
        f"| model | {' | '.join(tools)} |",
        "|---" * (len(tools) + 1) + "|",
    ]
    lines += [f"| {name} | {' | '.join(cell(row[t]) for t in tools)} |" for name, row in rows.items()]
    judged = [row for row in rows.values() if any("finite" in row[t] or "valid" in row[t] for t in tools)]
    good = {t: sum(bool(row[t].get("valid") and row[t].get("finite")) for row in judged) for t in tools}
    if judged:
        lines.append(f"| valid and finite | {' | '.join(f'{good[t]} of {len(judged)}' for t in tools)} |")
    return "\n".join(lines) + "\n"


def verdicts(rows: dict[str, Any]) -> str:
    """Return where a peer that is right to TOLERANCE has a smaller error or fewer casts at no more FP32 nodes."""
    found: list[str] = []
    for name, row in rows.items():
        own = row.get("infconv", {})
        for tool, figures in row.items():
            if tool == "infconv" or not (figures.get("valid") and figures.get("finite")):
                continue
            error, own_error = figures["error"] or 0.0, own.get("error") or 0.0
            if error > TOLERANCE or figures["fp32_nodes"] > own["fp32_nodes"]:
                continue
            if error < own_error * (1 - TIE):
                found.append(f"- {name}: {tool} has a smaller error, {error:.2e} for {own_error:.2e}")
            if figures["casts"] < own["casts"]:
                found.append(f"- {name}: {tool} has fewer casts, {figures['casts']} for {own['casts']}")
    return "\n".join(["Where infconv is behind:", *(found or ["- nowhere"])]) + "\n"


def sources(zoo: Path | None, only: list[str], folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return name -> (model, inputs), written to `folder`."""
    import breakers

    found: dict[str, tuple[Path, Path]] = {}
    for path in breakers.write(folder):
        found[path.stem] = path, path.with_suffix(".npz")
    for file in sorted(zoo.glob("*.onnx")) if zoo else ():
        name = file.name.split(".")[0]
        path = folder / f"zoo-{name}.onnx"
        if (only and path.stem not in only) or ".default." in file.name:
            continue
        if isinstance(apart("prepare", str(file), str(path), str(path.with_suffix(".npz"))), int):
            found[path.stem] = path, path.with_suffix(".npz")
    return {name: paths for name, paths in found.items() if not only or name in only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--peers", help="the interpreter of an environment that has the peers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    peers = arguments.peers or (peers_python() if IN_PEERS & set(arguments.tools) else "")
    pythons = {tool: peers if tool in IN_PEERS else sys.executable for tool in arguments.tools}
    stored = arguments.results / "precision.json"
    rows: dict[str, Any] = json.loads(stored.read_text()) if arguments.only and stored.exists() else {}
    arguments.results.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "out").mkdir()
        for model, (path, samples) in sources(arguments.zoo, arguments.only, folder).items():
            rows[model] = measure(path, samples, pythons, folder / "out")
            stored.write_text(json.dumps(rows, indent=1))
            print(f"{time.perf_counter() - start:6.0f} s", model, json.dumps(rows[model]), flush=True)
        if arguments.large:
            large = Path(apart("write_large", name))
            rows["large (2.5 GB)"] = measure(large, None, pythons, folder / "out")
            print(json.dumps(rows["large (2.5 GB)"]), flush=True)
    stored.write_text(json.dumps(rows, indent=1))
    text = table(rows, list(pythons)) + "\n" + verdicts(rows)
    (arguments.results / "precision.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
