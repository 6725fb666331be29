"""One worker process for most of the tests of a frontend: starting a framework takes longer than a small export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from infconv.convert import _worker_source
from infconv.convert._worker_client import WorkerProcess
from infconv.errors import InfconvError


@contextlib.contextmanager
def started(framework: str, python: str | None, home: Path) -> Iterator[WorkerProcess]:
    """Give a worker whose working folder is `home`, where it imports the user's modules from."""
    with pytest.MonkeyPatch.context() as patch, WorkerProcess(framework, python, None, home / "worker.log") as process:
        patch.chdir(home)
        with pytest.raises(InfconvError):
            process.ask({"op": "start"})
        yield process


def lend(process: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sources opened in `process` until the test ends."""
    monkeypatch.setattr(_worker_source, "WorkerProcess", lambda *_: _Lent(process))


class _Lent:
    """A worker that stays when its borrower closes it."""

    def __init__(self, process: WorkerProcess) -> None:
        self.ask = process.ask
        self.log = process.log

    def close(self) -> None:
        """Leave the process to the next test."""
