"""The JSON schema of the pipeline file says what the file's reader accepts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from infconv import registry
from infconv.errors import UsageError
from infconv.run_file import PipelineFile, load_run
from infconv.schema import pipeline_schema
from infconv.steps import shipped

SCHEMA = pipeline_schema()
DEFINITIONS = SCHEMA["$defs"]


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in the schema."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(inner)


def test_every_key_is_there_and_no_other_is_allowed() -> None:
    assert set(SCHEMA["properties"]) == set(PipelineFile.model_fields)
    assert SCHEMA["additionalProperties"] is False
    assert {"required": ["source", "targets"]} in SCHEMA["anyOf"]


def test_every_reference_leads_somewhere() -> None:
    references = {node["$ref"] for node in nodes(SCHEMA) if isinstance(node.get("$ref"), str)}
    assert references <= {f"#/$defs/{name}" for name in DEFINITIONS}


def test_steps_are_named_with_their_options_and_their_help() -> None:
    choices = DEFINITIONS["Step"]["anyOf"]
    assert {c["const"] for c in choices if "const" in c} == {*registry.names("pass"), *shipped()}
    options = choices[-1]["properties"]
    assert set(options) == {*registry.names("pass"), "repeat"}
    most = options["fold-constants"]["properties"]["max_bytes"]
    assert (most["anyOf"][0]["type"], most["anyOf"][0]["minimum"]) == ("integer", 0)
    assert most["description"]
    assert options["fold-constants"]["additionalProperties"] is False


def test_each_target_has_its_options_and_precisions() -> None:
    entry = DEFINITIONS["TargetEntry"]
    assert {"onnx", "ort", "onnxruntime", "trt"} <= set(entry["properties"]["target"]["anyOf"][0]["enum"])
    (tensorrt,) = [c["then"] for c in entry["allOf"] if "trt" in c["if"]["properties"]["target"]["enum"]]
    options = tensorrt["properties"]["options"]["properties"]
    assert {"type": "string"} in options["compute_capability"]["anyOf"]
    assert "fp16" in tensorrt["properties"]["precision"]["anyOf"][0]["enum"]


def test_times_sizes_and_inputs_may_be_texts() -> None:
    kinds = {"type": "string"}
    assert kinds in SCHEMA["properties"]["timeout"]["anyOf"]
    inputs = DEFINITIONS["SourceEntry"]["properties"]["inputs"]["anyOf"][0]["additionalProperties"]["anyOf"]
    assert "string" in {choice.get("type") for choice in inputs}


HEAD = "version: 1\nsource: {path: m.onnx}\n"
TARGET = "targets: [{target: onnx}]\n"
RIGHT = {
    "the least": "source: {path: m.onnx}\n" + TARGET,
    "everything about inputs": HEAD.replace("m.onnx", "m.onnx, inputs: {x: 'n,8', y: [n, 8]}, dims: {n: {max: 4}}")
    + TARGET,
    "steps": HEAD
    + TARGET
    + "steps: [basic, {fold-constants: {max_bytes: 1024}}, {repeat: [fuse-gelu]}, 'my.module:Pass']\n",
    "times and sizes": HEAD + TARGET + "timeout: 30m\nmemory_limit: 8GiB\nverify: {when: each, step_timeout: 90}\n",
    "several sources": "sources: [{path: a.onnx, sample: a.npz}, {path: b.onnx, name: b}]\n" + TARGET,
    "a matrix": HEAD
    + "matrix: {p: [fp32, fp16], n: [10, 20], exclude: [{p: fp16, n: 20}]}\n"
    + "targets: [{target: ort, precision: '${matrix:p}', output: '${matrix:p}.${matrix:n}.onnx', "
    + "gates: {nodes: {max: '${matrix:n}'}}}]\n",
    "gates": HEAD
    + TARGET
    + "gates: {latency_ms: {max: 12, runtime: onnxruntime}, size_mb: {max: 30}, baseline: b.json}\n",
    "reports": HEAD + TARGET + "reports: [a.html, b.xml]\n",
}
WRONG = {
    "an unknown key": HEAD + TARGET + "gate: {}\n",
    "an unknown precision": HEAD + "targets: [{target: onnx, precision: fp61}]\n",
    "an unknown option of a step": HEAD + TARGET + "steps: [{fold-constants: {max_byte: 1}}]\n",
    "an option of another target": HEAD + "targets: [{target: onnx, options: {compute_capability: sm89}}]\n",
    "no target": HEAD,
    "no source": TARGET,
    "an axis that is no list": HEAD + TARGET + "matrix: {p: fp16}\n",
    "a gate without its limit": HEAD + TARGET + "gates: {size_mb: {}}\n",
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_the_reader_takes_the_schema_takes(tmp_path: Path, case: str) -> None:
    (tmp_path / "p.yaml").write_text(RIGHT[case])
    assert load_run(tmp_path / "p.yaml")
    Draft202012Validator.check_schema(SCHEMA)
    assert [e.message for e in Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(RIGHT[case]))] == []


@pytest.mark.parametrize("case", WRONG)
def test_what_the_reader_refuses_the_schema_refuses(tmp_path: Path, case: str) -> None:
    from infconv.runs import plan_all

    (tmp_path / "p.yaml").write_text(WRONG[case])
    with pytest.raises(UsageError):
        plan_all(load_run(tmp_path / "p.yaml"))
    assert not Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(WRONG[case]))


def test_every_key_has_a_description() -> None:
    for name in ("PipelineFile", "TargetEntry", "TargetGates", "LatencyGate"):
        described = SCHEMA if name == "PipelineFile" else DEFINITIONS[name]
        for key, property in described["properties"].items():
            references = [choice["$ref"] for choice in property.get("anyOf", [property]) if "$ref" in choice]
            model = DEFINITIONS[references[0].rpartition("/")[2]] if references else {}
            assert property.get("description") or model.get("description"), f"{name}.{key}"
