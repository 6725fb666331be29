"""Frontends (`from_*`) and exporters (`to_*`): one file each, the file is the registration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infconv import registry
from infconv.errors import SourceError, UsageError, did_you_mean

if TYPE_CHECKING:
    from infconv.convert._base import Source, SourceRequest
    from infconv.spec import PipelineSpec

__all__ = ["open_source", "recognise"]


def recognise(source: str, frontend: str | None = None) -> tuple[str, str]:
    """Return (frontend, format) of `source`, judged by its content.

    Raises SourceError when it is missing or no frontend reads it, UsageError for an unknown `frontend`.
    """
    names = registry.names("frontend")
    if frontend is not None and frontend not in names:
        raise UsageError(f"Unknown frontend '{frontend}'.", did_you_mean(frontend, names))
    for name in [frontend] if frontend else names:
        format = registry.get("frontend", name).recognise(source)
        if format is not None:
            return name, format
    raise _not_recognised(source, frontend)


def _not_recognised(source: str, frontend: str | None) -> SourceError:
    path = Path(source)
    if not path.exists() and ":" not in source:
        return SourceError(f"'{source}' does not exist.", "Check the path.")
    if path.is_dir() and not any(path.iterdir()):
        return SourceError(f"'{source}' is an empty folder: there is no model in it.")
    reader = f"frontend {frontend} does not read" if frontend else "no frontend reads"
    kind = "folder" if path.is_dir() else "file"
    return SourceError(
        f"'{source}' is not a model: {reader} this {kind}.",
        "`infconv frontends` lists what can be read; --frontend NAME overrides the recognition.",
    )


def open_source(spec: PipelineSpec, workdir: Path) -> Source:
    """Recognise the source and open it with its frontend. The caller closes it."""
    name, format = recognise(spec.source.path, spec.source.frontend)
    return registry.get("frontend", name)().open(_request(spec, format), workdir)


def _request(spec: PipelineSpec, format: str) -> SourceRequest:
    from infconv.convert._base import SourceRequest

    entry = spec.source
    return SourceRequest(
        source=entry.path,
        format=format,
        inputs=entry.input_specs(),
        dims=entry.dim_ranges(),
        weights=entry.weights,
        sample=spec.sample,
        trust_pickle=entry.trust_pickle,
        python=entry.python,
        options=entry.options,
        seed=spec.seed,
    )
