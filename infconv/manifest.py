"""The manifest beside each artifact: where it came from, how it was made, and how well it agrees with the source."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from infconv import remote
from infconv.errors import SourceError
from infconv.given import as_given
from infconv.plain import plain
from infconv.publish import digest
from infconv.steps import Repeat, as_items
from infconv.urls import join, name_of, parent_of

if TYPE_CHECKING:
    from infconv.convert._base import Source
    from infconv.passes import Pass
    from infconv.result import Artifact
    from infconv.spec import PipelineSpec

_SUFFIX = ".infconv.json"
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
    document = {
        "manifest_version": 1,
        "artifact": {f.name: {"sha256": digest(f), "bytes": f.stat().st_size} for f in files},
        "source": {"path": spec.source.path, "files": _source_digests(spec.source.path, source.files)},
        "versions": {**library_versions(), **source.versions},
        "pipeline": {},
        "frontend": {"attempts": list(source.attempts), "producer": source.producer, "log": list(source.log)},
    }
    path.write_text(described(document, artifact, spec, steps), encoding="utf-8")
    return path


def described(
    document: Mapping[str, Any], artifact: Artifact, spec: PipelineSpec, steps: Sequence[Pass | Repeat]
) -> str:
    """Return the text of a manifest: `document` with what `artifact` and its pipeline say now.

    How it was run (in how many processes, with which cache) changes no artifact and is left out.
    """
    resolved = spec.model_dump(mode="json", exclude_defaults=True, exclude={"cache", "jobs"})
    told = {key: value for key, value in plain(artifact).items() if key not in {"source", "cached"}}
    whole = {**document, "pipeline": {**resolved, "steps": as_items(steps)}, **told}
    return json.dumps(as_given(whole, spec), indent=1, ensure_ascii=False) + "\n"


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


# --- what a manifest says of files that are there --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FileCheck:
    """A file that a manifest names: the artifact, its weights, or what the steps left beside it."""

    path: str
    status: Literal["ok", "changed", "missing"]
    sha256: str = ""
    """What it is now."""


def manifest_of(artifact: str) -> str:
    """Return the manifest beside an artifact at a path or URL, which may be named itself."""
    name = name_of(artifact)
    return artifact if name.endswith(_SUFFIX) else join(parent_of(artifact), name + _SUFFIX)


def read_manifest(path: str) -> dict[str, Any]:
    """Return what a manifest, at a path or URL, says. Raises SourceError when it is missing or not one."""
    try:
        document: Any = json.loads(remote.read_text(path))
    except FileNotFoundError:
        raise SourceError(f"There is no manifest '{path}'.", "It is written beside each artifact.") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"'{path}' is not a manifest: {error}.") from error
    listed: Any = document.get("artifact") if isinstance(document, dict) else None
    entries: list[Any] = list(listed.values()) if isinstance(listed, dict) else []
    if not entries or not all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in entries):
        raise SourceError(f"'{path}' is not a manifest: it names no files.")
    if any(Path(name).name != name for name in listed):
        raise SourceError(f"'{path}' is not a manifest: it names files of other folders.")
    return cast("dict[str, Any]", document)


def check_files(path: str) -> list[FileCheck]:
    """Return how the files that the manifest at `path` names are now, the artifact first. Raises SourceError."""
    listed: dict[str, Any] = read_manifest(path)["artifact"]
    folder = parent_of(path)
    return [_check_file(join(folder, name), entry["sha256"]) for name, entry in listed.items()]


def _check_file(place: str, expected: str) -> FileCheck:
    if not remote.is_file(place):
        return FileCheck(place, "missing")
    found = remote.digest_of(place)
    return FileCheck(place, "ok" if found == expected else "changed", found)
