"""The manifest beside an artifact: what it says of the files, and the bill of materials that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

import infconv
from infconv.errors import SourceError
from infconv.manifest import check_files, manifest_of
from infconv.sbom import to_sbom

# What bom-1.6.schema.json requires of the parts that are used here, and the values that it allows.
HASHES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["alg", "content"],
        "additionalProperties": False,
        "properties": {"alg": {"enum": ["SHA-256"]}, "content": {"pattern": "^[a-f0-9]{64}$"}},
    },
}
COMPONENT: dict[str, Any] = {
    "type": "object",
    "required": ["type", "name"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["application", "library", "platform", "file", "machine-learning-model"]},
        "bom-ref": {"type": "string", "minLength": 1},
        "name": {"type": "string"},
        "version": {"type": "string"},
        "purl": {"type": "string", "pattern": "^pkg:pypi/[a-z0-9._-]+@.+"},
        "hashes": HASHES,
        "properties": {"items": {"required": ["name"], "properties": {"value": {"type": "string"}}}},
        "components": {"type": "array", "items": {"$ref": "#/definitions/component"}, "uniqueItems": True},
    },
}
CYCLONE: dict[str, Any] = {
    "definitions": {"component": COMPONENT},
    "type": "object",
    "required": ["bomFormat", "specVersion"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"enum": ["http://cyclonedx.org/schema/bom-1.6.schema.json"]},
        "bomFormat": {"enum": ["CycloneDX"]},
        "specVersion": {"enum": ["1.6"]},
        "serialNumber": {"pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        "version": {"type": "integer", "minimum": 1},
        "metadata": {"properties": {"tools": {"properties": {"components": {"items": COMPONENT}}}}},
        "components": {"type": "array", "items": {"$ref": "#/definitions/component"}, "uniqueItems": True},
        "dependencies": {"type": "array", "items": {"type": "object", "required": ["ref"]}, "uniqueItems": True},
    },
}


@pytest.fixture
def artifact(mlp: Path, tmp_path: Path) -> Path:
    """An OpenVINO IR, which is two files."""
    infconv.convert(mlp, target="openvino", output=tmp_path / "out" / "net.xml")
    return tmp_path / "out" / "net.xml"


def test_untouched_files_are_as_verified(artifact: Path) -> None:
    checks = check_files(manifest_of(str(artifact)))
    assert [(Path(check.path).name, check.status) for check in checks] == [("net.xml", "ok"), ("net.bin", "ok")]


def test_changed_and_missing_files_are_named(infconv: Any, artifact: Path) -> None:
    assert infconv("verify-manifest", artifact).code == 0
    weights = artifact.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[7] ^= 1
    weights.write_bytes(content)
    done = infconv("verify-manifest", artifact)
    assert (done.code, f"'{weights}' is changed" in done.err) == (5, True)
    artifact.unlink()
    document = infconv("verify-manifest", f"{artifact}.infconv.json", "--json").json
    assert [check["status"] for check in document["files"]] == ["missing", "changed"]
    assert document["exit_code"] == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "There is no manifest"),
        ("{", "is not a manifest"),
        ("[]", "names no files"),
        ('{"artifact": {}}', "names no files"),
        ('{"artifact": {"a.onnx": {}}}', "names no files"),
        ('{"artifact": {"../a.onnx": {"sha256": "0"}}}', "names files of other folders"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.onnx.infconv.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=words):
        check_files(str(path))


def test_the_bill_of_materials_is_valid_and_the_same_each_time(infconv: Any, artifact: Path, tmp_path: Path) -> None:
    assert infconv("verify-manifest", artifact, "--sbom", "a.cdx.json").code == 0
    assert infconv("verify-manifest", artifact, "--sbom", "b.cdx.json").code == 0
    text = (tmp_path / "a.cdx.json").read_text()
    assert text == (tmp_path / "b.cdx.json").read_text()
    document = json.loads(text)
    assert [error.message for error in Draft7Validator(CYCLONE).iter_errors(document)] == []
    kinds = {component["name"]: component["type"] for component in document["components"]}
    assert kinds["net.xml"] == "machine-learning-model"
    assert (kinds["mlp.onnx"], kinds["onnx"], kinds["python"]) == ("file", "library", "platform")
    references = {component["bom-ref"] for component in document["components"]}
    (dependency,) = document["dependencies"]
    assert {dependency["ref"], *dependency["dependsOn"]} == references
    (model,) = [component for component in document["components"] if component["type"] == "machine-learning-model"]
    assert [part["name"] for part in model["components"]] == ["net.xml", "net.bin"]


def test_a_conversion_writes_one_bill_for_all_its_artifacts(infconv: Any, mlp: Path, tmp_path: Path) -> None:
    done = infconv("convert", mlp, "-t", "onnx", "-t", "ort", "-o", "out", "--sbom", "all.cdx.json", "--verify", "off")
    assert done.code == 0
    document = json.loads((tmp_path / "all.cdx.json").read_text())
    assert [error.message for error in Draft7Validator(CYCLONE).iter_errors(document)] == []
    models = {c["name"] for c in document["components"] if c["type"] == "machine-learning-model"}
    assert models == {"mlp.onnx", "mlp.ort.onnx"}


def test_nothing_is_billed_for_files_that_are_not_what_was_verified(
    infconv: Any, artifact: Path, tmp_path: Path
) -> None:
    artifact.write_text("other")
    assert infconv("verify-manifest", artifact, "--sbom", "a.cdx.json").code == 5
    assert not (tmp_path / "a.cdx.json").exists()


def test_names_and_versions_of_any_kind_make_a_valid_bill() -> None:
    manifest = {"artifact": {"näme <x>.onnx": {"sha256": "0" * 64}}, "versions": {"My_Package": "1+cpu"}}
    document = json.loads(to_sbom([manifest]))
    assert [error.message for error in Draft7Validator(CYCLONE).iter_errors(document)] == []
