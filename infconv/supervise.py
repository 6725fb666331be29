"""Run the command in a forked child and watch it: a native crash, a kill for memory or a time-out becomes a sentence.

The fork happens before anything heavy is imported, so that it costs a millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from infconv.errors import InfconvError, ResourceError
from infconv.isolate import CAN_FORK
from infconv.publish import session

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def supervised(command: Callable[[], int], *, timeout: float | None, memory_limit: int | None) -> int:
    """Return `command()`'s exit code, run in a child that may use `memory_limit` bytes and `timeout` seconds.

    Temporary and staging folders are removed however the child ends. Raises ResourceError at a limit, InfconvError
    (a bug) when the child dies of another signal.
    """
    if not CAN_FORK:
        return command()
    with session() as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _run_child(command, folder, memory_limit)
        for number in _ENDS:
            signal.signal(number, lambda received, _: _signal(child, received))
        status = _wait(child, timeout)
    return _exit_code(status, timeout)


def _exit_code(status: int | None, timeout: float | None) -> int:
    if status is None:
        raise ResourceError(f"The conversion did not finish within {timeout:g} s.", "Raise the limit with --timeout.")
    if status >= 0:
        return status
    if -status == signal.SIGKILL:
        raise ResourceError(
            "The conversion was killed (SIGKILL), as systems do when memory runs out.",
            "Free memory, or set --memory-limit to have it stop by itself.",
        )
    raise InfconvError(
        f"The conversion crashed ({signal.Signals(-status).name}) in a native library.",
        "Find the step with --verify each, which runs every step on its own.",
    )


def _run_child(command: Callable[[], int], folder: Path, memory_limit: int | None) -> None:
    code = 1
    try:
        os.setpgid(0, 0)  # a group of its own, so that what it starts can be killed with it
        for number in _ENDS:
            signal.signal(number, signal.default_int_handler)
        _end_with_parent()
        tempfile.tempdir = str(folder)
        if memory_limit:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
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


def _wait(child: int, timeout: float | None) -> int | None:
    """Return the child's exit status (negative: the signal); None when it had to be killed at the time-out."""
    if timeout is None:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _kill(child)
    os.waitpid(child, 0)
    return None


def _kill(child: int) -> None:
    """Kill the child and what it started."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        os.kill(child, signal.SIGKILL)


def _signal(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
