"""Entries of the cache in a shared place: any file system that fsspec knows, such as s3:// or gs://.

An entry's files go to names of their own first; `<key>.json`, which names them, is written last and in one go. A reader
sees the whole entry or none, and of two writers the last one's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infconv.cache._local import LocalStore, read_record
from infconv.errors import UsageError, missing_extra


class RemoteStore:
    """Entries below a URL."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise missing_extra("fsspec", "remote", f"The cache '{url}'") from None
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"The cache '{url}' cannot be opened: {error}.", "Check the URL.") from error

    def _record(self, key: str) -> str:
        return f"{self._root}/{key[:2]}/{key}.json"

    def holds(self, key: str) -> bool:
        """Whether there is an entry."""
        return bool(self._files.exists(self._record(key)))

    def fetch(self, key: str, local: LocalStore) -> bool:
        """Copy the entry into the local store; return whether there is one. What came over is checked on use."""
        if not self.holds(key):
            return False
        record: dict[str, Any] = json.loads(self._files.cat_file(self._record(key)))

        def fill(stage: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
            for name in record["files"]:
                self._files.get_file(f"{record['place']}/{name}", str(stage / name))
                if local.digests.of(stage / name) != record["files"][name]:
                    raise ValueError(f"'{name}' of entry {key} is not what was stored")
            return record["data"], record["files"]

        local.put(key, record["kind"], record["about"], fill)
        return True

    def push(self, key: str, local: LocalStore) -> None:
        """Copy an entry of the local store, unless it is there."""
        if self.holds(key):
            return
        folder = local.folder / "entries" / key
        record = read_record(folder)
        place = f"{self._root}/{key[:2]}/{key}-{uuid.uuid4().hex}"
        self._files.makedirs(place, exist_ok=True)
        for name in record["files"]:
            self._files.put_file(str(folder / name), f"{place}/{name}")
        self._files.pipe_file(self._record(key), json.dumps({**record, "place": place}).encode())
