"""Earlier figures of artifacts, kept in a JSON file, and the artifacts themselves beside it for a fair race."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from infconv import remote
from infconv.errors import UsageError
from infconv.manifest import read_manifest
from infconv.plain import plain
from infconv.publish import digest
from infconv.result import Artifact, Figures, Latency
from infconv.urls import is_url, join, name_of, parent_of, split

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Past:
    """What the baseline knows of an artifact."""

    figures: Figures
    fingerprint: str
    """Of the artifact's files."""
    machine: Mapping[str, Any]
    """Where the latency was measured."""
    copy: str | None
    """Where the artifact of then is, when it is still there."""


class Baseline:
    """A baseline file, at a path or URL; it speaks of artifacts by their paths or URLs."""

    def __init__(self, place: str) -> None:
        self.place = place

    def check(self) -> None:
        """Raise UsageError when there is a file and it is no baseline."""
        for key, entry in self._read().items():
            self._past(key, entry)

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return remote.is_file(self.place)

    def past(self, artifact: str) -> Past | None:
        """Return the figures of then for the artifact of this place. Raises UsageError when the file is not valid."""
        key = self.key(artifact)
        entry = self._read().get(key)
        return None if entry is None else self._past(key, entry)

    def _past(self, key: str, entry: Any) -> Past:
        try:
            latency = entry["latency"] and Latency(**entry["latency"])
            figures = Figures(key, int(entry["nodes"]), int(entry["bytes"]), latency)
            copy = join(self._copy(entry["fingerprint"]), posixpath.basename(key))
            return Past(figures, entry["fingerprint"], entry["machine"], copy if remote.is_file(copy) else None)
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"{key}: {type(error).__name__} {error}") from error

    @property
    def copies(self) -> str:
        """The folder of the artifacts of then."""
        return join(parent_of(self.place), f"{Path(name_of(self.place)).stem}.artifacts")

    def _copy(self, fingerprint: str) -> str:
        return join(self.copies, fingerprint[:16])

    def key(self, artifact: str) -> str:
        """Return an artifact's name in the file: its path from the file's folder; a URL of another place as it is."""
        folder = parent_of(self.place)
        if not is_url(artifact) and not is_url(folder):
            return Path(os.path.relpath(artifact, folder)).as_posix()
        if is_url(artifact) and is_url(folder):
            (before, own, after), (scheme, base, rest) = split(artifact), split(folder)
            if (before, after) == (scheme, rest):
                return posixpath.relpath(own, base)
        return artifact

    def _read(self) -> dict[str, Any]:
        if not self.exists:
            return {}
        try:
            document: Any = json.loads(remote.read_text(self.place, UsageError))
            if document["baseline_version"] != _VERSION:
                raise self._broken(f"version {document['baseline_version']}")
            return dict(cast("Mapping[str, Any]", document["artifacts"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._broken(str(error)) from error

    def _broken(self, why: str) -> UsageError:
        return UsageError(f"'{self.place}' is not a baseline: {why}.", "Write it anew with --update-baseline.")

    def store(self, artifacts: Sequence[Artifact], figures: Sequence[Figures], *, update: bool) -> int:
        """Store the figures of artifacts: with `update` of all, else of those that the file lacks. Return how many."""
        known = {} if update and not self._is_valid() else self._read()
        measured = {each.artifact: each for each in figures}
        mine = {self.key(artifact.path): artifact for artifact in artifacts if artifact.path in measured}
        new = {key: artifact for key, artifact in mine.items() if update or key not in known}
        if not new:
            return 0
        for key, artifact in new.items():
            own = plain(measured[artifact.path])
            own_print = fingerprint(artifact)
            known[key] = {name: own[name] for name in ("nodes", "bytes", "latency")}
            known[key] |= {"fingerprint": own_print, "machine": machine()}
            if measured[artifact.path].latency is not None:
                self._keep(artifact, own_print)
        self._write(known)
        self._forget({entry["fingerprint"][:16] for entry in known.values()})
        return len(new)

    def _is_valid(self) -> bool:
        try:
            self.check()
        except UsageError:
            return False
        return True

    def _keep(self, artifact: Artifact, own_print: str) -> None:
        folder = self._copy(own_print)
        with tempfile.TemporaryDirectory(prefix="infconv-") as name:
            remote.write_files([remote.bring(file, Path(name)) for file in artifact.files], folder)

    def _write(self, known: Mapping[str, Any]) -> None:
        document = {"baseline_version": _VERSION, "artifacts": dict(sorted(known.items()))}
        remote.write_text(self.place, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def _forget(self, wanted: set[str]) -> None:
        """Remove the copies that no entry names any more."""
        for name in remote.names_in(self.copies):
            if name not in wanted:
                remote.remove_folder(join(self.copies, name))


def fingerprint(artifact: Artifact) -> str:
    """Return a digest of all the files that the artifact consists of."""
    if is_url(artifact.path):  # what went up is what its manifest says
        listed = read_manifest(artifact.manifest)["artifact"]
        digests = [listed[name_of(file)]["sha256"] for file in artifact.files]
    else:
        digests = [digest(Path(file)) for file in artifact.files]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def machine() -> dict[str, Any]:
    """Return what a latency depends on beside the model and the runtime: the processor and its cores."""
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
