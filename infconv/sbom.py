"""A bill of materials of artifacts, in CycloneDX 1.6 JSON (cyclonedx.org/docs/1.6/json), from their manifests."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from infconv import remote
from infconv.manifest import read_manifest

_NAMESPACE = uuid.UUID("6f1f9f3c-2d0b-5b4e-9d37-4a6b8f0f7c55")
"""Any constant serves: the serial number follows from the content, so that the same artifacts give the same bytes."""


def write_sbom(path: str, manifests: Sequence[str]) -> None:
    """Write the bill of materials of the artifacts of `manifests` to `path`. Raises SourceError, UsageError."""
    remote.write_text(path, to_sbom([read_manifest(manifest) for manifest in manifests]))


def to_sbom(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Return the document: a machine-learning model for each artifact, its files, its source, and what made it."""
    components: dict[str, dict[str, Any]] = {}
    dependencies: dict[str, list[str]] = {}
    for manifest in manifests:
        model = _model(manifest)
        parts = [*_source(manifest), *_libraries(manifest)]
        components |= {part["bom-ref"]: part for part in (model, *parts)}
        dependencies[model["bom-ref"]] = [part["bom-ref"] for part in parts]
    listed = [components[reference] for reference in sorted(components)]
    serial = uuid.uuid5(_NAMESPACE, json.dumps(listed, sort_keys=True))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"tools": {"components": [_tool(manifests)]}},
        "components": listed,
        "dependencies": [{"ref": ref, "dependsOn": sorted(set(on))} for ref, on in sorted(dependencies.items())],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _tool(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "application", "name": "infconv", "version": str(manifests[0]["versions"].get("infconv", ""))}


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the artifact; its files are components within it."""
    files: Mapping[str, Any] = manifest["artifact"]
    name, entry = next(iter(files.items()))
    digest = entry["sha256"]
    return {
        "type": "machine-learning-model",
        "bom-ref": f"artifact:{name}:{digest}",
        "name": name,
        "version": f"sha256-{digest[:16]}",
        "hashes": _hashes(digest),
        "properties": [
            {"name": "infconv:target", "value": str(manifest.get("target", ""))},
            {"name": "infconv:precision", "value": str(manifest.get("precision", ""))},
        ],
        "components": [_file(f"{digest[:16]}/", name, inner["sha256"]) for name, inner in files.items()],
    }


def _source(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    files: Mapping[str, Any] = manifest.get("source", {}).get("files", {})
    return [_file("source/", name, digest) for name, digest in files.items()]


def _file(place: str, name: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{place}{name}:{digest}", "name": name, "hashes": _hashes(digest)}


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _libraries(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, version in manifest.get("versions", {}).items():
        component = {"type": "library", "bom-ref": f"library:{name}@{version}", "name": name, "version": str(version)}
        if name == "python":
            component["type"] = "platform"
        else:
            component["purl"] = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        found.append(component)
    return found
