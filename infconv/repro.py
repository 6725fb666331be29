"""A folder that shows a fault by itself: model, inputs, pipeline, the command to type, and the versions."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from infconv.errors import UsageError
from infconv.spec import PipelineSpec, to_yaml

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.passes import Pass
    from infconv.verify import Kind

_SECONDS = 300.0
Command: TypeAlias = "Sequence[str | Path]"
"""Words; paths are files of the folder."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """How the command of a folder must fail for the folder to show the fault."""

    codes: Sequence[int]
    words: str
    """In the error's message."""


EXPECTED: Mapping[Kind, Expected] = {
    "differs": Expected((5,), "differs from the source"),
    "invalid": Expected((1, 3, 4), ""),
    "crash": Expected((1,), "crashed"),
    "timeout": Expected((7,), "did not finish"),
    "memory": Expected((7,), "memory"),
    "contract": Expected((1,), "Step "),
    "error": Expected((1, 2, 3, 4, 5, 7, 8), ""),
}


@dataclasses.dataclass(frozen=True)
class Repro:
    """A written folder."""

    folder: str
    command: str
    """What to type where bisection was started; in the folder itself, what its command.txt says."""
    reproduced: bool
    """Whether the command failed in the same way in a fresh process."""
    said: str
    """The message it failed with."""


def check_folder(folder: Path) -> None:
    """Raise UsageError when `folder` holds something else than an earlier reproducer."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "versions.json").exists())):
        raise UsageError(f"'{folder}' exists and is no reproducer of an earlier run.", "Name another folder: -o FOLDER")


def _make_folder(folder: Path) -> None:
    """Make `folder`, or empty it when it is an earlier reproducer. Raises UsageError."""
    check_folder(folder)
    if folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"'{folder}' cannot be written: {error.strerror}.", "Name another folder.") from error


def write(
    folder: Path,
    models: Mapping[str, ir.Model],
    arrays: Mapping[str, Mapping[str, Any]],
    spec: PipelineSpec | None,
    command: Command,
    step: Pass | None = None,
) -> None:
    """Write models (`model.onnx` …), arrays (`inputs.npz` …), `pipeline.yaml`, the command and the versions."""
    import numpy as np

    from infconv.manifest import library_versions
    from infconv.model import save

    _make_folder(folder)
    for name, model in models.items():
        save(model, folder / name)
    for name, values in arrays.items():
        np.savez(folder / name, allow_pickle=False, **{key: portable(value) for key, value in values.items()})
    if spec is not None:
        (folder / "pipeline.yaml").write_text(to_yaml(with_module(spec, step, folder)), encoding="utf-8")
    (folder / "command.txt").write_text(f"{typed(command, Path())}\n", encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(library_versions(), indent=1) + "\n", encoding="utf-8")


def portable(value: Any) -> Any:
    """Return an array that a .npz holds without pickle: bfloat16 and float8 as float32, strings of fixed length."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind == "O":
        return array.astype(str)
    return array if array.dtype.kind in "biufcUS" else array.astype(np.float32)


def with_module(spec: PipelineSpec, step: Pass | None, folder: Path) -> PipelineSpec:
    """Return `spec` so that the module of a user's own step is found: a copy beside the pipeline, or its root."""
    if step is None or ":" not in step.step_name():
        return spec
    name, file = type(step).__module__, inspect.getsourcefile(type(step))
    if file is None:
        return spec
    if "." not in name and Path(file).name != "__init__.py":
        if Path(file).resolve().parent != folder.resolve():  # else it is the reproducer that is run
            shutil.copy(file, folder)
        return spec
    root = Path(file).resolve().parents[name.count(".") + (Path(file).name == "__init__.py")]
    source = spec.source.model_copy(update={"python_path": [str(root)]})
    return spec.model_copy(update={"source": source})


def typed(command: Command, folder: Path) -> str:
    """Return the command as it is typed, its files being in `folder`."""
    return shlex.join(str(folder / word) if isinstance(word, Path) else word for word in command)


def attempt(folder: Path, command: Command, expected: Expected) -> Repro:
    """Type the command in a fresh process, in another folder, and see whether it fails as it must."""
    words = [sys.executable, "-m", "infconv.cli", *shlex.split(typed(command, folder.resolve()))[1:], "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory(prefix="infconv-") as elsewhere:
        done = subprocess.run(
            words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    said = _message(done.stdout)
    same = done.returncode in expected.codes and expected.words in said
    return Repro(str(folder), typed(command, folder), same, said)


def _message(output: str) -> str:
    try:
        document = json.loads(output)
    except ValueError:
        return output.strip()
    error = document.get("error") or {}
    return error.get("message", "") if isinstance(error, dict) else str(error)
