"""The shape of the code: imports point one way, and heavy libraries load only when they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "infconv"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import from its own layer and those above it in this list.
LAYERS = [
    {"errors", "__init__", "_onnx_ir"},
    {"isolate", "registry", "plain", "configs", "explain", "options", "environments", "anchor", "gate_options"}
    | {"urls", "entries"}
    | {"garbage", "step_result"},
    {"_protobuf", "_normalise", "model", "census", "compare", "agreement", "computation"},
    {"passes", "quantize", "convert"},
    {"texts", "pipeline_file", "pipeline_layers", "matrix", "difference"},
    {
        "transfer",
        "remote",
        "fetch",
        "given",
        "external_files",
        "result",
        "observe",
        "spec",
        "synthetic",
        "reference",
        "publish",
        "steps",
        "run_artifact",
        "calibrated",
        "graphs",
        "cache",
    },
    {"align", "bodies", "reduce"},
    {
        "verify",
        "runner",
        "manifest",
        "crash",
        "planning",
        "making",
        "pipeline",
        "limits",
        "api",
        "supervise",
        "schema",
        "starting_pipeline",
    }
    | {"replay", "repro", "bisect", "bisect_models", "comparison", "metrics", "bench"}
    | {"shelf", "kept_graphs", "opening", "resume", "parallel", "workers", "on_ray"}
    | {"nearby", "run_file", "runs", "gates", "baseline", "report", "sbom", "footprint"},
    {"console"},
    {"commands"},
    {"cli"},
]
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "openvino", "tensorrt", "tensorrt_rtx", "rich", "yaml"}
STARTS_FAST = [PACKAGE / name for name in ("errors.py", "cli.py", "registry.py", "supervise.py", "isolate.py")]
STARTS_FAST += sorted((PACKAGE / "commands").glob("*.py"))


def layer_of(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def top_level_imports(path: Path) -> set[str]:
    """Return the modules imported when `path` is imported; what TYPE_CHECKING guards and functions import is not."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = layer_of(room_of(path))
    known = {name for names in LAYERS for name in names}
    for module in top_level_imports(path):
        parts = module.split(".")
        if parts[0] == "infconv" and len(parts) > 1 and parts[1] in known:
            assert layer_of(parts[1]) <= here, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", STARTS_FAST, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_command_line_starts_without_heavy_libraries(path: Path) -> None:
    heavy = {m.split(".")[0] for m in top_level_imports(path)} & HEAVY
    assert not heavy


def test_importing_infconv_imports_nothing_heavy() -> None:
    code = "import sys, infconv; print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {f"'{name}'" for name in HEAVY} & set(done.stdout.strip("[]\n").split(", "))


def test_only_the_console_imports_rich() -> None:
    users = [p.name for p in FILES if "rich" in {w.split(".")[0] for w in _all_imports(p)}]
    assert users == ["console.py"]


def _all_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found
