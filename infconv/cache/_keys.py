"""Keys of the cache: digests of everything that a result depends on.

A result whose causes cannot all be named is not cached: what the user's own code does (a `module:factory` source, a
metric, a pass from elsewhere) may change without a trace, as may what it reads.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infconv import registry
from infconv.cache._digests import Digests, files_in
from infconv.calibrated import PRECISIONS
from infconv.errors import InfconvError
from infconv.steps import Repeat, as_items, flatten
from infconv.urls import is_url

if TYPE_CHECKING:
    from infconv.cache import Cache
    from infconv.passes import Pass
    from infconv.planning import Job
    from infconv.spec import PipelineSpec

_LIBRARIES = ("numpy", "ml_dtypes", "onnx", "onnx-ir", "onnxruntime")
_PEERS = {"onnxsim": ("onnxsim",)}
"""Steps that use a library of their own."""
_USERS_CODE = frozenset({"graphsurgeon"})
"""Steps that run a script of the user's."""
_LISTING = """
import json, os, sys
found = [n for p in sys.path if os.path.isdir(p) for n in os.listdir(p) if n.endswith((".dist-info", ".egg-info"))]
print(json.dumps([sys.version, *sorted(found)]))
"""


class NotCacheable(Exception):
    """Why a result is not cached."""


def digest_of(value: Any) -> str:
    """Return the digest of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- what everything depends on --------------------------------------------------------------------------------------


@cache
def _code() -> str:
    """Return a digest of infconv itself: a version number does not tell of a developer's changes."""
    folder = Path(__file__).parents[1]
    state = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in {".py", ".yaml"}:
            data = file.read_bytes()
            state.update(f"{file.relative_to(folder).as_posix()} {len(data)}\n".encode())
            state.update(data)
    return state.hexdigest()


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    first = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return f"{first.get('model name', '')} {first.get('flags', first.get('Features', ''))}"


@cache
def _machine() -> str:
    """Return a digest of what computes: other processors round otherwise, and are verified on their own."""
    return digest_of([platform.system(), platform.machine(), platform.python_version(), _processor()])


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {package: _version(package) for package in packages}


@cache
def _installed(python: str | None) -> list[str]:
    """Return the names and versions of all that is installed for an interpreter, as the folders of metadata say."""
    if python is None:
        found = [name for folder in sys.path if Path(folder).is_dir() for name in _metadata_in(folder)]
        return [sys.version, *sorted(found)]
    try:
        done = subprocess.run([python, "-c", _LISTING], capture_output=True, text=True, timeout=60, check=True)
        return cast("list[str]", json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NotCacheable(f"'{python}' does not tell what is installed: {error}") from error


def _metadata_in(folder: str) -> Iterator[str]:
    return (entry.name for entry in Path(folder).iterdir() if entry.name.endswith((".dist-info", ".egg-info")))


# --- the source ------------------------------------------------------------------------------------------------------


def request_key(spec: PipelineSpec, digests: Digests) -> str:
    """Return the key of the opened source and its reference. Raises NotCacheable; InfconvError as opening it would."""
    from infconv.convert import recognise
    from infconv.environments import choose_interpreter

    entry = spec.source
    if is_url(entry.path):
        raise NotCacheable("the source is at a URL, and not fetched yet")
    name, format = recognise(entry.path, entry.frontend)
    frontend = registry.get("frontend", name)
    _refuse_code(spec, frontend)
    python = choose_interpreter(name, frontend.requires, entry.python, entry.env)
    described = entry.model_dump(mode="json", exclude={"path", "name", "python", "env", "python_path", "weights"})
    return digest_of(
        {
            "kind": "opened",
            "code": _code(),
            "machine": _machine(),
            "libraries": _versions(_LIBRARIES),
            "frontend": [name, format, _installed(python) if frontend.requires else []],
            "source": described,
            "name": Path(entry.path).name,
            "files": tree(Path(entry.path), digests),
            "weights": entry.weights and tree(Path(entry.weights), digests),
            "sample": spec.sample and tree(Path(spec.sample), digests),
            "seed": spec.seed,
            "reference": spec.verify.when != "off",
            "edge_cases": spec.verify.edge_cases,
        }
    )


def _refuse_code(spec: PipelineSpec, frontend: type[Any]) -> None:
    entry = spec.source
    if not Path(entry.path).exists():
        raise NotCacheable("the source is made by code, which may change without a trace")
    if entry.trust_pickle or "handlers" in entry.options:
        raise NotCacheable("opening the source runs code, which may change without a trace")
    if not frontend.__module__.startswith("infconv."):
        raise NotCacheable("the frontend is not infconv's own")


def tree(path: Path, digests: Digests) -> dict[str, str]:
    """Return name -> digest of a file, or of the files in a folder. Raises NotCacheable when it cannot be read."""
    try:
        return {file.relative_to(path.parent).as_posix(): digests.of(file) for file in files_in(path)}
    except OSError as error:
        raise NotCacheable(f"'{path}' cannot be read: {error.strerror}") from error


# --- what is made from it --------------------------------------------------------------------------------------------


class StepKeys:
    """Keys of the graphs after the first steps of a job."""

    def __init__(self, spec: PipelineSpec, job: Job, identity: str, request: str, digests: Digests) -> None:
        """Raise NotCacheable.

        `identity` is the digest of the opened source with its reference, `request` the key of the request that opened
        it, empty when there is none.
        """
        self._common = digest_of(_common(spec, job, identity, request, digests))
        measured = spec.verify.metric is not None
        uses = (
            any(_is_users_code(inner) or (measured and inner.uses_quality) for inner in flatten([step]))
            for step in job.steps
        )
        self.most = next((count for count, own in enumerate(uses) if own), len(job.steps))
        """How many steps there are before the first one that is the user's code."""
        self._all = len(job.steps)
        self._steps = [_steps((step,), digests) for step in job.steps[: self.most]]

    def key(self, count: int) -> str:
        """Return the key of the graph after the first `count` steps, a repetition being one."""
        return digest_of(["steps", self._common, self._steps[:count]])

    def longest(self, cache: Cache, *, whole: bool = False) -> int:
        """Return the most steps after which `cache` holds a graph, 0 for none; with `whole` all of them or none."""
        counts = range(self.most, self._all - 1 if whole else 0, -1)
        return next((count for count in counts if cache.holds(self.key(count))), 0)


def artifact_key(spec: PipelineSpec, job: Job, identity: str, request: str, digests: Digests) -> str:
    """Return the key of a finished artifact with its verification, as StepKeys does."""
    exporter = job.exporter
    if spec.verify.metric is not None:
        raise NotCacheable("the metric is code, which may change without a trace")
    if not type(exporter).__module__.startswith("infconv."):
        raise NotCacheable("the target is not infconv's own")
    options = exporter.model_dump(mode="json")
    libraries = [name for package in exporter.requires for name in (package, package.replace("_", "-"))]
    return digest_of(
        {
            "kind": "artifact",
            "common": _common(spec, job, identity, request, digests),
            "steps": _steps(job.steps, digests),
            "exporter": [exporter.target, options, _versions(libraries), _named_files(options, digests)],
            "name": job.output.name,  # which a file of external weights is named after
        }
    )


def _steps(steps: Sequence[Pass | Repeat], digests: Digests) -> Any:
    """Return what tells steps apart: names, options and the files that these name, and libraries of their own."""
    for step in filter(_is_users_code, flatten(steps)):
        raise NotCacheable(f"step {step.step_name()} is code that may change without a trace")
    options = [step.model_dump(mode="json") for step in flatten(steps)]
    peers = sorted({peer for step in flatten(steps) for peer in _PEERS.get(step.step_name(), ())})
    return [as_items(steps), options, _named_files(options, digests), _versions(peers)]


def _is_users_code(step: Pass) -> bool:
    return not type(step).__module__.startswith("infconv.") or step.step_name() in _USERS_CODE


def _common(spec: PipelineSpec, job: Job, identity: str, request: str, digests: Digests) -> dict[str, Any]:
    """Return what all steps see of a run; the tolerance of verification is among it."""
    return {
        "code": _code(),
        "machine": _machine(),
        "libraries": _versions(_LIBRARIES),
        "source": identity,
        "inputs": spec.source.model_dump(mode="json", include={"inputs", "dims"}),
        "target": [job.exporter.target, job.entry.precision, job.entry.io_types],
        "verify": spec.verify.model_dump(mode="json"),
        "memory_limit": spec.memory_limit if spec.verify.when == "each" else None,
        "seed": spec.seed,
        "calibration": _calibration(spec, job, request, digests),
    }


def _calibration(spec: PipelineSpec, job: Job, request: str, digests: Digests) -> Any:
    """Return what tells calibration data apart, and the source that runs on it."""
    if spec.calibration is None or job.entry.precision not in PRECISIONS:
        return None
    path = Path(spec.calibration.path)
    if not path.exists() or not request:
        raise NotCacheable("calibration data, or the source that runs on it, is code that may change without a trace")
    options = spec.calibration.model_dump(mode="json", exclude={"path"})
    return [request, tree(path, digests), options, _named_files(options, digests)]


def _named_files(value: Any, digests: Digests) -> dict[str, str]:
    """Return path -> digest of every file that the options name."""
    if isinstance(value, str):
        path = Path(value)
        return {value: digests.of(path)} if value and len(value) < 4096 and path.is_file() else {}
    if isinstance(value, Mapping | list | tuple):
        inner = cast("Mapping[Any, Any]", value).values() if isinstance(value, Mapping) else cast("list[Any]", value)
        return {path: digest for each in inner for path, digest in _named_files(each, digests).items()}
    return {}


def why_not(error: Exception) -> str:
    """Return the reason as a sentence's part."""
    return error.message if isinstance(error, InfconvError) else str(error)
