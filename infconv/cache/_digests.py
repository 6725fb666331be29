"""Digests of files: SHA-256, remembered as long as the file is the one that was read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_REMEMBERED = 1 << 20
"""Files of fewer bytes are read again, which takes no longer than looking up."""
_SETTLED_SECONDS = 0.05
"""A file that was changed less long ago may be changed again without a new time stamp, which systems take from a clock
that ticks every 4 to 10 ms."""
_COARSE_SECONDS = 2.1
"""Likewise where time stamps are whole seconds, or even ones as on FAT."""
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What changes when a file's content does: the change time cannot be set back by a program."""

    bytes: int
    modified: int
    changed: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the stamp of `path`. Raises OSError."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)

    def settles_at(self) -> float:
        """Return the time (as `time.time`) from which on a further change would show in the stamp."""
        coarse = self.changed % 1_000_000_000 == 0 and self.modified % 1_000_000_000 == 0
        newest = max(self.changed, self.modified) / 1e9
        return newest + (_COARSE_SECONDS if coarse else _SETTLED_SECONDS)


class Digests:
    """Digests of files, kept in a folder: one small file for each path, replaced in one go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
        path = path.resolve()
        before = Stamp.of(path)
        if before.bytes < _REMEMBERED:
            return _read(path)
        known = self._known(path, before)
        if known is not None:
            return known
        found = _read(path)
        if Stamp.of(path) == before and time.time() > before.settles_at():
            self._remember(path, before, found)
        return found

    def is_known(self, path: Path) -> bool:
        """Whether the digest is known without reading the file."""
        stamp = Stamp.of(path)
        return stamp.bytes < _REMEMBERED or self._known(path.resolve(), stamp) is not None

    def learn(self, digests: Mapping[Path, str]) -> None:
        """Remember the digests of files that this process has just written, and that nobody else has touched since.

        Waits until a later change would show, at most a few hundredths of a second.
        """
        stamps = {path: Stamp.of(path) for path in (p.resolve() for p in digests)}
        large = {path: stamp for path, stamp in stamps.items() if stamp.bytes >= _REMEMBERED}
        latest = max((stamp.settles_at() for stamp in large.values()), default=0.0)
        wait = latest - time.time()
        if wait > _SETTLED_SECONDS:
            return  # a file system with coarse time stamps: the files are read once more when they are needed
        time.sleep(max(0.0, wait))
        by_path = {path.resolve(): digest for path, digest in digests.items()}
        for path, stamp in large.items():
            if Stamp.of(path) == stamp:
                self._remember(path, stamp, by_path[path])

    def _file(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"

    def _known(self, path: Path, stamp: Stamp) -> str | None:
        try:
            record: Any = json.loads(self._file(path).read_text(encoding="utf-8"))
            same = record["path"] == str(path) and Stamp(**record["stamp"]) == stamp
        except (OSError, ValueError, KeyError, TypeError):
            return None  # never remembered, or a record of another version: the file is read
        return record["sha256"] if same else None

    def _remember(self, path: Path, stamp: Stamp, digest: str) -> None:
        record = {"path": str(path), "stamp": dataclasses.asdict(stamp), "sha256": digest}
        write_atomically(self._file(path), json.dumps(record).encode())


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by a file with `data`: others see the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def copy_hashed(origin: Path, place: Path) -> str:
    """Copy a file and return the SHA-256 of what was copied. Raises OSError."""
    state = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with origin.open("rb") as reader, place.open("wb") as writer:
        while count := reader.readinto(buffer):
            state.update(buffer[:count])
            writer.write(buffer[:count])
    return state.hexdigest()


def files_in(path: Path) -> Iterator[Path]:
    """Yield `path` itself when it is a file, else the files of the folder at every depth, in order."""
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    else:
        yield path
