"""What converting from another framework costs beside its bare exporter: seconds, CPU seconds and peak memory.

    python benchmarks/frontends.py paddle|tensorflow [--python PATH]

Needs the framework's environment (`infconv env create paddle`). `export` is the frontend's own part, which the bare
exporter is compared with: the worker's whole life, from its start to the ONNX file. `convert` is the whole command:
optimised, and verified against the framework on three samples. Peak memory is the largest resident set of any process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infconv import registry
from infconv.environments import choose_interpreter

HERE = Path(__file__).resolve().parent

MEASURE = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(done.stderr.decode())
print(json.dumps([time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6]))
"""

EXPORT = """
import sys, tempfile, pathlib
from infconv import registry
from infconv.convert._base import SourceRequest
name, source, python = sys.argv[1:]
frontend = registry.get("frontend", name)
with tempfile.TemporaryDirectory() as folder:
    frontend().open(SourceRequest(source, frontend.recognise(source), python=python), pathlib.Path(folder)).close()
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A framework: how its models are made, and how its own exporter is called."""

    models: Sequence[str]
    make: str
    """A script that is given a folder and a model's name, and saves `folder/name…`."""
    suffix: str
    """Of the file that names the model."""
    bare: str
    """A script that is given the model and the ONNX file to write."""


PADDLE_MAKE = """
import sys, paddle
from paddle import nn
from paddle.static import InputSpec
folder, name = sys.argv[1:]
paddle.seed(0)
if name == "transformer":
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0), 6)
    spec = InputSpec([None, None, 256], "float32", "source")
else:
    layer = getattr(paddle.vision.models, name)()
    spec = InputSpec([None, 3, 224, 224], "float32", "image")
layer.eval()
paddle.jit.save(layer, f"{folder}/{name}", input_spec=[spec])
"""

PADDLE_BARE = """
import sys, paddle2onnx
model, target = sys.argv[1:]
paddle2onnx.export(model, model.replace(".json", ".pdiparams"), target, opset_version=17, optimize_tool="None")
"""

KERAS_MAKE = """
import sys, keras
folder, name = sys.argv[1:]
keras.utils.set_random_seed(0)
getattr(keras.applications, name)(weights=None).save(f"{folder}/{name}.keras")
"""

KERAS_BARE = """
import subprocess, sys, keras
model, target = sys.argv[1:]
keras.models.load_model(model).export(model + ".saved", verbose=False)
command = ["--saved-model", model + ".saved", "--output", target, "--opset", "17"]
subprocess.run([sys.executable, "-m", "tf2onnx.convert", *command], check=True)
"""

CASES = {
    "tensorflow": Case(["ResNet50", "MobileNetV2", "EfficientNetB0"], KERAS_MAKE, ".keras", KERAS_BARE),
    "paddle": Case(["resnet50", "mobilenet_v3_large", "transformer"], PADDLE_MAKE, ".json", PADDLE_BARE),
}


def measure(command: list[str], runs: int) -> dict[str, float]:
    """Return the medians of wall seconds and CPU seconds, and the largest peak in MB, of `command`."""
    rows: list[list[float]] = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(json.loads(done.stdout))
    wall, cpu, peak = zip(*rows, strict=True)
    return {"s": statistics.median(wall), "cpu_s": statistics.median(cpu), "peak_mb": max(peak)}


def run_case(name: str, python: str, runs: int) -> list[dict[str, object]]:
    """Return a row for each model of the framework."""
    case, rows = CASES[name], list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as folder:
        for model in case.models:
            subprocess.run([python, "-c", case.make, folder, model], check=True, capture_output=True)
            source, target = f"{folder}/{model}{case.suffix}", f"{folder}/{model}.onnx"
            convert = ["-m", "infconv.cli", "convert", source, "-o", target, "--python", python, "--quiet"]
            row = {
                "bare": measure([python, "-c", case.bare, source, target], runs),
                "export": measure([sys.executable, "-c", EXPORT, name, source, python], runs),
                "convert": measure([sys.executable, *convert], runs),
            }
            rows.append({"framework": name, "model": model, **row})
            print(f"{model:20}", *(f"{k}: {_figures(v)}" for k, v in row.items()), sep="   ", flush=True)
    return rows


def _figures(found: dict[str, float]) -> str:
    return f"{found['s']:.1f} s, {found['cpu_s']:.1f} CPU s, {found['peak_mb']:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=sorted(CASES))
    parser.add_argument("--python", help="the interpreter that has the framework")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    requires = registry.get("frontend", options.framework).requires
    python = choose_interpreter(options.framework, requires, python=options.python) or sys.executable
    rows = run_case(options.framework, python, options.runs)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"frontends-{options.framework}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
