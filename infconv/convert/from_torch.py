"""Frontend `torch`: torch.export programs, TorchScript, Python factories, Hugging Face folders, trusted pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from infconv.convert import _torch_files as files
from infconv.convert._base import Frontend, SourceRequest
from infconv.convert._worker_source import WorkerSource, open_in_worker


class FromTorch(Frontend):
    """Exports with torch.onnx in a worker process, and keeps the model open there as the reference."""

    summary: ClassVar[str] = "PyTorch: torch.export, TorchScript, module:factory, Hugging Face folders"
    formats: ClassVar[Mapping[str, str]] = {
        files.EXPORTED_PROGRAM: ".pt2 written by torch.export.save",
        files.TORCHSCRIPT: "TorchScript .pt written by torch.jit.save (needs --input)",
        files.FACTORY: "module:factory, a callable that returns an nn.Module (needs --input; takes --weights)",
        files.HUGGINGFACE: "Hugging Face folder: config.json with model.safetensors or pytorch_model.bin",
        files.PICKLED_MODULE: "nn.Module written by torch.save: only with --trust-pickle (needs --input)",
        files.WEIGHTS: "state dict or safetensors: refused, it holds no model (use module:factory --weights)",
    }
    requires: ClassVar[Mapping[str, str]] = {"torch": "torch"}

    @classmethod
    def recognise(cls, source: str) -> str | None:
        """Return the format of `source` from its content: zip entries, pickle opcodes, headers."""
        return files.find_format(source)

    def open(self, request: SourceRequest, workdir: Path) -> WorkerSource:
        """Export `request.source` to `workdir`. Float types that numpy lacks come out of a run as float32.

        Raises SourceError, UsageError, UnsupportedError (each road with its reason), DependencyError, ResourceError.
        """
        files.refuse(request.source, request.format, request.trust_pickle)
        return open_in_worker("torch", request, request.python, workdir)
