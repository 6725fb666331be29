"""Make and remove environments, with uv where it is installed, otherwise with venv and pip."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from infconv.environments import (
    RECORD,
    Environment,
    Lock,
    environments_folder,
    every,
    find,
    interpreter_in,
    read,
    shipped,
    shipped_lock,
)
from infconv.environments._installers import Installer, choose_installer
from infconv.environments._pythons import find_python
from infconv.errors import DependencyError, ResourceError, UsageError, did_you_mean

Requires = Mapping[str, Sequence[str]]
"""Frontend -> the packages that it imports."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PROBE = """
import importlib, importlib.metadata as metadata, json, sys
answer, name = sys.argv[1:]
found, failed = {}, {}
try:
    importlib.import_module(name)
    owner = metadata.packages_distributions().get(name, [name])[0]
    found[name] = metadata.version(owner)
except BaseException as error:
    failed[name] = f"{type(error).__name__}: {error}"
with open(answer, "w") as stream:
    json.dump([found, failed], stream)
"""


def create(
    name: str,
    requires: Requires,
    *,
    python: str | None = None,
    requirements: str | None = None,
    recreate: bool = False,
    watch: Callable[[str], None] = lambda _: None,
) -> tuple[Environment, bool]:
    """Make the environment `name` and return it, and whether it was made: one that is there and up to date stays.

    `requirements`: a pip requirements file for an environment of the user's own. `watch` is told each stage. Raises
    UsageError, DependencyError (no Python, no package, a framework that cannot be imported), ResourceError (disk).
    """
    lock = _lock_for(name, requirements)
    folder = environments_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder of environments '{folder}' cannot be made: {error.strerror}.", "Set INFCONV_CACHE_DIR."
        ) from error
    with _alone(folder, name, watch):
        there = find(name)
        if there is not None and there.ok and not recreate and _same(there, lock):
            return there, False
        found = find_python(name, lock.pythons, python)
        installer = choose_installer(found.path)
        with _building(folder, name) as build:
            watch(f"make '{name}' with Python {found.text} and {installer.name}")
            _install(installer, found.path, lock, build)
            watch(f"import the frameworks of '{name}'")
            _finish(build, lock, found.text, requires)
            _replace(build, folder / name)
    return read(folder / name), True


def remove(name: str) -> None:
    """Delete the environment `name`, broken or not. Raises UsageError when there is none."""
    folder = environments_folder()
    if not _NAME.fullmatch(name) or not (folder / name).is_dir():
        known = [each.name for each in every()]
        raise UsageError(
            f"There is no environment '{name}'.", did_you_mean(name, known) if known else "None was created."
        )
    with _alone(folder, name, lambda _: None), _building(folder, name) as away:
        (folder / name).rename(away / name)


def _lock_for(name: str, requirements: str | None) -> Lock:
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for an environment.", "Use letters, digits, - and _.")
    if requirements is None:
        if name not in shipped():
            raise UsageError(
                f"infconv has no lock for an environment '{name}'.",
                f"{did_you_mean(name, shipped())} One of your own needs --requirements FILE.",
            )
        return shipped_lock(name)
    try:
        text = Path(requirements).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The requirements '{requirements}' cannot be read: {error}.") from error
    return Lock(name, text, (), complete=False)


def _same(there: Environment, lock: Lock) -> bool:
    record = json.loads((there.folder / RECORD).read_text(encoding="utf-8"))
    return record["lock"] == lock.digest


@contextlib.contextmanager
def _alone(folder: Path, name: str, watch: Callable[[str], None]) -> Generator[None]:
    """Hold the lock on `name`; another process that makes the same environment is waited for."""
    with (folder / f".{name}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch(f"wait for another infconv that makes '{name}'")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _building(folder: Path, name: str) -> Generator[Path]:
    """Give an empty folder beside the environments, and delete it, and what a killed run left of its kind."""
    for old in folder.glob(f".{name}.build-*"):
        shutil.rmtree(old, ignore_errors=True)
    build = Path(tempfile.mkdtemp(prefix=f".{name}.build-", dir=folder))
    try:
        yield build
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _install(installer: Installer, python: str, lock: Lock, build: Path) -> None:
    listed = build / "requirements.txt"
    listed.write_text(lock.text, encoding="utf-8")
    for command in installer.commands(python, build / "env", listed, resolve=not lock.complete):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=installer.env, cwd=build, check=False)
        except OSError as error:
            raise DependencyError(f"'{command[0]}' cannot be started: {error.strerror}.") from error
        if done.returncode != 0:
            raise _failed(installer, lock.name, done.stderr or done.stdout)


def _failed(installer: Installer, name: str, output: str) -> DependencyError | ResourceError:
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return ResourceError(
            f"The disk is full: the environment '{name}' was not made.",
            "Free some space, or set INFCONV_CACHE_DIR to another disk.",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.lower().startswith("error")] or lines[-3:]
    return DependencyError(
        f"{installer.name} could not make the environment '{name}': {' '.join(said)[:600]}",
        "Check the network and the configuration of pip (pip config list), and run it again.",
    )


def _finish(build: Path, lock: Lock, version: str, requires: Requires) -> None:
    """Import the frameworks, and write the record that makes the environment a whole one."""
    env = build / "env"
    packages = sorted({package for names in requires.values() for package in names})
    found, failed = _probe(build, packages)
    frontends = [name for name, names in requires.items() if all(package in found for package in names)]
    if lock.name in requires and lock.name not in frontends:
        package = next(package for package in requires[lock.name] if package not in found)
        raise DependencyError(
            f"The environment '{lock.name}' was installed, but '{package}' cannot be imported there: {failed[package]}",
            "Its wheels do not fit this machine: give another Python (--python), or another machine.",
        )
    record = {
        "name": lock.name,
        "python": version,
        "frontends": sorted(frontends),
        "versions": found,
        "size_mb": round(_bytes(env) / 1e6, 1),
        "lock": lock.digest,
    }
    (env / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _probe(build: Path, packages: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return package -> version of those that can be imported, and package -> reason of the others.

    Each in a process of its own: TensorFlow and Paddle in one process crash it.
    """
    found: dict[str, str] = {}
    failed: dict[str, str] = {}
    answer = build / "probe.json"
    for package in packages:
        if not _present(build / "env", package):
            failed[package] = "it is not installed"
            continue
        command = [str(interpreter_in(build / "env")), "-I", "-c", _PROBE, str(answer), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and answer.exists():
            versions, problems = json.loads(answer.read_text(encoding="utf-8"))
            found.update(versions)
            failed.update(problems)
        else:
            failed[package] = f"its import ended the process with code {done.returncode}"
        answer.unlink(missing_ok=True)
    return found, failed


def _present(env: Path, package: str) -> bool:
    """Tell whether a module of this name was installed, so that what is not there costs no process."""
    sites = [*env.glob("lib/python*/site-packages"), env / "Lib" / "site-packages"]
    return any((site / package).is_dir() or (site / f"{package}.py").is_file() for site in sites)


def _bytes(folder: Path) -> int:
    sizes: dict[tuple[int, int], int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            status = (Path(path) / name).lstat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _replace(build: Path, place: Path) -> None:
    """Put the finished environment in its place; the one that was there leaves it in the same moment."""
    if place.exists():
        place.rename(build / "old")
    (build / "env").rename(place)
