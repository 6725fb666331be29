"""The pipeline file that `infconv init` writes: what the source says of itself, and the usual choices as comments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from infconv.convert import recognise
from infconv.convert._base import DimRange

_HEAD = """\
# A pipeline for infconv. Run it: infconv run {name}
# `infconv schema` describes every key; relative paths are relative to this file.
version: 1
source:
  path: {path}
"""
_NEEDS_INPUTS = """\
  # The file does not say the sizes of its inputs: a name is a dynamic dimension, a number a fixed size.
  inputs: {x: [batch, 3, 224, 224]}
"""
_WEIGHTS = "  # weights: model.safetensors       # a state dict or safetensors, loaded into what the function returns\n"
_REST = """\
# sample: samples.npz                 # real inputs for verification, from numpy.savez(path, input_name=array);
                                      # without it they are seeded and synthetic
targets:
  - {{target: onnx, output: out/{stem}.onnx}}
  # - {{target: onnxruntime, precision: fp16, output: out/{stem}.ort.fp16.onnx}}
  # - {{target: openvino, precision: fp16, output: out/{stem}.xml}}
  # - {{target: tensorrt, precision: fp16, output: out/{stem}.engine, options: {{compute_capability: [sm89]}}}}
verify: {{when: end}}                   # each: after every step; a step that breaks the result is dropped and named
# gates: {{size_mb: {{max: 30}}, latency_ms: {{max: 12, runtime: onnxruntime}}, baseline: baseline.json}}   # exit 6
# reports: [out/report.html, out/junit.xml]
# skip: [merge-duplicates]            # default steps to leave out; `infconv passes` lists them
# timeout: 30m
# memory_limit: 8GiB
"""


def starting_pipeline(source: str | None, file: Path) -> str:
    """Return the text of a pipeline `file` for `source`, which runs as it is where the source tells enough.

    Raises SourceError when the source is missing or no model.
    """
    path = source or "model.onnx"
    parts = _described(source) if source is not None else [_COMMENTED_DIMS]
    stem = re.sub(r"\W+", "_", Path(path.rpartition(":")[2]).stem) or "model"
    head = _HEAD.format(name=file, path=_inline(_relative(path, file.parent)))
    return "".join([head, *parts, _REST.format(stem=stem)])


_COMMENTED_DIMS = """\
  # dims: {batch: {min: 1, opt: 8, max: 32}}     # the sizes that dynamic dimensions will take
"""


def _described(source: str) -> list[str]:
    """Return the lines about the source: of an ONNX file its own inputs, of others what they need."""
    frontend, format = recognise(source)
    if frontend == "onnx":
        return _onnx_inputs(source)
    if "needs --input" not in _about(frontend, format):
        return [_COMMENTED_DIMS]
    return [_NEEDS_INPUTS, _COMMENTED_DIMS, *([_WEIGHTS] if format == "factory" else [])]


def _about(frontend: str, format: str) -> str:
    from infconv import registry

    return registry.get("frontend", frontend).formats[format]


def _onnx_inputs(source: str) -> list[str]:
    from infconv.census import numpy_name
    from infconv.model import load

    graph = load(source).graph
    fed = [value for value in graph.inputs if value.name not in graph.initializers]
    shapes: dict[str, Any] = {}
    lines = ["  # Its inputs; a name is a dynamic dimension. Uncomment to rename or to fix dimensions.\n"]
    for value in fed:
        shapes[value.name or ""] = [d if isinstance(d, int) else d.value for d in value.shape or ()]
        kind = "" if value.dtype is None else f"   # {numpy_name(value.dtype)}"
        lines.append(f"  #   {_inline({value.name: shapes[value.name or '']})}{kind}\n")
    lines[1:1] = ["  # inputs:\n"]
    return [*(lines if fed else []), *_dims(shapes)]


def _dims(shapes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a range for each dynamic dimension: in force for a batch, a comment for others, of which less is known."""
    names = list(dict.fromkeys(d for dims in shapes.values() for d in dims if isinstance(d, str)))
    if not names:
        return []
    batch = [name for name in names if DimRange().usual(name) == 2]
    lines = ["  dims:" + " " * 31 + "# the sizes that dynamic dimensions will take\n"] if batch else ["  # dims:\n"]
    for name in names:
        start = "    " if name in batch else "  #   "
        lines.append(f"{start}{_inline(name)}: {{min: 1, opt: 8, max: {32 if name in batch else 512}}}\n")
    return lines


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder) if Path(path).exists() and not Path(path).is_absolute() else path


def _inline(value: Any) -> str:
    """Return `value` as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    return text[1:-1] if isinstance(value, dict) else text
