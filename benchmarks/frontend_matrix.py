"""Full-size models of TensorFlow and Paddle from every file format to every target, against their framework.

    python benchmarks/frontend_matrix.py tensorflow|paddle [--models NAME ...] [--formats FORMAT ...] [--folder FOLDER]

A row for each model and format: the relative error of each artifact in FP32 and FP16 (the root mean square of the
difference over that of the framework's output, the worst of all outputs and samples), or why there is none. The table
is written to benchmarks/results/matrix-<framework>.json and .md. Needs the framework's environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from framework_models import FORMATS

from infconv import registry
from infconv.environments import choose_interpreter

HERE = Path(__file__).resolve().parent
MAKER = HERE / "framework_models.py"
TARGETS = ("onnx", "openvino", "tensorrt")
PRECISIONS = ("fp32", "fp16")
MODELS = {
    "tensorflow": ("ResNet50", "MobileNetV2", "EfficientNetB0", "transformer", "LSTM", "GRU", "flow"),
    "paddle": ("resnet50", "mobilenet_v3_large", "transformer", "lstm"),
}
LARGEST_ERROR = 1e-4
"""Of a float32 artifact."""
OF_FLOW = ("saved", "pb")
"""A tf.Module has no Keras form."""


def relative_error(artifact: dict[str, Any]) -> float:
    errors = [output for sample in artifact["verification"]["samples"] for output in sample["outputs"]]
    return max(0.0 if each["sqnr_db"] is None else 10 ** (-each["sqnr_db"] / 20) for each in errors)


def right(cell: float | str) -> bool:
    return isinstance(cell, float) and cell <= LARGEST_ERROR


def convert(source: Path, folder: Path) -> dict[str, Any]:
    """Return the error of each artifact by target and precision, or the reason that there is none, and the seconds."""
    targets = [{"target": t, "precision": p, "output": f"{folder}/"} for t in TARGETS for p in PRECISIONS]
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(json.dumps({"version": 1, "source": {"path": str(source)}, "targets": targets}))
    started = time.perf_counter()
    command = [sys.executable, "-m", "infconv.cli", "run", str(pipeline), "--json"]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    cells: dict[str, Any] = {f"{a['target']} {a['precision']}": relative_error(a) for a in done["artifacts"]}
    cells |= {f"{f['target']} {f['precision']}": f["message"] for f in done["failures"]}
    if not cells:
        cells = {f"{t} {p}": done["error"]["message"] for t in TARGETS for p in PRECISIONS}
    return {"seconds": time.perf_counter() - started, **cells}


def make(python: str, framework: str, folder: Path, model: str, kind: str) -> Path:
    path = folder / (f"{model}_{kind}" if framework == "paddle" else f"{model}.{kind}")
    if not path.exists():
        command = [python, str(MAKER), framework, str(folder), model, kind]
        subprocess.run(command, check=True, capture_output=True)
    return path


def table(rows: list[dict[str, Any]]) -> str:
    columns = [f"{target} {precision}" for target in TARGETS for precision in PRECISIONS]
    lines = ["| model | format | " + " | ".join(columns) + " | s |", "|---" * (len(columns) + 3) + "|"]
    for row in rows:
        cells = [f"{row[c]:.1e}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        lines.append(f"| {row['model']} | {row['format']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def write(framework: str, rows: list[dict[str, Any]]) -> None:
    """Write the results; rows of models that were not run stay."""
    path = HERE / "results" / f"matrix-{framework}.json"
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {(row["model"], row["format"]): row for row in (*old, *rows)}
    order = MODELS[framework]
    merged = sorted(found.values(), key=lambda r: (order.index(r["model"]), FORMATS[framework].index(r["format"])))
    path.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(merged), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=sorted(MODELS))
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--formats", nargs="+")
    parser.add_argument("--folder", type=Path, help="where the models are kept for another run")
    options = parser.parse_args()
    framework: str = options.framework
    python = choose_interpreter(framework, registry.get("frontend", framework).requires) or sys.executable
    folder = Path(options.folder or tempfile.mkdtemp())
    rows: list[dict[str, Any]] = []
    for model in options.models or MODELS[framework]:
        held = OF_FLOW if model == "flow" else FORMATS[framework]
        for kind in [each for each in held if each in (options.formats or held)]:
            with tempfile.TemporaryDirectory() as out:
                found = convert(make(python, framework, folder, model, kind).absolute(), Path(out))
            rows.append({"model": model, "format": kind, **found})
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    write(framework, rows)
    if options.folder is None:
        shutil.rmtree(folder)
    wrong = [
        f"{row['model']} {row['format']}" for row in rows if not all(map(right, (row[f"{t} fp32"] for t in TARGETS)))
    ]
    if wrong:
        raise SystemExit(f"beyond {LARGEST_ERROR:g} in FP32: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
