"""Find an interpreter of a wanted version: the current one, on PATH, in pyenv, or among those that uv installed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from infconv.errors import DependencyError, UsageError

Version = tuple[int, int]

_ASK = (
    "import json, struct, sys, sysconfig; print(json.dumps([sys.version_info[:3], sys.implementation.name, "
    "struct.calcsize('P') * 8, bool(sysconfig.get_config_var('Py_GIL_DISABLED'))]))"
)
_ASK_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Python:
    """An interpreter that answered."""

    path: str
    version: tuple[int, int, int]
    problem: str = ""
    """Why no wheels fit it, whatever its version."""

    @property
    def text(self) -> str:
        """The version, e.g. 3.11.7."""
        return ".".join(map(str, self.version))


def find_python(name: str, supported: Sequence[Version], given: str | None) -> Python:
    """Return an interpreter of a `supported` version: `given`, or the first that is found; none when all versions do.

    Raises UsageError when `given` is not one, DependencyError when there is none.
    """
    if given is not None:
        return _checked(name, supported, given)
    for path in candidates(supported):
        found = ask(path)
        if found is not None and not found.problem and _fits(found, supported):
            return found
    wanted = _versions(supported)
    raise DependencyError(
        f"The environment '{name}' needs Python {wanted}, and none was found on PATH or in pyenv "
        f"(this is {sys.version_info[0]}.{sys.version_info[1]}).",
        f"Install one (it need not be the default), e.g. pyenv install {supported[0][0]}.{supported[0][1]}, "
        "or name it: --python PATH",
    )


def candidates(supported: Sequence[Version]) -> Iterator[str]:
    """Yield paths where a supported interpreter may be: the current one first. Nothing is downloaded."""
    yield sys.executable
    names = [f"python{major}.{minor}" for major, minor in supported] or ["python3"]
    for name in names:
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            path = shutil.which(name, path=folder) if folder else None
            if path:
                yield path
    roots = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"]
    roots.append(Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or Path.home() / ".local/share/uv/python"))
    for name in names:
        for root in roots:
            yield from sorted(map(str, root.glob(f"*/bin/{name}")), reverse=True)


def ask(path: str) -> Python | None:
    """Return what the interpreter at `path` says of itself, None when it is none."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", _ASK], capture_output=True, text=True, timeout=_ASK_SECONDS, check=True
        )
        version, kind, bits, free_threaded = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # a shim of pyenv for a version that is not active answers with an error
    problem = "" if kind == "cpython" else f"it is {kind}, not CPython"
    problem = problem or ("" if bits == 64 else f"it is a {bits}-bit build")
    return Python(path, tuple(version), problem or ("it is a free-threaded build" if free_threaded else ""))


def _checked(name: str, supported: Sequence[Version], given: str) -> Python:
    found = ask(shutil.which(given) or given)
    if found is None:
        raise UsageError(f"--python '{given}' is no Python interpreter.", "Give the path of one.")
    if not _fits(found, supported):
        raise UsageError(
            f"The environment '{name}' needs Python {_versions(supported)}; '{given}' is {found.text}.",
            "Give --python the path of such a Python, or leave it out to have one looked for.",
        )
    if found.problem:
        raise UsageError(f"'{given}' cannot be used: {found.problem}.", "Give the path of a 64-bit CPython.")
    return found


def _fits(found: Python, supported: Sequence[Version]) -> bool:
    return not supported or found.version[:2] in supported


def _versions(supported: Sequence[Version]) -> str:
    texts = [f"{major}.{minor}" for major, minor in supported]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
