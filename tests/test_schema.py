"""The JSON schema of the pipeline file says what the file's reader accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infconv import registry
from infconv.schema import pipeline_schema
from infconv.spec import PipelineSpec
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
    assert set(SCHEMA["properties"]) == set(PipelineSpec.model_fields)
    assert SCHEMA["additionalProperties"] is False
    assert SCHEMA["required"] == ["source", "targets"]


def test_every_reference_leads_somewhere() -> None:
    references = {node["$ref"] for node in nodes(SCHEMA) if isinstance(node.get("$ref"), str)}
    assert references <= {f"#/$defs/{name}" for name in DEFINITIONS}


def test_steps_are_named_with_their_options_and_their_help() -> None:
    choices = DEFINITIONS["Step"]["anyOf"]
    assert {c["const"] for c in choices if "const" in c} == {*registry.names("pass"), *shipped()}
    options = choices[-1]["properties"]
    assert set(options) == {*registry.names("pass"), "repeat"}
    most = options["fold-constants"]["properties"]["max_bytes"]
    assert (most["type"], most["minimum"]) == ("integer", 0)
    assert most["description"]
    assert options["fold-constants"]["additionalProperties"] is False


def test_each_target_has_its_options_and_precisions() -> None:
    entry = DEFINITIONS["TargetEntry"]
    assert {"onnx", "ort", "onnxruntime", "trt"} <= set(entry["properties"]["target"]["enum"])
    (tensorrt,) = [c["then"] for c in entry["allOf"] if "trt" in c["if"]["properties"]["target"]["enum"]]
    options = tensorrt["properties"]["options"]["properties"]
    assert {"type": "string"} in options["compute_capability"]["anyOf"]
    assert "fp16" in tensorrt["properties"]["precision"]["enum"]


def test_times_sizes_and_inputs_may_be_texts() -> None:
    kinds = {"type": "string"}
    assert kinds in SCHEMA["properties"]["timeout"]["anyOf"]
    inputs = DEFINITIONS["SourceEntry"]["properties"]["inputs"]["additionalProperties"]["anyOf"]
    assert "string" in {choice.get("type") for choice in inputs}
