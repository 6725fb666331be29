"""Frontend `jax`: a function of arrays, named as module:function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from infconv.convert._base import Frontend, SourceRequest
from infconv.convert._worker_source import WorkerSource, open_in_worker
from infconv.errors import UsageError

REFERENCE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
IMPORTS_JAX = re.compile(r"^\s*(?:import|from)\s+(?:jax|flax|equinox)\b", re.MULTILINE)
IMPORTS_TORCH = re.compile(r"^\s*(?:import|from)\s+torch\b", re.MULTILINE)


class FromJax(Frontend):
    """Exports with jax2onnx in a worker process, `_worker_jax.py`: JAX has threads, which forbid to fork."""

    summary: ClassVar[str] = "JAX: module:function of a module that imports jax"
    formats: ClassVar[Mapping[str, str]] = {"function": "module:function of arrays (needs --input)"}
    requires: ClassVar[Mapping[str, str]] = {"jax": "jax", "jax2onnx": "jax"}
    takes: ClassVar[frozenset[str]] = frozenset({"--python", "--env"})

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return "function" for a module whose text imports JAX and not PyTorch; it is read, not imported."""
        named = REFERENCE.fullmatch(source)
        if not named:
            return None
        path = Path(*named.group(1).split(".")).with_suffix(".py")
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return "function" if IMPORTS_JAX.search(text) and not IMPORTS_TORCH.search(text) else None

    def open(self, request: SourceRequest, workdir: Path) -> WorkerSource:
        """Export to `workdir`. Raises SourceError, UsageError (no --input), UnsupportedError, DependencyError."""
        if not request.inputs:
            raise UsageError(
                f"'{request.source}' is a function: its inputs have to be told.", "Give --input NAME:DIMS for each."
            )
        return open_in_worker("jax", request, request.python, workdir, Path(__file__).parent)
