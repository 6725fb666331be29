"""Entries of the cache on a local disk: a folder each, complete or absent, safe for any number of processes.

An entry is made in `new/` and renamed to `entries/<key>`; its `entry.json`, written last, has the digest of every file.
Whoever uses an entry holds a shared lock on that file, whoever removes one needs an exclusive lock, so that nothing is
removed under a reader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from infconv.cache._digests import Digests, files_in

RECORD = "entry.json"
_ABANDONED_SECONDS = 24 * 3600.0
"""What a killed process left in `new/` goes after so long."""
_FORGOTTEN_SECONDS = 90 * 24 * 3600.0
"""Remembered digests of files that were not asked for so long."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is stored under a key."""

    key: str
    kind: str
    """`opened`, `steps`, `artifact` or `fetched`."""
    about: str
    """What it is, for people."""
    folder: Path
    files: Mapping[str, str]
    """File, by its path in the folder -> SHA-256."""
    data: Mapping[str, Any]
    bytes: int
    used: float
    """When it was last used, as `time.time`."""


Fill: TypeAlias = Callable[[Path], tuple[Mapping[str, Any], Mapping[str, str]]]
"""Writes an entry's files; returns its data, which must be JSON, and the SHA-256 of the files where it is known."""


class Damaged(Exception):
    """An entry is not what was stored."""


class LocalStore:
    """Entries in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests = Digests(folder / "digests")
        self._entries = folder / "entries"
        self._locks: list[int] = []

    def holds(self, key: str) -> bool:
        """Whether there is an entry, which may turn out to be damaged."""
        return (self._entries / key / RECORD).is_file()

    def get(self, key: str) -> Entry | None:
        """Return the entry, in use from now on until `release`; None when there is none.

        Raises Damaged when its files are not what was stored; it is gone then.
        """
        folder = self._entries / key
        try:
            lock = os.open(folder / RECORD, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_SH)
        self._locks.append(lock)
        try:
            with contextlib.suppress(PermissionError):  # a cache that others fill
                os.utime(folder / RECORD)
            entry = _read(folder)
            self._check(entry)
        except FileNotFoundError:  # removed between two looks
            return None
        except (ValueError, KeyError, TypeError, Damaged) as error:
            self.release()
            self.remove(key)
            raise Damaged(str(error)) from error
        return entry

    def _check(self, entry: Entry) -> None:
        for name, digest in entry.files.items():
            file = entry.folder / name
            if not file.is_file() or self.digests.of(file) != digest:
                raise Damaged(f"'{file}' is not what was stored")

    def release(self) -> None:
        """Say that the entries that `get` returned are not used any more."""
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()

    def put(self, key: str, kind: str, about: str, fill: Fill) -> None:
        """Store what `fill` writes to the folder that it is given, and the data that it returns.

        An entry that is there already stays. Raises OSError.
        """
        new = self.folder / "new"
        new.mkdir(parents=True, exist_ok=True)
        self._entries.mkdir(exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=new))
        try:
            data, known = fill(stage)
            made = {file.relative_to(stage).as_posix(): file for file in files_in(stage)}
            files = {name: known.get(name) or self.digests.of(file) for name, file in made.items()}
            record = json.dumps({"kind": kind, "about": about, "files": files, "data": data})
            (stage / RECORD).write_text(json.dumps({"sha256": _digest(record), "record": record}), encoding="utf-8")
            with contextlib.suppress(OSError):  # another process stored the same: the one or the other
                stage.rename(self._entries / key)
                self.digests.learn({self._entries / key / name: digest for name, digest in files.items()})
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def changed(self) -> float:
        """Return when an entry was last stored or removed, by whatever process."""
        return self._entries.stat().st_mtime if self._entries.is_dir() else 0.0

    def entries(self) -> Iterator[Entry]:
        """Yield every entry, unchecked."""
        for folder in sorted(self._entries.glob("*")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # removed, or damaged: not an entry
                yield _read(folder)

    def remove(self, key: str) -> bool:
        """Remove an entry unless somebody uses it; return whether it is gone."""
        folder = self._entries / key
        with _locked(folder / RECORD) as free:
            if not free:
                return False
            away = Path(tempfile.mkdtemp(dir=self._made(self.folder / "new")))
            with contextlib.suppress(FileNotFoundError):
                folder.rename(away / "removed")
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _made(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def trim(self, most: int, older_than: float | None = None) -> tuple[int, int]:
        """Remove what was not used for `older_than` seconds, then what was used least recently, down to `most` bytes.

        Return how many were removed, and their bytes.
        """
        self._sweep()
        found = sorted(self.entries(), key=lambda entry: entry.used)
        total, now = sum(entry.bytes for entry in found), time.time()
        removed: list[Entry] = []
        for entry in found:
            stale = older_than is not None and now - entry.used >= older_than
            if (stale or total > most) and self.remove(entry.key):
                removed.append(entry)
                total -= entry.bytes
        return len(removed), sum(entry.bytes for entry in removed)

    def _sweep(self) -> None:
        """Remove what killed processes left, and digests that nobody asked for in a long time."""
        for folder, seconds in (("new", _ABANDONED_SECONDS), ("digests", _FORGOTTEN_SECONDS)):
            for path in (self.folder / folder).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > seconds:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_record(folder: Path) -> dict[str, Any]:
    """Return what an entry says of itself. Raises OSError, ValueError, KeyError or TypeError for a damaged one."""
    outer: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if _digest(outer["record"]) != outer["sha256"]:
        raise ValueError(f"'{folder / RECORD}' is not what was stored")
    return json.loads(outer["record"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(folder: Path) -> Entry:
    record = read_record(folder)
    sizes: Sequence[int] = [file.stat().st_size for file in files_in(folder)]
    used = (folder / RECORD).stat().st_mtime
    files, data = record["files"], record["data"]
    return Entry(folder.name, record["kind"], record["about"], folder, files, data, sum(sizes), used)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[bool]:
    """Try for the exclusive lock on `path`; yield whether nobody else uses it."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    except OSError:  # a file system without locks
        yield True
    else:
        yield True
    finally:
        os.close(lock)
