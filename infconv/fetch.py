"""Fetch what a URL names, with the files that belong to it, into the cache or a folder of scratch."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from infconv import remote
from infconv.cache import Cache
from infconv.cache._keys import digest_of
from infconv.errors import InfconvError, SourceError
from infconv.external_files import external_locations
from infconv.urls import join, name_of, parent_of

_VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "version_id", "VersionId", "content_md5", "Content-MD5")
"""What file systems call that which changes with a file's content. A time of change may be too coarse for that."""
_COMPANIONS = {
    ".json": (".pdiparams",),
    ".pdmodel": (".pdiparams",),
    ".pdiparams": (".json", ".pdmodel"),
    ".xml": (".bin",),
}
"""Suffix -> suffixes of files of the same name that belong to it, where they are there."""


class Fetcher:
    """Fetches files and folders; with a cache, a version that was fetched before is taken from there."""

    def __init__(self, scratch: Path, cache: Cache | None = None) -> None:
        self._scratch, self._cache = scratch, cache

    def fetch(self, url: str, kind: type[InfconvError] = SourceError) -> Path:
        """Return the local copy of a file or folder, of the same name; it stays as long as scratch and cache do.

        Beside a file are those that belong to it: external data of ONNX, Paddle's parameters, weights of an IR. Raises
        an error of `kind` when it is not there or cannot be read, ResourceError for a full disk.
        """
        name, found = name_of(url), remote.listing(url, kind)
        if "" in found:
            return self._fetch_file(url, found[""], kind) / name
        places = {f"{name}/{inner}": join(url, inner) for inner in found}
        versions = {f"{name}/{inner}": _version(info) for inner, info in found.items()}
        return self._kept(url, versions, places, kind) / name

    def _fetch_file(self, url: str, info: Mapping[str, Any], kind: type[InfconvError]) -> Path:
        """Return the folder of a file and what belongs to it."""
        name, folder = name_of(url), parent_of(url)
        version = _version(info)
        names = self._known_externals(url, version)
        first: Path | None = None
        if names is None:
            first = self._new() / name
            remote.fetch_file(url, first, kind)
            with contextlib.suppress(SourceError):  # not a model: whoever opens it says so
                names = external_locations(first)
            self._remember_externals(url, version, names or [])
        same = [str(Path(name).with_suffix(suffix)) for suffix in _COMPANIONS.get(Path(name).suffix, ())]
        places = {name: url}
        versions = {name: version}
        for other in (*same, *(names or ())):
            place = join(folder, other)
            if remote.is_file(place):  # one that is needed and missing is told of when the model is opened
                places[other], versions[other] = place, _version(remote.listing(place)[""])
        return self._kept(url, versions, places, kind, first)

    def _new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def _kept(
        self,
        url: str,
        versions: Mapping[str, list[Any]],
        places: Mapping[str, str],
        kind: type[InfconvError],
        first: Path | None = None,
    ) -> Path:
        """Return a folder with the files at `places`, by their names in it; `first` is one that is here already."""
        download = partial(_download, places, kind, first)
        if self._cache is not None and all(versions.values()):
            key = digest_of(["fetched", url, versions])
            if not self._cache.holds(key):
                self._cache.put(key, "fetched", url, lambda stage: _filled(stage, download, places, versions))
            entry = self._cache.get(key)
            if entry is not None:
                return entry.folder
        folder = self._new()
        download(folder)
        return folder

    def _known_externals(self, url: str, version: list[Any]) -> list[str] | None:
        """Return the external files that the model at `url` names; None when it was not read yet."""
        if not url.partition("?")[0].endswith(".onnx"):
            return []
        entry = self._cache.get(digest_of(["externals", url, version])) if self._cache and version else None
        return None if entry is None else entry.data["names"]

    def _remember_externals(self, url: str, version: list[Any], names: list[str]) -> None:
        if self._cache is not None and version:
            key = digest_of(["externals", url, version])
            self._cache.put(key, "fetched", f"the names of files that {url} needs", lambda _: ({"names": names}, {}))


def _download(places: Mapping[str, str], kind: type[InfconvError], first: Path | None, folder: Path) -> None:
    for name, place in places.items():
        if first is not None and first.name == name and first.exists():
            shutil.move(first, folder / name)
        else:
            remote.fetch_file(place, folder / name, kind)


def _filled(
    stage: Path,
    download: Callable[[Path], None],
    places: Mapping[str, str],
    versions: Mapping[str, list[Any]],
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Fill an entry of the cache. Raises ValueError, which leaves it out, when a file changed while it was read."""
    download(stage)
    for name, place in places.items():
        if _version(remote.listing(place)[""]) != versions[name]:
            raise ValueError(f"'{place}' changed while it was read")
    return {}, {}


def _version(info: Mapping[str, Any]) -> list[Any]:
    """Return what tells a file's versions apart; empty where the file system does not."""
    told = {name: str(info[name]) for name in _VERSIONS if info.get(name) and not str(info[name]).startswith("W/")}
    return [info.get("size"), told] if told else []
