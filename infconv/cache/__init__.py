"""A content-addressed cache of results: opened sources, graphs after their steps, finished artifacts.

What is in it can be made again, and nothing depends on it: without the cache a run gives the same bytes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.cache._local import Damaged, Entry, Fill, LocalStore
from infconv.environments import cache_folder
from infconv.errors import UsageError

if TYPE_CHECKING:
    from infconv.cache._remote import RemoteStore

__all__ = ["DEFAULT_LIMIT", "Cache", "Entry", "find_cache"]

DEFAULT_LIMIT = 10 * 10**9
"""Bytes on the local disk, unless INFCONV_CACHE_SIZE says otherwise."""
_OFF = frozenset({"off", "0", "no", "false", "none"})


class Cache:
    """Entries by key: in a local folder, and where there is one in a shared place behind it."""

    def __init__(self, local: LocalStore, remote: RemoteStore | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.local, self.remote, self.limit = local, remote, limit
        self.notes: list[str] = []
        """What the user should know: what was damaged, what could not be stored."""
        self._opened = time.time()

    @property
    def digests(self) -> Any:
        """Return the digests of files."""
        return self.local.digests

    def holds(self, key: str) -> bool:
        """Whether there is an entry, which is not looked at."""
        return self.local.holds(key) or (self.remote is not None and self.remote.holds(key))

    def get(self, key: str) -> Entry | None:
        """Return the entry, whose files are what was stored; None when there is none, or a damaged one.

        It stays until `close`.
        """
        entry = self._checked(key)
        if entry is None and self.remote is not None and self._fetch(key, self.remote):
            entry = self._checked(key)
        return entry

    def _checked(self, key: str) -> Entry | None:
        try:
            return self.local.get(key)
        except Damaged as error:
            self.notes.append(f"An entry of the cache is damaged and is made anew: {error}.")
        except OSError as error:
            self.notes.append(f"The cache cannot be read: {error}.")
        return None

    def _fetch(self, key: str, remote: RemoteStore) -> bool:
        try:
            return remote.fetch(key, self.local)
        except Exception as error:  # every file system of fsspec raises errors of its own
            self.notes.append(f"The cache '{remote.url}' cannot be read: {type(error).__name__}: {error}.")
            return False

    def put(self, key: str, kind: str, about: str, fill: Fill) -> bool:
        """Store an entry, which is there whole or not at all; return whether it is. A full disk is no error."""
        try:
            self.local.put(key, kind, about, fill)
        except (OSError, TypeError, ValueError) as error:
            self.notes.append(f"The {kind} of {about} cannot be cached: {error}.")
            return False
        if self.remote is not None:
            try:
                self.remote.push(key, self.local)
            except Exception as error:  # as above
                self.notes.append(f"The cache '{self.remote.url}' cannot be written: {type(error).__name__}: {error}.")
        return True

    def close(self) -> None:
        """Let go of the entries in use, and keep within the limit."""
        self.local.release()
        if self.local.changed() >= self._opened:
            self.local.trim(self.limit)


def find_cache(asked: bool | str | None, *, default: bool = False) -> Cache | None:
    """Return the cache that a run uses, None for none.

    `asked`: True, False, a folder or a URL that fsspec knows, None when the user said nothing. Then INFCONV_CACHE
    decides in the same words (`on`, `off`, a folder, a URL), or else `default`. Raises UsageError, DependencyError.
    """
    named = os.environ.get("INFCONV_CACHE", "")
    if asked is None:
        asked = named.lower() not in _OFF if named else default
    if asked is False:
        return None
    place = asked if isinstance(asked, str) else "" if named.lower() in {*_OFF, "", "on", "1", "yes", "true"} else named
    remote = None
    if "://" in place:
        from infconv.cache._remote import RemoteStore

        remote = RemoteStore(place)
    folder = Path(place).expanduser() if place and remote is None else cache_folder() / "results"
    return Cache(LocalStore(folder.absolute()), remote, _limit())


def _limit() -> int:
    from infconv import texts

    said = os.environ.get("INFCONV_CACHE_SIZE", "")
    try:
        return texts.memory(said) if said else DEFAULT_LIMIT
    except UsageError as error:
        raise UsageError(f"INFCONV_CACHE_SIZE: {error.message}", error.hint) from None
