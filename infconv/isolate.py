"""Run a function in a forked child, so that a crash, a hang or an out-of-memory kill is an error and not the end.

Native libraries (checker, shape inference, runtimes) segfault on odd models and loop without end on some. The child
shares the parent's memory copy-on-write, so that handing it a model costs nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from infconv.errors import InfconvError, ResourceError

T = TypeVar("T")

CAN_FORK = hasattr(os, "fork") and sys.platform == "linux"
"""macOS frameworks abort in a forked child; there, and on Windows, functions run in this process."""


class Crashed(InfconvError):
    """The child died of a signal."""


class TimedOut(ResourceError):
    """The child ran longer than it was allowed."""


class OutOfMemory(ResourceError):
    """The child asked for more memory than it was allowed, or the system killed it for memory."""


def call(function: Callable[[], T], *, what: str, timeout: float | None = None, memory_limit: int | None = None) -> T:
    """Return `function()`, run in a forked child; its exceptions are raised here.

    `what` names the work in errors, e.g. "Shape inference". `timeout` is in seconds, `memory_limit` in bytes of the
    child's address space. The result must be picklable. Raises Crashed, TimedOut or OutOfMemory.
    """
    if not CAN_FORK:
        return function()
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # The child runs only our function and leaves by os._exit; library thread pools are created anew in it.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _run_child(function, writer, memory_limit)
    os.close(writer)
    try:
        payload = _read_all(reader, timeout)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
    if payload is None:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if payload is None:
        raise TimedOut(f"{what} did not finish within {timeout:g} s.", "Raise the limit with --step-timeout.")
    if not payload:
        raise _death(what, status, memory_limit)
    ok, value = pickle.loads(payload)
    if not ok:
        raise value
    return value


def _run_child(function: Callable[[], Any], writer: int, memory_limit: int | None) -> None:
    """Run `function`, send the pickled outcome and leave without running any exit handler of the parent."""
    code = 0
    faulthandler.disable()  # the parent tells of the crash, in one sentence
    try:
        with contextlib.suppress(ImportError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if memory_limit:
                resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
        try:
            outcome = (True, function())
        except MemoryError:
            outcome = (False, OutOfMemory("It needs more memory than it was allowed.", "Raise --memory-limit."))
        except BaseException as error:
            outcome = (False, _portable(error))
        with os.fdopen(writer, "wb") as stream:
            stream.write(_pickled(outcome))
    except BaseException:
        code = 70
    finally:
        os._exit(code)


def _pickled(outcome: tuple[bool, Any]) -> bytes:
    """Return `outcome` as bytes, whole or not at all: the parent cannot tell a part from a crash."""
    try:
        return pickle.dumps(outcome, protocol=5)
    except Exception as error:  # pickling runs the objects' own code, which raises what it likes
        return pickle.dumps((False, TypeError(f"the result cannot be sent back: {error}")), protocol=5)


def _portable(error: BaseException) -> BaseException:
    """Return `error` if it survives pickling, else an error of the same text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # third-party exceptions fail here in ways of their own; the text is what matters
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _read_all(fd: int, timeout: float | None) -> bytes | None:
    """Return what was written until the other end closed; None at the deadline."""
    deadline = None if timeout is None else time.monotonic() + timeout
    chunks: list[bytes] = []
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([fd], [], [], left)[0]:
            return None
        chunk = os.read(fd, 1 << 20)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def _death(what: str, status: int, memory_limit: int | None) -> InfconvError:
    if status == -signal.SIGKILL or (memory_limit and status == -signal.SIGABRT):
        return OutOfMemory(
            f"{what} was killed: it needs more memory than there is.", "Raise --memory-limit or free memory."
        )
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return Crashed(f"{what} crashed ({name}).", "The crash is in a native library; the model that caused it is valid.")
