"""The JSON schema of the pipeline file says what the file's reader accepts."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from infconv import registry
from infconv.errors import InfconvError, UsageError
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
    assert set(options) == {*registry.names("pass"), *shipped(), "repeat"}
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
    assert "string" in {choice.get("type") for choice in SCHEMA["properties"]["timeout"]["anyOf"]}
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


EVERYTHING = """
version: 1
source: {path: m.onnx, name: n, frontend: onnx, inputs: {x: [n, 8]}, dims: {n: {min: 1, opt: 2, max: 4}}, layout: nchw}
sample: s.npz
calibration: {path: c.npz, samples: 3, image: {resize: 4, crop: [2, 3], mean: [0.5]}, text: {tokenizer: t.json}}
opset: 18
steps: [basic, {fold-constants: {max_bytes: 3}}, {repeat: [fuse-gelu, {fold-constants: {}}]}]
add: [fuse-gelu]
skip: [fuse-gelu]
targets: [{target: ort, precision: int8, output: o.onnx, io_types: keep, options: {}, gates: {nodes: {max: 3}}}]
verify: {when: each, rtol: 0.1, atol: 0.1, min_sqnr: 3, edge_cases: [zeros], step_timeout: 3s}
gates: {latency_ms: {max: 3, runtime: onnxruntime, runs: 5}, memory_mb: {max: 4}, error: {max_abs: 1, min_sqnr: 3}}
reports: [r.html, "s3://b/r.json"]
seed: 3
timeout: 3m
memory_limit: 1GiB
cache: true
jobs: 2
"""
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, 1.5, "", "x", "30m", "nchw", "a:b", ".html"),
    *([], ["x"], [1], [None], {}, {"a": 1}, {"max": 3}),
]
BEYOND_A_SCHEMA = "|".join(  # what depends on several keys, on what a text says inside, or on what there is
    [
        *("min <= opt <= max", "no dimension", "unknown type", "give min or max", "is used nowhere", "matrix", "with "),
        *("is not a number with a unit", "is not available", "is of a metric", "needs verification", "to leave out"),
        *("must end in", "does not fit target", "is the source itself", "would both", "is not measured here", "is a f"),
        *("--skip", "--opset", "emits", "no shipped pipeline", "cannot import", "not followed by", "[Uu]nknown"),
    ]
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value in a file."""
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutant(data: Any, random: Random) -> Any:
    """Return a copy of a file in which one value is another, is gone, or has another key."""
    changed = copy.deepcopy(data)
    *way, last = random.choice(list(places(data)))
    node = changed
    for key in way:
        node = node[key]
    kind = random.choice(["set", "set", "set", "delete", "rename", "more"])
    if kind == "delete":
        del node[last]
    elif kind == "rename" and isinstance(node, dict):
        node[f"{last}x"] = node.pop(last)
    elif kind == "more" and isinstance(node[last], dict):
        node[last]["zzz"] = random.choice(VALUES)
    else:
        node[last] = random.choice(VALUES)
    return changed


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("seed", range(4))
def test_the_reader_and_the_schema_agree_on_files_with_a_mistake(tmp_path: Path, seed: int) -> None:
    from infconv.runs import plan_all

    random, path = Random(seed), tmp_path / "p.yaml"
    texts = [*RIGHT.values(), EVERYTHING, *(file.read_text() for file in EXAMPLES if "bert" not in file.name)]
    files = [yaml.safe_load(text) for text in texts]
    refused = 0
    for _ in range(60):
        data = mutant(random.choice(files), random)
        path.write_text(yaml.safe_dump(data))
        try:
            plan_all(load_run(path))
            told = ""
        except InfconvError as error:
            told = str(error)
        found = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(data)]
        refused += bool(found)
        assert told or not found, f"the schema alone refuses {data}: {found}"
        assert found or not told or re.search(BEYOND_A_SCHEMA, told), f"the reader alone refuses {data}: {told}"
    assert 10 < refused < 55


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_right(path: Path) -> None:
    assert [e.message for e in Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(path.read_text()))] == []
    assert load_run(path)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_pipeline_is_right(name: str) -> None:
    steps = {"source": {"path": "m.onnx"}, "targets": [{"target": "onnx"}], "steps": list(shipped()[name])}
    assert [e.message for e in Draft202012Validator(SCHEMA).iter_errors(steps)] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("opset", True), ("seed", False), ("timeout", True), ("source", {"path": "m", "inputs": {"x": [True]}})],
)
def test_true_is_no_number(tmp_path: Path, key: str, value: Any) -> None:
    data = yaml.safe_load(RIGHT["the least"]) | {key: value}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match="a number is wanted, not true or false"):
        load_run(tmp_path / "p.yaml")


def test_every_key_has_a_description() -> None:
    for name in ("PipelineFile", "TargetEntry", "TargetGates", "LatencyGate"):
        described = SCHEMA if name == "PipelineFile" else DEFINITIONS[name]
        for key, property in described["properties"].items():
            references = [choice["$ref"] for choice in property.get("anyOf", [property]) if "$ref" in choice]
            model = DEFINITIONS[references[0].rpartition("/")[2]] if references else {}
            assert property.get("description") or model.get("description"), f"{name}.{key}"
