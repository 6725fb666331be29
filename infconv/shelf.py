"""What a run finds in the cache and leaves there: the opened source, graphs after steps, finished artifacts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.cache import Cache, Entry, find_cache
from infconv.cache._codec import decode, encode, load_arrays, save_arrays
from infconv.cache._digests import copy_hashed
from infconv.cache._keys import NotCacheable, StepKeys, artifact_key, digest_of, request_key, why_not
from infconv.convert._base import Source
from infconv.errors import InfconvError
from infconv.kept_graphs import Graphs, lasting
from infconv.observe import Observers
from infconv.result import Artifact

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from infconv.passes import Context
    from infconv.planning import Job
    from infconv.reference import Reference
    from infconv.spec import PipelineSpec

_SOURCE = ("producer", "notes", "attempts", "versions", "dims", "log", "value_limits")
_TELLING = ("producer", "notes", "versions", "dims", "value_limits")
"""Those that what is made may depend on; the others tell how opening went, with its seconds."""
_MODEL = "model.onnx"


class Shelf:
    """The cache as one pipeline sees it. `digests` and entries are shared by its jobs."""

    worth_seconds = 1.0
    """A graph is stored when it takes longer than this to make it again."""

    def __init__(self, cache: Cache, spec: PipelineSpec) -> None:
        self.cache, self._spec = cache, spec
        self.request = ""
        """The key of the source's opening; empty where that is not cacheable, for the reason in `why_not`."""
        self.why_not = ""
        self.identity = ""
        """The digest of the opened source and its reference, once it is known."""
        self._opened: Entry | None = None
        self._companions: Mapping[str, str] = {}
        """The files of the source that its path does not name, and their digests."""
        try:
            self.request = request_key(spec, cache.digests)
        except (NotCacheable, InfconvError) as error:  # opening it tells the user
            self.why_not = why_not(error)

    def close(self) -> None:
        """Let go of what is in use."""
        self.cache.close()

    # --- the opened source -----------------------------------------------------------------------------------------

    def find_opened(self) -> bool:
        """Look for the opened source; return whether it is there."""
        if self._opened is None and self.request:
            entry = self.cache.get(self.request)
            if entry is not None and self._are_current(entry.data["companions"]):
                self._opened, self.identity = entry, entry.data["identity"]
                self._companions = entry.data["companions"]
        return self._opened is not None

    def unchanged(self) -> bool:
        """Whether the source still is the one that was opened: what was made of another has no key."""
        try:
            same = not self.request or request_key(self._spec, self.cache.digests) == self.request
        except (NotCacheable, InfconvError):
            return False
        return same and self._are_current(self._companions)

    def _are_current(self, companions: Mapping[str, str]) -> bool:
        """Whether the files that the source's path does not name, such as external weights, are as they were."""
        folder = Path(self._spec.source.path).absolute().parent
        try:
            return all(self.cache.digests.of(folder / name) == old for name, old in companions.items())
        except OSError:
            return False

    def stored_source(self, reopen: Callable[[], Source]) -> Source | None:
        """Return the source as it was opened; None when it is not there, or is its own ONNX form."""
        if self._opened is None or not self._opened.data["exported"]:
            return None
        kind = _StoredSourceInPlace if self._opened.data["inputs_applied"] else StoredSource
        source = kind(self._opened.folder / _MODEL, decode(self._opened.data["source"], {}), reopen)
        folder = Path(self._spec.source.path).absolute().parent
        source.files = [folder / name for name in self._opened.data["files"]]
        return source

    def stored_reference(self) -> Reference | None:
        """Return the reference of the opened source; None when there is none, as with `--verify off`."""
        assert self._opened is not None
        return decode(self._opened.data["reference"], load_arrays(self._opened.folder))

    def keep_opened(self, source: Source, reference: Reference | None) -> None:
        """Store an opened source and its reference, where that is possible; its identity is known from now on."""
        digests = self.cache.digests
        files = _model_files(source.model_path)
        arrays: dict[str, Any] = {}
        try:
            told = {name: encode(getattr(source, name), arrays) for name in _SOURCE}
            encoded = encode(reference, arrays)
        except TypeError as error:
            self.why_not, self.request = f"its reference cannot be stored: {error}", ""
            return
        model = [digests.of(file) for file in files]
        numbers = {name: _digest_array(array) for name, array in arrays.items()}
        own = {name: told[name] for name in _TELLING}
        self.identity = digest_of([model, source.inputs_applied, own, encoded, numbers])
        if not self.request:
            return
        self._companions = self._digest_companions(source, files)
        if not self.unchanged():
            self.request = self.identity = ""
            self.why_not = "the source changed while it was opened"
            return
        exported = not source.is_onnx or source.inputs_applied
        path = Path(self._spec.source.path).absolute()

        def fill(stage: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
            save_arrays(arrays, stage)
            known = _copy_model(files, stage) if exported else {}
            data = {
                "identity": self.identity,
                "exported": exported,
                "inputs_applied": source.inputs_applied,
                "source": told,
                "reference": encoded,
                "companions": self._companions,
                "files": [_named_from(path, file) for file in source.files],
            }
            return data, known

        self.cache.put(self.request, "opened", self._spec.source.label(), fill)

    def _digest_companions(self, source: Source, files: Sequence[Path]) -> dict[str, str]:
        """Return name -> digest of the files that belong to the source beside the one that its path names."""
        path = Path(self._spec.source.path).absolute()
        beside = [*source.files, *(files if source.is_onnx and not source.inputs_applied else ())]
        others = {file.absolute() for file in beside} - {path}
        return {_named_from(path, file): self.cache.digests.of(file) for file in sorted(others)}

    # --- graphs ------------------------------------------------------------------------------------------------------

    def graphs(self, job: Job, model: ir.Model, context: Context) -> Graphs | None:
        """Return the graphs between the steps of `job`, which start from `model`; None when they are not cacheable."""
        if not self.identity:
            return None
        try:
            keys = StepKeys(self._spec, job, self.identity, self.request, self.cache.digests)
        except NotCacheable:
            return None
        return Graphs(self, keys, job, model, context, self._spec)

    def still(self, keys: StepKeys, count: int, job: Job) -> bool:
        """Whether the graph after `count` steps still has the key that it had before they ran."""
        now = StepKeys(self._spec, job, self.identity, self.request, self.cache.digests)
        return now.key(count) == keys.key(count) and self.unchanged()

    # --- artifacts ---------------------------------------------------------------------------------------------------

    def artifact_key(self, job: Job) -> str:
        """Return the key of the artifact of `job`; empty when it is not known or not cacheable."""
        try:
            return (
                artifact_key(self._spec, job, self.identity, self.request, self.cache.digests) if self.identity else ""
            )
        except NotCacheable:
            return ""

    def find_artifact(self, job: Job) -> Artifact | None:
        """Return the artifact of `job`, put where it belongs, if it was made and verified with the same of everything.

        An output that is there already and has its bytes is left alone.
        """
        key = self.artifact_key(job)
        entry = self.cache.get(key) if key else None
        if entry is None:
            return None
        artifact = _moved(decode(entry.data["artifact"], {}), job, self._spec.source.label())
        manifest = _manifest(entry.data["manifest"], artifact, self._spec, job)
        self._publish(entry, artifact, manifest, job)
        return dataclasses.replace(artifact, cached=True)

    def _publish(self, entry: Entry, artifact: Artifact, manifest: str, job: Job) -> None:
        from infconv.publish import publish, staging

        folder = job.output.parent
        names = [Path(path).name for path in (*artifact.files, *artifact.documents)]
        missing = [] if all(self._is_there(folder / n, entry.files[n]) for n in names) else names
        place = Path(artifact.manifest)
        if not missing and place.is_file() and place.read_text(encoding="utf-8") == manifest:
            return
        with staging(job.output) as stage:
            for name in missing:
                copied = copy_hashed(entry.folder / name, stage / name)
                if copied != entry.files[name]:
                    raise InfconvError(f"'{entry.folder / name}' changed while it was read.", "Run it again.")
            (stage / place.name).write_text(manifest, encoding="utf-8")
            publish([stage / name for name in (*missing, place.name)], folder)
        self.learn(folder, {name: entry.files[name] for name in missing})

    def _is_there(self, path: Path, digest: str) -> bool:
        try:
            return path.is_file() and self.cache.digests.of(path) == digest
        except OSError:
            return False

    def keep_artifact(
        self, key: str, job: Job, artifact: Artifact, files: Sequence[Path], manifest: Path
    ) -> dict[str, str]:
        """Store a finished and verified artifact, which is still in staging; return the digests of its files.

        `key` is that of before it was made: when a file that it depends on changed meanwhile, nothing is stored.
        """
        if not key or not lasting(artifact.steps, self._spec):
            return {}
        if self.artifact_key(job) != key or not self.unchanged():
            return {}
        document = json.loads(manifest.read_text(encoding="utf-8"))
        known = {name: entry["sha256"] for name, entry in document["artifact"].items()}

        def fill(stage: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
            for file in files:
                if copy_hashed(file, stage / file.name) != known[file.name]:
                    raise ValueError(f"'{file}' changed while it was read")
            return {"artifact": encode(artifact, {}), "manifest": document}, known

        about = f"{self._spec.source.label()} {job.exporter.target} {job.entry.precision}"
        self.cache.put(key, "artifact", about, fill)
        return known

    def learn(self, folder: Path, digests: Mapping[str, str]) -> None:
        """Remember the digests of files that were just published."""
        try:
            self.cache.digests.learn({folder / name: digest for name, digest in digests.items()})
        except OSError as error:
            self.cache.notes.append(f"The cache cannot be written: {error}.")

    # --- looking ahead -----------------------------------------------------------------------------------------------

    def state(self, job: Job) -> str:
        """Return in a few words what of `job` is there, without making anything."""
        if not self.request:
            return f"no: {self.why_not}"
        if not self.find_opened():
            return "-"
        try:
            key = artifact_key(self._spec, job, self.identity, self.request, self.cache.digests)
            keys = StepKeys(self._spec, job, self.identity, self.request, self.cache.digests)
        except NotCacheable as error:
            return f"source; the rest not: {error}"
        if self.cache.holds(key):
            return "artifact"
        count = keys.longest(self.cache)
        return f"source, {count} of {len(job.steps)} steps" if count else "source"


def open_shelf(spec: PipelineSpec, watch: Observers | None = None) -> Shelf | None:
    """Return the shelf of `spec`, None when it uses no cache. At first the source is read whole for its digest."""
    cache = find_cache(spec.cache)
    if cache is None:
        return None
    with (watch or Observers()).stage("look for the source in the cache"):
        return Shelf(cache, spec)


class StoredSource(Source):
    """A source as an earlier run opened it. The original is opened again when something wants to run it."""

    def __init__(self, model_path: Path, told: Mapping[str, Any], reopen: Callable[[], Source]) -> None:
        self.model_path = model_path
        self.producer, self.notes, self.attempts = told["producer"], told["notes"], told["attempts"]
        self.versions, self.dims, self.log = told["versions"], told["dims"], told["log"]
        self.value_limits = told["value_limits"]
        self._reopen = reopen
        self._original: Source | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run the original model."""
        if self._original is None:
            self._original = self._reopen()
        return self._original.run(inputs)

    def close(self) -> None:
        """Close the original, if it was opened."""
        if self._original is not None:
            self._original.close()


class _StoredSourceInPlace(StoredSource):
    inputs_applied = True


def _named_from(source: Path, file: Path) -> str:
    """Return the path of a file from the source's folder, where it is in it."""
    file = file.absolute()
    return str(file.relative_to(source.parent) if file.is_relative_to(source.parent) else file)


def _digest_array(array: Any) -> str:
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def _model_files(path: Path) -> list[Path]:
    """Return an ONNX file and the files of its external data."""
    from infconv.external_files import external_locations

    return [path, *(path.parent / location for location in external_locations(path))]


def _copy_model(files: Sequence[Path], stage: Path) -> dict[str, str]:
    """Copy an exported model, whose external data is in files beside it; return the digests."""
    names = [_MODEL, *(file.relative_to(files[0].parent).as_posix() for file in files[1:])]
    if any("/" in name for name in names):
        raise ValueError("its weights are in a folder below it")
    return {name: copy_hashed(file, stage / name) for name, file in zip(names, files, strict=True)}


def _moved(artifact: Artifact, job: Job, label: str) -> Artifact:
    """Return `artifact` as if it had been made for the output of `job`, from a source of that name."""
    folder = job.output.parent
    return dataclasses.replace(
        artifact,
        source=label,
        path=str(job.output),
        files=[str(folder / Path(path).name) for path in artifact.files],
        documents=[str(folder / Path(path).name) for path in artifact.documents],
        manifest=str(folder / Path(artifact.manifest).name),
    )


def _manifest(stored: Mapping[str, Any], artifact: Artifact, spec: PipelineSpec, job: Job) -> str:
    """Return the manifest's text, with the paths and the pipeline of this run and all else as it was."""
    from infconv.manifest import described

    return described({**stored, "source": {**stored["source"], "path": spec.source.path}}, artifact, spec, job.steps)
