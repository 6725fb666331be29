"""Frontend `onnx`: the source is ONNX already; ONNX Runtime, unoptimised, computes the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from infconv.convert._base import Frontend, Source, SourceRequest
from infconv.errors import DependencyError, InfconvError, SourceError


class FromOnnx(Frontend):
    """Opens ONNX files."""

    summary: ClassVar[str] = "ONNX files of any opset, with external data, functions and subgraphs"
    formats: ClassVar[Mapping[str, str]] = {"onnx": ".onnx, with or without external data"}
    takes: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return "onnx" for a file that starts as a ModelProto does, or is named as one."""
        path = Path(source)
        if not path.is_file():
            return "onnx" if path.suffix == ".onnx" and not path.is_dir() else None
        if path.suffix == ".onnx":
            return "onnx"
        with path.open("rb") as stream:
            head = stream.read(2)
        # A ModelProto starts with ir_version (field 1, varint): 0x08, then a small number. TensorFlow's SavedModel does
        # too, but always has this name.
        return (
            "onnx"
            if path.name != "saved_model.pb" and len(head) == 2 and head[0] == 0x08 and 1 <= head[1] <= 20
            else None
        )

    def open(self, request: SourceRequest, workdir: Path) -> Source:
        """Check the file and return it as it is."""
        from infconv.model import check_proto, read_proto

        path = Path(request.source)
        proto, _ = read_proto(path)
        try:
            check_proto(proto)
        except SourceError as error:
            raise SourceError(f"'{path}': {error.message}", error.hint) from error
        return OnnxSource(path)


class OnnxSource(Source):
    """An ONNX file, run by ONNX Runtime with its graph optimizations off."""

    is_onnx: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DependencyError(
                "Running models needs the package 'onnxruntime', which is not installed.",
                "Install it with: pip install onnxruntime",
            ) from error
        self.model_path = path
        self.producer = f"onnxruntime {onnxruntime.__version__}, graph optimizations off"
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the source file."""
        outcome = self.run_all([inputs])[0]
        if isinstance(outcome, InfconvError):
            raise outcome
        return outcome

    def run_all(self, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | InfconvError]:
        """Run the source file on each sample, in one session."""
        from infconv.convert._onnxruntime import run_or_errors

        return run_or_errors(self.model_path, samples, optimize=False)[1]

    def close(self) -> None:
        """Nothing is held open."""
