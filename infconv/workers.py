"""Who takes on parts of a long step: forked processes of this machine, or tasks on a Ray cluster."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from infconv.errors import InfconvError
from infconv.isolate import Crashed
from infconv.observe import Observers
from infconv.parallel import run_each

if TYPE_CHECKING:
    from infconv.passes import Workers

T = TypeVar("T")
RETRIES = 3
"""How often a Ray task is started again after its process or its node died."""


@dataclasses.dataclass
class Forked:
    """Processes that are forked from this one; with `jobs`."""

    count: int
    forked: bool = True

    def spread(self, work: Callable[[Path, int], T], parts: int, folder: Path) -> list[T]:
        """Do as infconv.passes.Workers says; `folder` is not copied."""
        calls = [partial(_call, work, folder, number) for number in range(parts)]
        return _whole(run_each(calls, min(parts, self.count), Observers()))


def _call(work: Callable[[Path, int], T], folder: Path, number: int, _: Observers) -> T:
    return work(folder, number)


@dataclasses.dataclass
class OnRay:
    """Tasks that the task of a conversion starts; while it waits for them, its processor is theirs."""

    count: int
    forked: bool = False

    def spread(self, work: Callable[[Path, int], T], parts: int, folder: Path) -> list[T]:
        """Do as infconv.passes.Workers says; a task whose process or node dies is started again elsewhere."""
        import ray  # pyright: ignore[reportMissingImports]  (an optional dependency; this runs in one of its tasks)

        remote: Any = ray.remote(_remotely).options(num_cpus=1, max_retries=RETRIES)
        files = [ray.put(file.read_bytes()) for file in sorted(folder.iterdir())]
        names = [file.name for file in sorted(folder.iterdir())]
        started = [remote.remote(work, number, sys.path, names, *files) for number in range(parts)]
        try:
            return _whole(ray.get(started))
        except ray.exceptions.WorkerCrashedError as error:
            raise Crashed(f"A part of the step died {RETRIES + 1} times on the cluster.") from error


def _remotely(
    work: Callable[[Path, int], Any], number: int, path: Sequence[str], names: Sequence[str], *contents: bytes
) -> Any:
    """Run in a task: an InfconvError is an outcome, which it would not do to try again."""
    sys.path += [folder for folder in path if folder not in sys.path]
    with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
        for name, content in zip(names, contents, strict=True):
            (Path(folder) / name).write_bytes(content)
        try:
            return work(Path(folder), number)
        except InfconvError as error:
            return error


def _whole(outcomes: Sequence[T | InfconvError]) -> list[T]:
    """Return the outcomes, or raise the first error among them."""
    found: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, InfconvError):
            raise outcome
        found.append(outcome)
    return found


def forked(count: int) -> Workers | None:
    """Return `count` processes; None when there is nobody but the one that asks."""
    return Forked(count) if count > 1 else None
