"""Frontend `paddle`: inference models of PaddlePaddle 2.x (.pdmodel) and 3.x (PIR .json) with their .pdiparams."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from infconv.convert import _paddle_files as files
from infconv.convert._base import Frontend, SourceRequest
from infconv.convert._worker_source import WorkerSource, open_in_worker


class FromPaddle(Frontend):
    """Exports with paddle2onnx in a worker process, and keeps the model open there as the reference."""

    summary: ClassVar[str] = "PaddlePaddle: models of paddle.jit.save, 2.x and 3.x"
    formats: ClassVar[Mapping[str, str]] = {
        files.PIR: ".json (PIR, Paddle 3) with .pdiparams: either file, their prefix, or the folder",
        files.PROGRAM: ".pdmodel (Paddle 2) with .pdiparams: either file, their prefix, or the folder",
        files.WEIGHTS: ".pdiparams alone: refused, it holds no program",
    }
    requires: ClassVar[Mapping[str, str]] = {"paddle": "paddle", "paddle2onnx": "paddle", "onnx": "paddle"}
    takes: ClassVar[frozenset[str]] = frozenset({"--python", "--env", "source options"})

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return the format of `source` from its content: JSON that says it is PIR, or a ProgramDesc."""
        return files.find_format(source)

    def open(self, request: SourceRequest, workdir: Path) -> WorkerSource:
        """Export `request.source` to `workdir`.

        Raises SourceError, UnsupportedError (the operator, its layer), UsageError, DependencyError, ResourceError.
        """
        found = files.locate(request.source)
        request = dataclasses.replace(request, source=str(found.program), format=found.format)
        source = open_in_worker("paddle", request, request.python, workdir)
        source.files = [path for path in (found.program, found.parameters) if path]
        return source
