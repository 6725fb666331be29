"""A pipeline whose files are at URLs, run on local ones: what it reads is fetched first, what it makes goes up last."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infconv import remote
from infconv.cache import Cache, find_cache
from infconv.errors import InfconvError, SourceError, UsageError
from infconv.fetch import Fetcher
from infconv.given import as_given, told
from infconv.observe import Observers
from infconv.planning import plan
from infconv.result import Artifact
from infconv.spec import PipelineSpec, to_data
from infconv.urls import is_url, join, name_of, parent_of

_READ = (
    (("source", "path"), SourceError),
    (("source", "weights"), SourceError),
    (("sample",), UsageError),
    (("calibration", "path"), UsageError),
    (("calibration", "text", "tokenizer"), UsageError),
)
"""The keys of what is read, and the class of failure when it is not there."""


@contextlib.contextmanager
def near(spec: PipelineSpec, watch: Observers) -> Generator[PipelineSpec]:
    """Yield `spec` with local files in place of URLs, which are fetched; outputs at URLs are folders of scratch.

    What is fetched stays until the end. An InfconvError speaks of the URLs. Raises SourceError, UsageError,
    ResourceError and DependencyError for what cannot be fetched.
    """
    if not uses_urls(spec):
        yield spec
        return
    with contextlib.ExitStack() as stack:
        cache = find_cache(spec.cache)
        if cache is not None:
            cache = Cache(cache.local, None, cache.limit)  # what comes from afar needs no copy in a shared cache
            stack.callback(cache.close)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infconv-remote-")))
        local = _localised(spec, _Places(scratch, cache, watch))
        try:
            yield local
        except InfconvError as error:
            as_given(error, local)
            raise


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Local paths of what is read, and what they stand for."""

    paths: list[str]
    urls: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])


@contextlib.contextmanager
def fetched(*places: str) -> Generator[Fetched]:
    """Yield the local paths of files that are read; what is fetched from URLs is gone afterwards."""
    if not any(map(is_url, places)):
        yield Fetched(list(places))
        return
    with tempfile.TemporaryDirectory(prefix="infconv-remote-") as scratch:
        local = _Places(Path(scratch), None, Observers())
        paths = [local.fetched(place, SourceError) if is_url(place) else place for place in places]
        try:
            yield Fetched(paths, local.urls)
        except InfconvError as error:
            told(error, local.urls)
            raise


class _Places:
    """Local places of URLs, and what they stand for."""

    def __init__(self, scratch: Path, cache: Cache | None, watch: Observers) -> None:
        self._scratch, self._fetcher, self._watch = scratch, Fetcher(scratch, cache), watch
        self.urls: dict[str, str] = {}
        """Local file or folder -> URL."""

    def fetched(self, url: str, kind: type[InfconvError]) -> str:
        with self._watch.stage(f"fetch {url}"):
            local = self._fetcher.fetch(url, kind)
        self.urls[str(local.parent)] = parent_of(url)
        self.urls[str(local)] = url
        return str(local)

    def output(self, url: str) -> str:
        """Return the local file for an artifact at `url`."""
        folder = parent_of(url)
        known = next((local for local, given in self.urls.items() if given == folder and "/out-" in local), None)
        place = Path(known) if known else self._scratch / f"out-{len(self.urls)}"
        place.mkdir(exist_ok=True)
        self.urls[str(place)] = folder
        return str(place / name_of(url))


def _localised(spec: PipelineSpec, places: _Places) -> PipelineSpec:
    data = to_data(spec)
    for keys, kind in _READ:
        _replace(data, keys, lambda url, kind=kind: places.fetched(url, kind))
    for target, job in zip(data["targets"], plan(spec), strict=True):
        _replace(target, ("output",), lambda _, job=job: places.output(job.place))
    for target in data["targets"]:
        _replace(target, ("precision_plan",), lambda url: places.fetched(url, UsageError))
    local = PipelineSpec.model_validate(data)
    local._stands_for = places.urls
    return local


def _replace(data: dict[str, Any], keys: tuple[str, ...], change: Callable[[str], str]) -> None:
    node: Any = data
    for key in keys[:-1]:
        node = node.get(key) or {}
    if is_url(node.get(keys[-1])):
        node[keys[-1]] = change(node[keys[-1]])


def uses_urls(spec: PipelineSpec) -> bool:
    """Whether a file that the pipeline reads or makes is at a URL."""
    return bool(_inputs(spec) or _outputs(spec))


def _inputs(spec: PipelineSpec) -> list[str]:
    data = to_data(spec)
    found: list[str | None] = [target.precision_plan for target in spec.targets]
    for keys, _ in _READ:
        node: Any = data
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        found.append(node)
    return [place for place in found if place is not None and is_url(place)]


def _outputs(spec: PipelineSpec) -> list[str]:
    return [t.output for t in spec.targets if t.output is not None and is_url(t.output)]


def refuse_lost(specs: Sequence[PipelineSpec], *, elsewhere: bool = False) -> None:
    """Raise UsageError for outputs in a memory that ends before anybody sees them; `elsewhere`: of another process."""
    for spec in specs:
        forked = elsewhere or spec.timeout or spec.memory_limit or spec.jobs not in {None, 1}
        for url in _outputs(spec) if forked else ():
            if url.startswith("memory://"):
                raise UsageError(
                    f"The output '{url}' is in the memory of a process that ends with the conversion.",
                    "Use memory:// in Python, without jobs, timeout and memory_limit; or name another place.",
                )


def deliver(artifact: Artifact, spec: PipelineSpec, watch: Observers) -> None:
    """Copy a finished artifact to the URL that it is for, unless it is there. Raises UsageError, ResourceError."""
    local = Path(artifact.path)
    folder = spec.stands_for.get(str(local.parent))
    if folder is None:
        return
    with watch.stage(f"copy to {join(folder, local.name)}"):
        files = [Path(path) for path in (*artifact.files, *artifact.documents)]
        if not remote.is_current(files, folder, Path(artifact.manifest)):
            remote.upload([*files, Path(artifact.manifest)], folder)
