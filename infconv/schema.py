"""The JSON schema of the pipeline file, for editors: every key, every step and every target with its options."""

from __future__ import annotations

from typing import Any

from infconv import registry
from infconv.options import ALIASES
from infconv.run_file import PipelineFile
from infconv.steps import shipped

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_STEP = {"$ref": "#/$defs/Step"}
_PLAIN = {"version", "extends", "sources", "matrix", "steps", "add", "repeat"}
"""Keys that take no reference: what they are must be known before references are."""
_REFERENCE = {
    "type": "string",
    "pattern": r"\$\{(env|matrix):[^{}]+\}",
    "description": "${env:NAME} or ${matrix:NAME}.",
}


def pipeline_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema, draft 2020-12)."""
    schema = PipelineFile.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    for key in ("steps", "add"):
        _set_items(schema["properties"][key], _STEP)
    definitions["Step"] = _step(definitions)
    _describe_targets(definitions)
    for source in ("SourceEntry", "ListedSource"):
        inputs: dict[str, Any] = definitions[source]["properties"]["inputs"]
        inputs["additionalProperties"]["anyOf"].append({"type": "string", "description": "e.g. batch,128:int64"})
    schema["properties"]["matrix"] = _matrix(schema["properties"]["matrix"])
    for described in (schema, *definitions.values()):
        _allow_references(described)
    del schema["required"]
    schema["anyOf"] = [
        {"required": ["source", "targets"]},
        {"required": ["sources", "targets"]},
        {"required": ["extends"]},
    ]
    return {"$schema": _DIALECT, **schema, "title": "infconv pipeline"}


def _matrix(described: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of `matrix`: lists of values, and the combinations that are left out."""
    exclude = {"type": "array", "items": {"type": "object"}, "minItems": 1, "description": "Combinations to leave out."}
    values = {"type": "array", "minItems": 1}
    return {**described, "properties": {"exclude": exclude}, "additionalProperties": values}


def _allow_references(described: dict[str, Any]) -> None:
    """Let `${env:NAME}` or `${matrix:NAME}` stand where anything but a text is wanted."""
    properties: dict[str, Any] = described.get("properties", {})
    for name, wanted in properties.items():
        if name not in _PLAIN and not _takes_texts(wanted):
            kept = {key: wanted[key] for key in ("description", "default") if key in wanted}
            properties[name] = {**kept, "anyOf": [*wanted.get("anyOf", [wanted]), _REFERENCE]}


def _takes_texts(wanted: dict[str, Any]) -> bool:
    choices = wanted.get("anyOf", [wanted])
    return any(choice.get("type") == "string" and not {"enum", "pattern"} & set(choice) for choice in choices)


def _set_items(found: dict[str, Any], items: dict[str, Any]) -> None:
    """Replace the items of a list, which may be one of several types."""
    for choice in (found, *found.get("anyOf", ())):
        if choice.get("type") == "array":
            choice["items"] = items


def _step(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a step: a name, or one name with its options."""
    passes = dict(registry.classes("pass"))
    named = [{"const": name, "description": kind.summary()} for name, kind in passes.items()]
    named += [{"const": name, "description": f"The shipped steps '{name}'."} for name in shipped()]
    options: dict[str, Any] = {name: _options(name, kind, definitions) for name, kind in passes.items()}
    options |= {name: {"type": ["object", "null"], "maxProperties": 0} for name in shipped()}
    options["repeat"] = {
        "description": "Run these steps again until none of them changes anything.",
        "type": "array",
        "items": _STEP,
    }
    return {
        "description": "A pass, a shipped pipeline, module:Class, or one name with options.",
        "anyOf": [
            *named,
            {"type": "string", "pattern": ":", "description": "module:Class of a pass of your own."},
            {
                "type": "object",
                "properties": options,
                "patternProperties": {":": {"type": ["object", "null"]}},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ],
    }


def _options(name: str, kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a step's options; what it defines itself goes to `definitions`."""
    schema: dict[str, Any] = kind.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    definitions |= {f"{name}.{inner}": found for inner, found in schema.pop("$defs", {}).items()}
    texts = kind.option_help()
    for option, described in schema.get("properties", {}).items():
        described["description"] = texts.get(option, "")
    _allow_references(schema)
    return {**schema, "description": kind.summary(), "type": ["object", "null"]}


def _describe_targets(definitions: dict[str, Any]) -> None:
    """List the targets, and what `options` may hold for each."""
    entry: dict[str, Any] = definitions["TargetEntry"]
    conditions: list[dict[str, Any]] = []
    names: list[str] = []
    for name, kind in registry.classes("exporter"):
        spellings = [name, *(alias for alias, full in ALIASES.items() if full == name)]
        options: dict[str, Any] = kind.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions |= {f"{name}.{inner}": found for inner, found in options.pop("$defs", {}).items()}
        _allow_lone(options)
        _allow_references(options)
        precision = {"anyOf": [{"enum": list(kind.precisions)}, _REFERENCE]}
        then = {"properties": {"options": options, "precision": precision}}
        conditions.append({"if": {"properties": {"target": {"enum": spellings}}}, "then": then})
        names += spellings
    entry["properties"]["target"]["enum"] = names
    entry["allOf"] = conditions


def _allow_lone(schema: dict[str, Any]) -> None:
    """Let one item stand for a list of it, as exporters do."""
    for name, described in schema.get("properties", {}).items():
        if described.get("type") == "array":
            lone = {key: value for key, value in described.items() if key in ("description", "default")}
            schema["properties"][name] = {**lone, "anyOf": [described, described["items"]]}
