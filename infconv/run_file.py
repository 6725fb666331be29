"""From a pipeline file to the pipelines that it means, one for each source; every problem of it is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from infconv import pipeline_file
from infconv.anchor import anchored
from infconv.errors import UsageError
from infconv.explain import Problem, problems
from infconv.matrix import Expanded, expand, told, unknown_references
from infconv.pipeline_layers import Layers, read_layers, references
from infconv.quantize._calibration_options import CalibrationEntry
from infconv.spec import ALIASES, PipelineSpec, SourceEntry


class ListedSource(SourceEntry):
    """One of several sources, with what is its own."""

    sample: str | None = None
    """A .npz of real inputs, in place of the pipeline's."""
    calibration: CalibrationEntry | None = None
    """Calibration data, in place of the pipeline's."""


class PipelineFile(PipelineSpec):
    """A pipeline file: a pipeline, and what makes several of it."""

    extends: str | list[str] | None = None
    """A pipeline file, or a shipped pipeline's name, or several, that this file goes on top of."""
    sources: list[ListedSource] = Field(default=[], min_length=1)
    """Several sources in place of one; each is made for every target."""
    matrix: dict[str, list[Any]] = {}
    """Names of lists, whose values `${matrix:NAME}` stands for; `exclude` lists combinations to leave out."""


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> list[PipelineSpec]:
    """Return the pipelines of a file, each with one source; relative paths are relative to the file that says them.

    `overrides` are KEY=VALUE, as `--set` takes them. Raises UsageError that lists every problem of keys, values and
    steps, each with its line.
    """
    path = Path(path)
    layers = read_layers(path, overrides)
    expanded, found = expand(layers.data)
    found += unknown_references(layers.data)
    specs: list[PipelineSpec] = []
    for each in expanded:
        own = Path(path).parent
        data = anchored(each.data, lambda keys, each=each: layers.folder_of(each.origin(keys)), own)
        try:
            specs.append(PipelineSpec.model_validate(data))
        except ValidationError as error:
            found += _told(problems(error, PipelineFile, each.data), each, layers)
        found += _told(pipeline_file.unknown_names(each.data, ALIASES), each, layers)
    layers.refuse(found)
    return specs


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> PipelineSpec:
    """Do as `load_run`, for a file with one source."""
    specs = load_run(path, overrides)
    if len(specs) != 1:
        raise UsageError(f"'{path}' has {len(specs)} sources, where one is needed.", "`infconv run` takes several.")
    return specs[0]


def _told(found: Sequence[Problem], expanded: Expanded, layers: Layers) -> list[Problem]:
    """Return the problems by where the file says what is wrong, with the matrix values that made it wrong."""
    return [
        Problem(expanded.origin(each.path), each.fact + _values(each, expanded, layers.data)) for each in found
    ]


def _values(problem: Problem, expanded: Expanded, data: Any) -> str:
    node: Any = data
    for key in expanded.origin(problem.path):
        inside = (isinstance(node, dict) and key in node) or (isinstance(node, list) and isinstance(key, int))
        if not inside:
            return ""
        node = node[key]
    if problem.path[:1] != ("targets",) or len(problem.path) < 2:
        return ""
    combination = expanded.combinations[int(problem.path[1])]
    named = {r.removeprefix("matrix:").split(".")[0] for r in references(node) if r.startswith("matrix:")}
    used = {name: value for name, value in combination.items() if name in named}
    return f" (with {told(used)})" if used and "?" not in problem.fact else ""
