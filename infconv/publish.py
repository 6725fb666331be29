"""Write artifacts beside their final name and rename them into place when they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

from infconv.errors import ResourceError, UsageError

_PREFIX = ".infconv-"
_SESSION = "INFCONV_SESSION"
"""Environment variable: the folder in which staging folders are recorded, so that a killed run's can be removed."""


@contextlib.contextmanager
def session() -> Generator[Path]:
    """Yield a folder for temporary files; afterwards it and every staging folder made meanwhile are gone."""
    folder = Path(tempfile.mkdtemp(prefix="infconv-"))
    os.environ[_SESSION] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[_SESSION]
        for record in folder.glob("*.stage"):
            shutil.rmtree(record.read_text(encoding="utf-8"), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staging(output: Path) -> Generator[Path]:
    """Yield an empty folder on the same file system as `output`; it is gone afterwards, whatever happens.

    Folders that a killed run left behind are removed too. Raises UsageError when `output` cannot be written.
    """
    folder = output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise UsageError(f"The output '{output}' is a folder.", "Name a file: -o folder/name.onnx")
        _remove_abandoned(folder)
        stage = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=folder))
        _record(stage)
    except OSError as error:
        raise UsageError(
            f"The output '{output}' cannot be written: {error.strerror}.", "Choose another --output."
        ) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _record(stage: Path) -> None:
    if _SESSION in os.environ:
        record = Path(os.environ[_SESSION]) / f"{stage.name.lstrip('.')}.stage"
        record.write_text(str(stage.absolute()), encoding="utf-8")


def _remove_abandoned(folder: Path) -> None:
    for stale in folder.glob(f"{_PREFIX}*-*"):
        owner = stale.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def publish(files: Sequence[Path], folder: Path) -> list[Path]:
    """Move `files` into `folder`; the first is the one that users open. Return the final paths.

    The old first file goes away before its companions are replaced, and the new one comes last, so that a kill at
    any moment leaves the old artifact, or none, or the new one, never a mixture.
    """
    finals = [folder / file.name for file in files]
    for final in finals:
        if final.is_dir():
            raise UsageError(f"'{final}' is a folder, and in the way of a file to be written.", "Move it away.")
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
    return finals


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
