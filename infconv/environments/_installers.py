"""The two ways to fill an environment: uv where it is installed, otherwise venv and pip.

Neither is told where packages come from: pip follows its own configuration, which uv is given too.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from infconv.environments import interpreter_in

_UV_KEYS = {"index-url": "UV_INDEX_URL", "extra-index-url": "UV_EXTRA_INDEX_URL", "find-links": "UV_FIND_LINKS"}
"""pip's setting -> uv's variable; both take several values, uv's with these separators."""
_UV_SEPARATORS = {"UV_FIND_LINKS": ","}
_OWN_INDEX = ("UV_INDEX", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE")


@dataclasses.dataclass(frozen=True)
class Installer:
    """A program that makes virtual environments and fills them."""

    name: str
    env: Mapping[str, str]
    uv: str | None = None

    def commands(self, python: str, folder: Path, requirements: Path, *, resolve: bool) -> Iterator[list[str]]:
        """Yield the commands that make an environment in `folder`; without `resolve`, of the listed packages alone."""
        if self.uv:
            yield [self.uv, "venv", "--quiet", "--python", python, str(folder)]
            command = [self.uv, "pip", "install", "--quiet", "--python", str(interpreter_in(folder))]
        else:
            own = importlib.util.find_spec("pip") is not None
            # This interpreter's pip fills it, if there is one: an environment needs none of its own.
            yield [python, "-m", "venv", *(["--without-pip"] if own else []), str(folder)]
            inner = str(interpreter_in(folder))
            pip = [sys.executable, "-m", "pip", "--python", inner] if own else [inner, "-m", "pip"]
            command = [*pip, "install", "--quiet", "--no-input", "--no-compile"]
        # A source build would take minutes, and run code of the packages: a wheel or nothing.
        command += ["--only-binary", ":all:"]
        yield [*command, *([] if resolve else ["--no-deps"]), "--requirement", str(requirements)]


def choose_installer(python: str) -> Installer:
    """Return uv when it is installed, otherwise pip; `python` is the interpreter to make environments from."""
    uv = shutil.which("uv")
    # What the user's shell set for its own environment must not reach into the new one.
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    if uv is None:
        return Installer("pip", env)
    given = pip_settings(python) if not any(name in os.environ for name in _OWN_INDEX) else {}
    return Installer("uv", env | {"UV_PYTHON_DOWNLOADS": "never"} | uv_variables(given), uv)


def pip_settings(python: str) -> dict[str, str]:
    """Return what pip is configured with (files and variables), by setting; empty when there is no pip."""
    source = sys.executable if importlib.util.find_spec("pip") is not None else python
    done = subprocess.run([source, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in found:
            found[section][name] = str(ast.literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


def uv_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return pip's `settings` as variables for uv, which reads no configuration of pip's."""
    variables: dict[str, str] = {}
    for key, variable in _UV_KEYS.items():
        places = [place for place in settings.get(key, "").split() if _exists(place)]
        if places:
            variables[variable] = _UV_SEPARATORS.get(variable, " ").join(places)
    if "UV_EXTRA_INDEX_URL" in variables:
        # pip takes the best version of all indexes, uv by default the first index that has the package.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        variables["UV_NO_INDEX"] = "1"
    if "cert" in settings and "SSL_CERT_FILE" not in os.environ:
        variables["SSL_CERT_FILE"] = settings["cert"]
    return variables


def _exists(place: str) -> bool:
    """Tell whether a local folder is there; pip passes over one that is not, uv ends."""
    local = place.removeprefix("file://")
    return not local.startswith("/") or Path(local).exists()
