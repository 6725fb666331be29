"""Places: local paths, and URLs that fsspec knows (s3://, gs://, az://, sftp://, memory://, …), by the same functions.

What is written to a URL goes up under other names and is renamed when it is complete, the file that users open last.
Nothing here touches the network unless a place is a URL.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from infconv.errors import (
    DependencyError,
    InfconvError,
    ResourceError,
    SourceError,
    UsageError,
    did_you_mean,
    missing_extra,
)
from infconv.publish import digest, publish, staging
from infconv.urls import is_url, join, name_of, parent_of, split

_BLOCK = 1 << 20
_WHOLE_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2"})
"""Object stores, where an object appears when it is complete. Elsewhere a file can be seen while it grows."""
_PENDING = ".infconv-"
_ABANDONED_SECONDS = 24 * 3600.0
"""What a killed upload left under another name goes after so long."""


def open_url(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it. Raises DependencyError, UsageError."""
    try:
        import fsspec
    except ImportError:
        raise missing_extra("fsspec", "remote", f"'{url}'") from None
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    except ImportError as error:
        named = re.findall(r'install (\w+)|"(\w+)"', str(error))
        command = " ".join(["pip install", *(one or other for one, other in named)])
        raise DependencyError(
            f"'{url}' needs a package that is not installed: {str(error).rstrip('.')}.",
            f"The extra 'remote' brings fsspec, and each kind of storage has a package of its own: {command}",
        ) from None
    except ValueError as error:
        scheme = split(url)[0].rpartition("::")[2].removesuffix("://")
        hint = did_you_mean(scheme, fsspec.available_protocols())
        raise UsageError(f"'{url}' cannot be opened: {error}.", hint) from None


def same_url(url: str, other: str) -> bool:
    """Whether a URL, and another place, are the same file. Raises DependencyError, UsageError."""
    mine = open_url(url)
    return is_url(other) and open_url(other) == mine


@contextlib.contextmanager
def reading(url: str, kind: type[InfconvError] = SourceError) -> Generator[None]:
    """Turn what a file system raises while `url` is read into one sentence, as an error of `kind`."""
    try:
        yield
    except InfconvError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise kind(f"'{url}' does not exist.", "Check the URL.") from None
    except PermissionError as error:
        raise kind(f"'{url}' cannot be read: no permission.", _CREDENTIALS) from error
    except Exception as error:  # every file system of fsspec raises errors of its own
        raise kind(f"'{url}' cannot be read: {_line(error)}", _CREDENTIALS) from error


@contextlib.contextmanager
def writing(url: str) -> Generator[None]:
    """Do as `reading` while something is written."""
    try:
        yield
    except InfconvError:
        raise
    except PermissionError as error:
        raise UsageError(f"'{url}' cannot be written: no permission.", _CREDENTIALS) from error
    except Exception as error:  # as above
        raise ResourceError(f"'{url}' cannot be written: {_line(error)}", _CREDENTIALS) from error


_CREDENTIALS = "Check the URL and the credentials, which fsspec takes from its configuration and the environment."


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."


# --- reading ---------------------------------------------------------------------------------------------------------


def is_file(place: str) -> bool:
    """Whether there is a file at a place."""
    if not is_url(place):
        return Path(place).is_file()
    files, path = open_url(place)
    with reading(place):
        return bool(files.isfile(path))


def read_text(place: str, kind: type[InfconvError] = SourceError) -> str:
    """Return a file's text. Raises OSError for a path, an error of `kind` for a URL; both FileNotFoundError."""
    if not is_url(place):
        return Path(place).read_text(encoding="utf-8")
    files, path = open_url(place)
    with contextlib.suppress(UnicodeDecodeError), reading(place, kind):
        if not files.exists(path):
            raise FileNotFoundError(place)
        return bytes(files.cat_file(path)).decode()
    raise kind(f"'{place}' is not a text.")


def digest_of(place: str) -> str:
    """Return the SHA-256 of a file in hexadecimal; it is read in blocks."""
    if not is_url(place):
        return digest(Path(place))
    files, path = open_url(place)
    state = hashlib.sha256()
    with reading(place), files.open(path, "rb", block_size=_BLOCK) as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def listing(url: str, kind: type[InfconvError] = SourceError) -> dict[str, Mapping[str, Any]]:
    """Return path from the URL -> what the file system tells of it: the one file with an empty path, or a folder's.

    Raises an error of `kind` when there is nothing.
    """
    files, path = open_url(url)
    with reading(url, kind):
        info = files.info(path)
        if info["type"] != "directory":
            return {"": info}
        root = str(info["name"]).rstrip("/") + "/"
        found: Mapping[str, Mapping[str, Any]] = files.find(path, detail=True)
        inner = {str(name).removeprefix(root).lstrip("/"): told for name, told in found.items()}
    if not inner:
        raise kind(f"'{url}' is an empty folder, or does not exist.", "Check the URL.")
    if odd := next((name for name in inner if ".." in name.split("/") or name.startswith("/")), None):
        raise kind(f"'{url}' names a file outside of it: '{odd}'.")
    return inner


def fetch_file(url: str, local: Path, kind: type[InfconvError] = SourceError) -> None:
    """Copy a file to `local`, block by block. Raises an error of `kind`, ResourceError for a full disk."""
    files, path = open_url(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    with reading(url, kind):
        size = files.info(path).get("size")
        try:
            files.get_file(path, str(local))
        except OSError as error:
            if error.errno in {28, 122}:  # no space, over quota
                raise ResourceError(f"The disk is full: '{url}' does not fit into '{local.parent}'.") from error
            raise
    if size is not None and local.stat().st_size != size:
        raise kind(f"'{url}' was cut off: {local.stat().st_size} of {size} bytes came over.", "Run it again.")


# --- writing ---------------------------------------------------------------------------------------------------------


def write_text(place: str, text: str) -> None:
    """Write a file in one go. Raises UsageError, ResourceError."""
    if is_url(place):
        with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
            file = Path(folder) / name_of(place)
            file.write_text(text, encoding="utf-8")
            upload([file], parent_of(place))
        return
    with staging(Path(place)) as stage:
        file = stage / Path(place).name
        file.write_text(text, encoding="utf-8")
        publish([file], Path(place).parent)


def upload(local: Sequence[Path], folder: str) -> None:
    """Copy files to the folder at a URL, the first one being what users open.

    All are there under other names before the first old one is replaced; then the old first file goes, its companions
    are replaced, and the new first file comes last, so that a kill at any moment leaves the old artifact, or none, or
    the new one. Object stores, where objects appear whole, take them under their names at once, in the same order.
    Raises UsageError without permission, ResourceError.
    """
    first, *others = local
    files, root = _open_folder(folder, first.name)
    with writing(join(folder, first.name)):
        if root:
            files.makedirs(root.rstrip("/"), exist_ok=True)
        _sweep(files, root, first.name)
        direct = _protocols(files) <= _WHOLE_OBJECTS
        token = f"{_PENDING}{first.name}-{uuid.uuid4().hex[:12]}-"
        pending = {file: f"{root}{token}{file.name}" for file in local}
        try:
            for file in () if direct else local:
                _put(files, file, pending[file])
            if files.exists(root + first.name):
                files.rm_file(root + first.name)
            for file in (*others, first):
                if direct:
                    _put(files, file, root + file.name)
                else:
                    files.mv(pending[file], root + file.name)
        finally:
            for path in () if direct else pending.values():
                with contextlib.suppress(FileNotFoundError):
                    files.rm_file(path)


def _open_folder(folder: str, name: str) -> tuple[Any, str]:
    """Return the file system of a folder, and what stands before a name in it, from the URL of the file `name`.

    A URL without a path may be read in another way than one with a path is.
    """
    files, path = open_url(join(folder, name))
    return files, path.removesuffix(name)


def _protocols(files: Any) -> set[str]:
    named: Any = files.protocol
    return {named} if isinstance(named, str) else set(cast("Sequence[str]", named))


def _put(files: Any, local: Path, path: str) -> None:
    files.put_file(str(local), path)
    files.invalidate_cache(path.rpartition("/")[0])
    arrived = files.info(path).get("size")
    if arrived is not None and arrived != local.stat().st_size:
        raise OSError(f"{arrived} of {local.stat().st_size} bytes arrived")


def _sweep(files: Any, root: str, name: str) -> None:
    """Remove what killed uploads of this file left."""
    for path in files.glob(f"{root}{_PENDING}{name}-*"):
        with contextlib.suppress(NotImplementedError, FileNotFoundError):  # a file system without times
            if time.time() - files.modified(path).timestamp() > _ABANDONED_SECONDS:
                files.rm_file(path)


def is_current(local: Sequence[Path], folder: str, manifest: Path) -> bool:
    """Whether the folder at a URL has these files, as its copy of their manifest and the sizes say."""
    files, root = _open_folder(folder, manifest.name)
    with writing(folder):
        try:
            if files.cat_file(root + manifest.name) != manifest.read_bytes():
                return False
            return all(files.info(root + file.name).get("size") == file.stat().st_size for file in local)
        except FileNotFoundError:
            return False


def bring(place: str, folder: Path) -> Path:
    """Return a copy of a file in a local folder."""
    local = folder / name_of(place)
    if is_url(place):
        fetch_file(place, local, ResourceError)
    else:
        shutil.copy2(place, local)
    return local


@contextlib.contextmanager
def at_hand(place: str) -> Generator[str]:
    """Yield the local path of a file, which for a URL is fetched with all that is in its folder."""
    if not is_url(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="infconv-") as name:
        folder = parent_of(place)
        for other in names_in(folder):
            bring(join(folder, other), Path(name))
        yield str(Path(name) / name_of(place))


def write_files(local: Sequence[Path], folder: str) -> None:
    """Copy files to a folder, the first one last. Raises UsageError, ResourceError."""
    if is_url(folder):
        upload(local, folder)
        return
    with staging(Path(folder) / local[0].name) as stage:
        publish([Path(shutil.copy2(file, stage / file.name)) for file in local], Path(folder))


def names_in(place: str) -> list[str]:
    """Return the names of what is in a folder; nothing when there is no folder."""
    if not is_url(place):
        return sorted(entry.name for entry in Path(place).glob("*"))
    files, path = open_url(place)
    with reading(place, ResourceError):
        return sorted(name_of(str(name)) for name in files.ls(path, detail=False)) if files.isdir(path) else []


def remove_folder(place: str) -> None:
    """Remove a folder with all that is in it, as far as that is possible."""
    if not is_url(place):
        shutil.rmtree(place, ignore_errors=True)
        return
    files, path = open_url(place)
    with writing(place), contextlib.suppress(FileNotFoundError):
        files.rm(path, recursive=True)
