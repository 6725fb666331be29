"""Run the command in a forked child and watch it: a native crash or a kill for memory becomes a sentence.

The fork happens before anything heavy is imported, so that it costs a millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.errors import InfconvError, ResourceError
from infconv.isolate import CAN_FORK
from infconv.publish import session, session_folder

if TYPE_CHECKING:
    from infconv.result import StepResult

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def supervised(command: Callable[[], int]) -> int:
    """Return `command()`'s exit code, run in a child.

    Temporary and staging folders are removed however the child ends. Raises ResourceError when the child is killed,
    InfconvError (a bug) when it dies of another signal.
    """
    if not CAN_FORK:
        return command()
    with session() as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _run_child(command, folder)
        for number in _ENDS:
            signal.signal(number, lambda received, _: _signal(child, received))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return _exit_code(status, folder)


class Diary:
    """An observer that leaves behind what is being done, for the case that this process dies of it."""

    def stage(self, name: str) -> None:
        """Work other than a step begins."""
        folder = session_folder()
        if folder is not None:
            _diary(folder).write_text(f"at: {name}", encoding="utf-8")

    def before(self, step: str) -> None:
        """A step begins."""
        self.stage(f"step {step}")

    def after(self, result: StepResult) -> None:
        """A step ended, or was dropped."""
        self.stage(f"what follows step {result.name}")


def _diary(folder: Path) -> Path:
    return folder / "doing.txt"


def _exit_code(status: int, folder: Path) -> int:
    if status >= 0:
        return status
    if -status == signal.SIGKILL:
        raise ResourceError(
            "The conversion was killed (SIGKILL), as systems do when memory runs out.",
            "Free memory, or set --memory-limit to have it stop by itself.",
        )
    diary = _diary(folder)
    place = f", {diary.read_text(encoding='utf-8')}" if diary.is_file() else ""
    raise InfconvError(
        f"The conversion crashed ({signal.Signals(-status).name}) in a native library{place}.",
        "`infconv bisect` with the same options writes a reproducer. With --verify each every step runs on its own, "
        "and the run goes on without one that crashes.",
    )


def _run_child(command: Callable[[], int], folder: Path) -> None:
    code = 1
    try:
        os.setpgid(0, 0)  # a group of its own, so that what it starts can be killed with it
        for number in _ENDS:
            signal.signal(number, signal.default_int_handler)
        _end_with_parent()
        tempfile.tempdir = str(folder)
        code = command()
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent() -> None:
    """Have the system interrupt this process when its parent dies: nobody would be there to take the result."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise KeyboardInterrupt


def _signal(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
