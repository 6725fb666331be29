"""The manifest beside each artifact: where it came from, how it was made, and how well it agrees with the source."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.plain import plain
from infconv.publish import digest
from infconv.steps import Repeat, as_items

if TYPE_CHECKING:
    from infconv.convert._base import Source
    from infconv.passes import Pass
    from infconv.result import Artifact
    from infconv.spec import PipelineSpec

_LIBRARIES = ("infconv", "onnx", "onnx-ir", "onnxruntime", "numpy")


def write_manifest(
    path: Path,
    artifact: Artifact,
    spec: PipelineSpec,
    steps: Sequence[Pass | Repeat],
    source: Source,
    files: Sequence[Path],
) -> Path:
    """Write the manifest of `artifact`, whose files are still in staging as `files`, and return its path."""
    resolved = spec.model_dump(mode="json", exclude_defaults=True) | {"steps": as_items(steps)}
    document = {
        "manifest_version": 1,
        "artifact": {f.name: {"sha256": digest(f), "bytes": f.stat().st_size} for f in files},
        "source": {"path": spec.source.path, "files": _source_digests(spec.source.path, source.files)},
        "versions": {**library_versions(), **source.versions},
        "pipeline": resolved,
        "frontend": {"attempts": list(source.attempts), "producer": source.producer, "log": list(source.log)},
        **plain(artifact),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def library_versions() -> Mapping[str, str]:
    """Return package name -> version of what a conversion depends on, Python included."""
    found = {name: _version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{name: v for name, v in found.items() if v}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _source_digests(source: str, files: Sequence[Path]) -> dict[str, Any]:
    """Return file name -> sha256 of `files`, else of the file or the folder's files; none for `module:factory`."""
    path = Path(source)
    if files:
        return {file.name: digest(file) for file in files}
    if path.is_file():
        return {path.name: digest(path)}
    if path.is_dir():
        return {str(f.relative_to(path)): digest(f) for f in sorted(path.rglob("*")) if f.is_file()}
    return {}
