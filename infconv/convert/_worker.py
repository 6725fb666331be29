"""The process that runs a training framework: started by path in any Python from 3.10, standard library only.

    <python> /path/to/_worker.py FRAMEWORK --answers FD [--memory-limit BYTES] [--folder FOLDER]

reads one JSON request per line on standard input and writes one JSON answer per line on the inherited file descriptor
FD. A framework's chatter cannot reach that descriptor: standard output is standard error here.

A request is `{"op": NAME, ...}`. An answer is `{"ok": true, "result": {...}, "peak_memory": BYTES}` or
`{"ok": false, "error": {"kind", "message", "hint", "traceback"}, "peak_memory": BYTES}` with `kind` one of usage,
source, unsupported, resource, dependency, bug.

The framework's half is the sibling file `_worker_<framework>.py`, or the one in FOLDER, a plugin's. It defines
`operations()`, which returns the handlers by operation name; a handler takes the request and returns the result, or
raises `WorkerError`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import faulthandler
import importlib
import json
import os
import re
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Request = dict[str, Any]
Handler = Callable[[Request], dict[str, Any]]

PACKAGE = "infconv_worker"
"""The package that this folder is to its own files here: importing `infconv` itself would need its dependencies."""

OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|failed to map segment|bad_alloc"
    r"|resource_?exhausted|out of memory",
    re.IGNORECASE,
)


class WorkerError(Exception):
    """A failure that the user can understand. `kind` is a class of infconv.errors by its `code`."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


def main() -> int:
    """Serve requests until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("framework")
    parser.add_argument("--answers", type=int, required=True)
    parser.add_argument("--memory-limit", type=int)
    parser.add_argument("--folder")
    options = parser.parse_args()
    faulthandler.enable()
    requests, answers = _take_channels(options.answers)
    _leave_network()  # before the first thread: a process with threads may not change its user namespace
    _forbid_network()
    _end_with_parent()
    if options.memory_limit:
        _limit_memory(options.memory_limit)
    serve(_Lazy(options.framework, options.folder), requests, answers)
    return 0


def serve(handlers: _Lazy, requests: TextIO, answers: TextIO) -> None:
    """Answer each request of `requests` with one line on `answers`."""
    for line in requests:
        try:
            request = json.loads(line)
            answer: dict[str, Any] = {"ok": True, "result": handlers.get(request["op"])(request)}
            text = json.dumps(answer | {"peak_memory": peak_memory()})
        except (Exception, SystemExit) as error:
            answer = {"ok": False, "error": describe(error, handlers.framework)}
            text = json.dumps(answer | {"peak_memory": peak_memory()})
        answers.write(text + "\n")
        answers.flush()


class _Lazy:
    """The framework's handlers, loaded with the first request so that a failing import is an answer."""

    def __init__(self, framework: str, folder: str | None = None) -> None:
        self.framework = framework
        self._folder = folder
        self._handlers: dict[str, Handler] | None = None

    def get(self, op: str) -> Handler:
        handlers = self._handlers
        if handlers is None:
            handlers = self._handlers = load_sibling(f"_worker_{self.framework}", self._folder).operations()
            # The user's own folder is imported from next: leave no __pycache__ there.
            sys.dont_write_bytecode = True
        if op not in handlers:
            raise WorkerError("bug", f"The {self.framework} worker has no operation '{op}'.")
        return handlers[op]


def load_sibling(name: str, also: str | None = None) -> Any:
    """Import the file `name`.py beside this one, or in the folder `also`; relative imports between such files work."""
    folder = str(Path(__file__).resolve().parent)
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [folder, also] if also else [folder]
        sys.modules[PACKAGE] = package
        sys.modules[f"{PACKAGE}._worker"] = sys.modules[__name__]
        # The script's own folder comes first on sys.path: our file names must not shadow the user's modules.
        sys.path[:] = [str(Path.cwd()), *(path for path in sys.path if str(Path(path).resolve()) != folder)]
    return importlib.import_module(f"{PACKAGE}.{name}")


def load_handlers(options: Request) -> dict[Any, Any]:
    """Return the mapping that the source option `handlers` names: the user's conversions of custom operators.

    `module` or `module:attribute` (by default `handlers`), importable from the working folder; the user named it, so
    it may run. Raises WorkerError (usage).
    """
    reference = options.get("handlers")
    if reference is None:
        return {}
    hint = "It names a module with a dictionary `handlers`, or MODULE:NAME; see docs/custom-operators.md."
    name, _, attribute = str(reference).partition(":")
    try:
        found = getattr(importlib.import_module(name), attribute or "handlers")
    except Exception as error:  # the user's module raises whatever it meets
        fact = f"Source option handlers='{reference}' cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise WorkerError("usage", fact, hint) from error
    if not isinstance(found, dict):
        raise WorkerError("usage", f"Source option handlers='{reference}' is a {type(found).__name__}.", hint)
    return found


def describe(error: BaseException, framework: str) -> dict[str, str]:
    """Return `error` as the `error` object of an answer."""
    kind, message, hint = _classify(error, framework)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"kind": kind, "message": message, "hint": hint, "traceback": text}


def _classify(error: BaseException, framework: str) -> tuple[str, str, str]:
    if isinstance(error, WorkerError):
        return error.kind, error.message, error.hint
    if ran_out_of_memory(error):
        return (
            "resource",
            f"Memory ran out in the {framework} worker: {first_line(error)}",
            "Raise --memory-limit, use a smaller example size (--dim), or a machine with more memory.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "resource", f"The disk is full: {error}", "Free some space, or write to another disk."
    if isinstance(error, ImportError):
        return _missing(error, framework)
    if isinstance(error, SystemExit):
        return "source", f"The model's own code ended the process: sys.exit({error.code!r}).", ""
    return "bug", f"The {framework} worker failed: {type(error).__name__}: {first_line(error)}", ""


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` says that memory ran out, in Python's words or a native allocator's.

    Under a limit, native code that fails without a word has met it.
    """
    native = isinstance(error, (RuntimeError, OSError, ImportError)) and bool(OUT_OF_MEMORY.search(str(error)))
    mute = isinstance(error, SystemError) and "without exception set" in str(error) and _is_limited()
    return isinstance(error, MemoryError) or native or mute


def _is_limited() -> bool:
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _missing(error: ImportError, framework: str) -> tuple[str, str, str]:
    where = f"in {sys.executable}"
    hint = (
        f"Install it with: pip install 'infconv[{framework}]', or for that interpreter: {sys.executable} -m pip "
        f"install {error.name or framework}. If another interpreter has it: --python PATH."
    )
    if isinstance(error, ModuleNotFoundError):
        return "dependency", f"The {framework} frontend needs '{error.name}', which is not installed {where}.", hint
    return "dependency", f"The {framework} frontend cannot be loaded {where}: {first_line(error)}", hint


def first_line(error: BaseException) -> str:
    """Return the first line that says something of the message of `error`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _take_channels(answers_fd: int) -> tuple[TextIO, TextIO]:
    """Keep both channels away from everything that is imported later, and from child processes."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    os.set_inheritable(answers_fd, False)
    return requests, os.fdopen(answers_fd, "w", encoding="utf-8")


def _limit_memory(limit: int) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ValueError, OSError) as error:  # macOS refuses limits on address space
        sys.stderr.write(f"infconv: this system sets no memory limit: {error}\n")


def _end_with_parent() -> None:
    """End when the parent is gone, even in the middle of a request."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="infconv-parent-watch", daemon=True).start()


def _leave_network() -> None:
    """Move to a network namespace without any interface, as far as the system lets this user: on Linux it mostly does.

    There, native code and child processes cannot connect either. See unshare(2), user_namespaces(7).
    """
    if not sys.platform.startswith("linux"):
        return
    new_user, new_network = 0x10000000, 0x40000000
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    user, group = os.geteuid(), os.getegid()
    if unshare(new_network) == 0 or unshare(new_user | new_network) != 0:
        return  # done as root, or not allowed: Python's own connections are refused in any case
    # The identity is lost with the user namespace unless it is mapped to itself.
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, content in maps.items():
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as stream:
            stream.write(content)


def _forbid_network() -> None:
    """Refuse to connect anywhere: converting is an offline job, and a model file must not call home.

    This is for Python code, which is told why; `_leave_network` is for all the rest.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        away = event == "socket.connect" and isinstance(arguments[1], tuple)
        if away or event == "socket.getaddrinfo":
            raise PermissionError(f"infconv converts offline: no connection to {arguments[0 if not away else 1]}")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    sys.exit(main())
