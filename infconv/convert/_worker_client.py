"""The parent's side of a worker process: start it, ask it, and turn whatever ends it into one clear error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infconv.errors import (
    DependencyError,
    InfconvError,
    ResourceError,
    SourceError,
    UnsupportedError,
    UsageError,
)

CRASH_FOLDER = Path("infconv-crash")
"""Where the log of a worker that died is kept, as the reproducers of bugs are."""
SCRIPT = Path(__file__).with_name("_worker.py")

KINDS: dict[str, type[InfconvError]] = {
    kind.code: kind for kind in (UsageError, SourceError, UnsupportedError, ResourceError, DependencyError)
}

_NATIVE_MEMORY_WORDS = re.compile(r"bad_alloc|MemoryError|[Cc]annot allocate memory|failed to map segment")
_LOG_TAIL_BYTES = 16 << 10
_ENDING_SECONDS = 5.0


class WorkerTraceback(Exception):
    """The worker's own traceback, as the cause of an error that was raised for it."""


class WorkerProcess:
    """A framework in a process of its own.

    `python` None: this interpreter. `memory_limit` in bytes. `log_path` receives what the framework prints and is
    removed by `close`. The process starts with the first `ask`; it is a group of its own, which `close` kills whole.
    When it dies or hangs, its log is kept in the folder infconv-crash. `folder` has a plugin's
    `_worker_<framework>.py`.
    """

    def __init__(
        self,
        framework: str,
        python: str | None,
        memory_limit: int | None,
        log_path: Path,
        folder: Path | None = None,
    ) -> None:
        self.framework = framework
        self._folder = folder
        self.peak_memory = 0
        """The largest resident size that the worker has told of, in bytes."""
        self._python = python or sys.executable
        self._memory_limit = memory_limit
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._rest = b""
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._log: list[str] = []

    @property
    def log(self) -> list[str]:
        """The end of what the framework printed, line by line."""
        return _tail(self._log_path) if self._log_path.exists() else self._log

    def ask(self, request: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Send `request` and return the result.

        Raises the InfconvError of the answer's kind. When the worker dies, or `timeout` seconds pass, it is closed and
        ResourceError, UnsupportedError or SourceError tells how it ended.
        """
        if self._process is None:
            self._start()
        try:
            answer = self._exchange(json.dumps(request), timeout)
        except BaseException:
            self.close()
            raise
        self.peak_memory = max(self.peak_memory, answer.get("peak_memory", 0))
        if answer["ok"]:
            return answer["result"]
        raise _as_error(answer["error"])

    def close(self) -> None:
        """End the process and its children, and remove the log. Idempotent."""
        self._log = self.log
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._process = None
        self._rest = b""

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> None:
        reader, writer = os.pipe()
        try:
            with self._log_path.open("wb") as log:
                process = self._spawn(writer, log.fileno())
        except OSError as error:
            os.close(reader)
            self._log_path.unlink(missing_ok=True)
            raise UsageError(
                f"The interpreter '{self._python}' cannot be started: {error.strerror or error}.",
                "Give --python the path of a Python interpreter that has the framework.",
            ) from error
        finally:
            os.close(writer)
        self._process, self._answers = process, reader
        self._finalizer = weakref.finalize(self, _end, process, reader, self._log_path)

    def _spawn(self, writer: int, log: int) -> subprocess.Popen[bytes]:
        command = [self._python, str(SCRIPT), self.framework, "--answers", str(writer)]
        if self._memory_limit:
            command += ["--memory-limit", str(self._memory_limit)]
        if self._folder:
            command += ["--folder", str(self._folder)]
        # A fixed hash seed: frameworks iterate over sets of names, and their output must not depend on the run.
        env = os.environ | {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
            env=env,
        )

    def _exchange(self, line: str, timeout: float | None) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._rest:
            if not self._wait(deadline):
                raise self._overdue(timeout)
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                raise self._death()
            self._rest += chunk
        answer, _, self._rest = self._rest.partition(b"\n")
        return json.loads(answer)

    def _wait(self, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._answers, select.POLLIN | select.POLLHUP)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        return bool(poll.poll(left))

    def _overdue(self, timeout: float | None) -> InfconvError:
        return ResourceError(
            f"The {self.framework} worker did not answer within {timeout:g} s and was ended.{self._last_words()}",
            f"Raise --timeout, or try a smaller model or example size.{self._keep_log()}",
        )

    def _death(self) -> InfconvError:
        """Return the error that says how the process ended."""
        assert self._process is not None
        try:
            code = self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return UnsupportedError(f"The {self.framework} worker closed its answers without ending.")
        words = self._last_words()
        if code == -signal.SIGKILL or (code < 0 and _NATIVE_MEMORY_WORDS.search(words)):
            return self._out_of_memory(code, words)
        if code < 0:
            return UnsupportedError(
                f"{self.framework} crashed with {_signal_name(code)} on this model.{words}",
                "Try another version of the framework (--python), or report the crash to its developers."
                + self._keep_log(),
            )
        return SourceError(
            f"The {self.framework} worker ({self._python}) ended early with exit code {code}.{words}",
            f"Either the model's own code ended it, or --python names no Python interpreter.{self._keep_log()}",
        )

    def _out_of_memory(self, code: int, words: str) -> InfconvError:
        limit = f" (the limit was {self._memory_limit / 2**30:.1f} GiB)" if self._memory_limit else ""
        return ResourceError(
            f"The {self.framework} worker was ended by {_signal_name(code)}: most likely memory ran out{limit}.{words}",
            "Raise --memory-limit, use a smaller example size (--dim), or a machine with more memory."
            + self._keep_log(),
        )

    def _keep_log(self) -> str:
        """Copy the log to the folder of crash reports; return the sentence that names it."""
        kept = CRASH_FOLDER / self._log_path.name
        try:
            CRASH_FOLDER.mkdir(exist_ok=True)
            shutil.copyfile(self._log_path, kept)
        except OSError:  # a folder that cannot be written: the last words are in the message
            return ""
        return f" What it printed is in {kept}."

    def _last_words(self) -> str:
        """Return the end of what the worker printed, as the tail of a sentence."""
        lines = self.log
        chosen = _crash_place(lines) or [line.strip() for line in lines if line.strip()][-3:]
        return f" Its last words: {' / '.join(chosen)[:600]}" if chosen else ""


def _tail(path: Path) -> list[str]:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return log.read().decode(errors="replace").splitlines()


def _crash_place(lines: list[str]) -> list[str]:
    """Return the fatal error and the innermost frames from faulthandler's report, which lists every thread."""
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    if fatal is None:
        return []
    current = next((i for i, line in enumerate(lines) if line.startswith("Current thread") and i > fatal), fatal)
    return [lines[fatal], *(line.strip() for line in lines[current + 1 : current + 3])]


def _as_error(error: Mapping[str, str]) -> InfconvError:
    kind = KINDS.get(error["kind"], InfconvError)
    result = kind(error["message"], error["hint"])
    if kind is InfconvError:
        result.__cause__ = WorkerTraceback(f"\n{error['traceback']}")
    return result


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _end(process: subprocess.Popen[bytes], answers: int, log_path: Path) -> None:
    """Kill the group, reap the process, release the pipe ends and the log."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    os.close(answers)
    log_path.unlink(missing_ok=True)
