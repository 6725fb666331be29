"""From a pipeline file to the pipelines that it means, one for each source; every problem of it is told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError

from infconv import pipeline_file
from infconv.anchor import anchored
from infconv.errors import UsageError
from infconv.explain import Problem, problems
from infconv.matrix import Expanded, axes_in, expand, told, unknown_references
from infconv.options import ALIASES
from infconv.pipeline_layers import Layers, read_layers
from infconv.quantize._calibration_options import CalibrationEntry
from infconv.spec import PipelineSpec, SourceEntry
from infconv.urls import is_url


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
    matrix: dict[str, list[Any]] = Field(default={})
    """Names of lists, whose values `${matrix:NAME}` stands for; `exclude` lists combinations to leave out."""


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> list[PipelineSpec]:
    """Return the pipelines of a file, each with one source; relative paths are relative to the file that says them.

    `overrides` are KEY=VALUE, as `--set` takes them. Raises UsageError that lists every problem of keys, values and
    steps, each with its line.
    """
    if is_url(str(path)):
        raise UsageError(f"The pipeline '{path}' is at a URL; pipelines are read from files.", "Copy it here first.")
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
    return [Problem(expanded.origin(each.path), each.fact + _values(each, expanded, layers.data)) for each in found]


def _values(problem: Problem, expanded: Expanded, data: Any) -> str:
    """Return the matrix values that are at the problem's place: ` (with n=many)`."""
    if problem.path[:1] != ("targets",) or len(problem.path) < 2 or "?" in problem.fact:
        return ""
    node: Any = data
    for key in expanded.origin(problem.path):
        if isinstance(node, Mapping):
            node = cast("Mapping[Any, Any]", node).get(key)
        elif isinstance(node, list) and isinstance(key, int):
            node = cast("list[Any]", node)[key]
    used = {name: value for name, value in expanded.combinations[int(problem.path[1])].items() if name in axes_in(node)}
    return f" (with {told(used)})" if used else ""
