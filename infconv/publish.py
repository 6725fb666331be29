"""Write artifacts beside their final name and rename them into place when they are complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from infconv.errors import ResourceError, UsageError

_PREFIX = ".infconv-"
_SESSION = "INFCONV_SESSION"
"""Environment variable: the folder in which staging folders are recorded, so that a killed run's can be removed."""
_ALIVE = "alive"
"""The file in a staging folder that its run holds a lock on. A process number would mean nothing in another container
or on another machine that shares the disk; the lock goes with the process wherever it ran."""
_ABANDONED_SECONDS = 24 * 3600.0
"""A staging folder without the file, whose run was killed while it made it, is left alone for so long."""
_LOCK = ".infconv-lock"


@contextlib.contextmanager
def session() -> Generator[Path]:
    """Yield a folder for temporary files; afterwards it and every staging folder made meanwhile are gone.

    Inside another session, that one's folder is yielded and cleaned by it.
    """
    if _SESSION in os.environ:
        yield Path(os.environ[_SESSION])
        return
    folder = Path(tempfile.mkdtemp(prefix="infconv-"))
    os.environ[_SESSION] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[_SESSION]
        for record in folder.glob("*.stage"):
            stage, *made = record.read_text(encoding="utf-8").splitlines()
            shutil.rmtree(stage, ignore_errors=True)
            _remove_empty([Path(path) for path in made])
        shutil.rmtree(folder, ignore_errors=True)


def session_folder() -> Path | None:
    """Return the folder of the session that this process is in; None outside of one."""
    return Path(os.environ[_SESSION]) if _SESSION in os.environ else None


@contextlib.contextmanager
def staging(output: Path) -> Generator[Path]:
    """Yield an empty folder on the same file system as `output`; it is gone afterwards, whatever happens.

    Folders that a killed run left behind are removed too, and those that were made for `output` when they are still
    empty. Raises UsageError when `output` cannot be written.
    """
    try:
        if output.is_dir():
            raise UsageError(f"The output '{output}' is a folder.", "Name a file: -o folder/name.onnx")
        stage, made, lock = _make_stage(output.parent)
    except OSError as error:
        raise UsageError(
            f"The output '{output}' cannot be written: {error.strerror}.", "Choose another --output."
        ) from error
    try:
        yield stage
    finally:
        os.close(lock)
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(made)


def _make_stage(folder: Path) -> tuple[Path, list[Path], int]:
    """Return a staging folder in `folder`, the folders that had to be made for it, innermost first, and its lock."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _remove_abandoned(folder)
        stage = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    except FileNotFoundError:  # another run, which had made the folder, failed and removed it just now
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    except OSError:
        _remove_empty(missing)
        raise
    _record(stage, missing)
    # The file gets its name when it is locked already: nobody sees it unlocked while this run lives.
    pending = stage / f"{_ALIVE}.new"
    lock = os.open(pending, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system without locks: the folder counts as abandoned after a day
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pending.rename(stage / _ALIVE)
    return stage, missing, lock


def _record(stage: Path, made: Sequence[Path]) -> None:
    if _SESSION in os.environ:
        record = Path(os.environ[_SESSION]) / f"{stage.name.lstrip('.')}.stage"
        record.write_text("\n".join(str(path.absolute()) for path in (stage, *made)), encoding="utf-8")


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders, innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove_abandoned(folder: Path) -> None:
    for stale in folder.glob(f"{_PREFIX}*"):
        if stale.is_dir() and _is_abandoned(stale):
            shutil.rmtree(stale, ignore_errors=True)


def _is_abandoned(stage: Path) -> bool:
    try:
        lock = os.open(stage / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - stage.stat().st_mtime > _ABANDONED_SECONDS
        return False
    except PermissionError:
        return False  # another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def publish(files: Sequence[Path], folder: Path) -> list[Path]:
    """Move `files` into `folder`; the first is the one that users open. Return the final paths.

    The old first file goes away before its companions are replaced, and the new one comes last, so that a kill at
    any moment leaves the old artifact, or none, or the new one, never a mixture. Runs that publish to one folder wait
    for each other, so that of two to the same output one is there whole. Weights of the old artifact that the new one
    does not have are removed.
    """
    finals = [folder / file.name for file in files]
    for final in finals:
        if final.is_dir():
            raise UsageError(f"'{final}' is a folder, and in the way of a file to be written.", "Move it away.")
    with _exclusive(folder):
        stale = _stale_weights(finals)
        old = _set_aside(finals[0], files[0].parent)
        try:
            for file, final in reversed(list(zip(files, finals, strict=True))):
                file.replace(final)
        except OSError as error:
            if old is not None:
                old.replace(finals[0])
            raise ResourceError(
                f"Cannot move the artifact to '{folder}': {error.strerror}.", "Choose another --output."
            ) from error
        for path in stale:
            path.unlink(missing_ok=True)
    return finals


@contextlib.contextmanager
def _exclusive(folder: Path) -> Generator[None]:
    """Hold the lock on publishing to `folder`; its file is gone afterwards."""
    path = folder / _LOCK
    while True:
        try:
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ResourceError(f"Cannot write to '{folder}': {error.strerror}.", "Choose another --output.") from error
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_file(lock, path):
            break
        os.close(lock)  # the one who held it has removed it: what was locked here is nobody's file any more
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _stale_weights(finals: Sequence[Path]) -> list[Path]:
    """Return the external weights that the old artifact at `finals[0]` names and that no new file replaces."""
    weights = finals[0].with_name(finals[0].name + ".data")
    if weights in finals or not weights.is_file() or not finals[0].is_file() or not finals[0].stat().st_size:
        return []
    with finals[0].open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [weights] if content.find(weights.name.encode()) >= 0 else []


def _set_aside(final: Path, stage: Path) -> Path | None:
    """Move the old artifact to staging, where it can be brought back from; return where it is, if there was one."""
    if not final.exists():
        return None
    old = stage / "old"
    final.replace(old)
    return old


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
