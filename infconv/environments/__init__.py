"""Isolated environments of frontends: what there is, and which interpreter runs a frontend.

An environment is a virtual environment in the user's cache folder, `<cache>/environments/<name>`. It is made beside its
place and renamed into it when its frameworks have been imported there, so one that has a record is a whole one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from infconv.errors import DependencyError, UsageError, did_you_mean

RECORD = "infconv-environment.json"


@dataclasses.dataclass(frozen=True)
class Lock:
    """What is installed in an environment, and the Pythons that it is for."""

    name: str
    text: str
    pythons: tuple[tuple[int, int], ...]
    complete: bool
    """Whether it names every package, so that the installer need not look for dependencies."""

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Environment:
    """An environment as it is on the disk."""

    name: str
    folder: Path
    python: str = ""
    """The version of its interpreter."""
    frontends: tuple[str, ...] = ()
    """The frontends whose frameworks were imported there."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Package -> version, of the frameworks."""
    size_mb: float = 0.0
    """In 10^6 bytes."""
    problem: str = ""
    """Why it cannot be used; empty when it can."""
    outdated: bool = False
    """Made from another lock than this infconv has."""

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        return not self.problem

    @property
    def interpreter(self) -> Path:
        """The path of its Python."""
        return interpreter_in(self.folder)

    def as_json(self) -> dict[str, Any]:
        """Return the row of `infconv env list --json`."""
        return {
            "name": self.name,
            "python": self.python,
            "frontends": list(self.frontends),
            "versions": dict(self.versions),
            "size_mb": self.size_mb,
            "ok": self.ok,
            "problem": self.problem,
            "outdated": self.outdated,
            "path": str(self.interpreter),
        }


def cache_folder() -> Path:
    """Return infconv's folder for what can be made again: INFCONV_CACHE_DIR, or that of the system's custom."""
    own = os.environ.get("INFCONV_CACHE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "infconv"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification: a path that is not absolute is to be ignored.
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "infconv"


def environments_folder() -> Path:
    """Return the folder that holds the environments."""
    return cache_folder() / "environments"


def interpreter_in(folder: Path) -> Path:
    """Return the path of the Python of the virtual environment in `folder`."""
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def shipped() -> list[str]:
    """Return the names of the environments that infconv has a lock for."""
    locks = resources.files("infconv.environments") / "locks"
    return sorted(entry.name.removesuffix(".txt") for entry in locks.iterdir() if entry.name.endswith(".txt"))


def shipped_lock(name: str) -> Lock:
    """Return the lock that infconv ships for `name`."""
    path = resources.files("infconv.environments") / "locks" / f"{name}.txt"
    text = path.read_text(encoding="utf-8")
    header = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("# ") and ": " in line)
    pythons = [tuple(map(int, version.split("."))) for version in header["python"].split(", ")]
    return Lock(name, text, tuple((major, minor) for major, minor in pythons), header["dependencies"] == "none")


def every() -> list[Environment]:
    """Return all environments, the broken ones too."""
    folder = environments_folder()
    if not folder.is_dir():
        return []
    return [read(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def find(name: str) -> Environment | None:
    """Return the environment `name`, None when it does not exist."""
    folder = environments_folder() / name
    return read(folder) if folder.is_dir() else None


def read(folder: Path) -> Environment:
    """Return the environment in `folder`, with what is wrong with it."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found = Environment(
            folder.name,
            folder,
            record["python"],
            tuple(record["frontends"]),
            record["versions"],
            record["size_mb"],
            outdated=folder.name in shipped() and record["lock"] != shipped_lock(folder.name).digest,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Environment(folder.name, folder, problem="it is unfinished: no record of a whole installation")
    if not found.interpreter.exists():
        return dataclasses.replace(found, problem="the Python that it was made with is gone")
    return found


def choose_interpreter(
    frontend: str, requires: Mapping[str, str], python: str | None = None, env: str | None = None
) -> str | None:
    """Return the interpreter that runs `frontend`, None for the current one.

    In this order: `python`, the environment `env`, the environment of the frontend's name, the current interpreter if
    it has every package of `requires` (import name -> extra). Raises UsageError, and DependencyError when there is
    none.
    """
    if python and env:
        raise UsageError("--python and --env exclude each other.", "Give one of them.")
    if python or not requires:
        return python or (str(_named(env).interpreter) if env else None)
    if env:
        return str(_named(env).interpreter)
    own = find(frontend)
    if own is not None and own.ok:
        return str(own.interpreter)
    missing = [name for name in requires if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    raise _missing(frontend, missing[0], requires[missing[0]], own)


def _named(name: str) -> Environment:
    found = find(name)
    if found is None:
        known = [each.name for each in every()]
        hint = f"Make it with: infconv env create {name}" if name in shipped() else did_you_mean(name, known)
        raise UsageError(f"There is no environment '{name}'.", hint if known or name in shipped() else "There is none.")
    if not found.ok:
        raise DependencyError(
            f"The environment '{name}' cannot be used: {found.problem}.", f"Make it anew: infconv env create {name}"
        )
    return found


def _missing(frontend: str, package: str, extra: str, own: Environment | None) -> DependencyError:
    state = f"the environment '{frontend}' cannot be used: {own.problem}" if own else "it has no environment of its own"
    here = f"pip install 'infconv[{extra}]'"
    made = f"Make one with: infconv env create {frontend}  (or install it here: {here})"
    return DependencyError(
        f"The {frontend} frontend needs '{package}', which is not installed here, and {state}.",
        made if frontend in shipped() else f"Install it with: {here}",
    )
