"""Make independent things at the same time, each in a forked process; told and returned as if one came after another.

What the earliest unfinished thing tells its observers is passed on at once, what a later one tells when its turn comes:
the output is the same with any number of processes. A native crash ends its own process only.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from infconv import isolate
from infconv.errors import InfconvError
from infconv.observe import Observers

if TYPE_CHECKING:
    from infconv.result import StepResult
    from infconv.spec import PipelineSpec

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0
"""How often it is looked whether a silent process still lives."""


def processes(spec: PipelineSpec, count: int) -> int:
    """Return how many processes make `count` things: `jobs` of the pipeline, and no more than the memory allows."""
    asked = 1 if spec.jobs is None else spec.jobs or len(os.sched_getaffinity(0))
    if spec.memory_limit is not None and asked > 1:
        asked = min(asked, _memory() // spec.memory_limit)
    return max(1, min(asked, count)) if isolate.CAN_FORK else 1


def _memory() -> int:
    """Return the bytes of memory that there are: the machine's, or the container's."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file outside a container, "max" in an unlimited one
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return found


def run_each(works: Sequence[Callable[[Observers], T]], most: int, watch: Observers) -> list[T | InfconvError]:
    """Return what each of `works` returns, or the InfconvError that it raises; at most `most` run at the same time.

    Other exceptions are raised. With one process everything runs in this one, in order.
    """
    if most > 1:
        return _Pool(works, most, watch).run()
    outcomes: list[T | InfconvError] = []
    for work in works:
        try:
            outcomes.append(work(watch))
        except InfconvError as error:
            outcomes.append(error)
    return outcomes


@dataclasses.dataclass
class _Child(Generic[T]):
    process: int
    reader: int
    received: bytearray = dataclasses.field(default_factory=bytearray)
    told: list[tuple[str, Any]] = dataclasses.field(default_factory=list[tuple[str, Any]])
    """What it told its observers, and nobody has been told yet."""
    outcome: tuple[bool, Any] | None = None
    """Whether it returned, and what; else what it raised."""


class _Pool(Generic[T]):
    def __init__(self, works: Sequence[Callable[[Observers], T]], most: int, watch: Observers) -> None:
        self._works, self._most, self._watch = works, most, watch
        self._children: list[_Child[T]] = []
        self._turn = 0

    def run(self) -> list[T | InfconvError]:
        try:
            while self._turn < len(self._works):
                running = [child for child in self._children if child.outcome is None]
                if len(running) < self._most and len(self._children) < len(self._works):
                    self._children.append(_start(self._works[len(self._children)]))
                else:
                    self._listen(running)
                self._pass_on()
        finally:
            for child in self._children:
                _end(child)
        return [_returned(child) for child in self._children]

    def _listen(self, running: Sequence[_Child[T]]) -> None:
        readers = {child.reader: child for child in running}
        ready, _, _ = select.select(list(readers), [], [], _LOOK_SECONDS)
        for reader in ready:
            _receive(readers[reader])
        for child in [] if ready else running:
            _look_after(child)

    def _pass_on(self) -> None:
        """Tell the observers what the earliest unfinished process told, and raise what is no InfconvError."""
        while self._turn < len(self._children):
            child = self._children[self._turn]
            for kind, told in child.told:
                _tell(self._watch, kind, told)
            child.told.clear()
            if child.outcome is None:
                return
            ok, value = child.outcome
            if not ok and not isinstance(value, InfconvError):
                raise value
            self._turn += 1


def _start(work: Callable[[Observers], Any]) -> _Child[Any]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see isolate.call
        process = os.fork()
    if process == 0:
        os.close(reader)
        _run_child(work, writer, parent)
    os.close(writer)
    return _Child(process, reader)


def _run_child(work: Callable[[Observers], Any], writer: int, parent: int) -> None:
    """Run `work`, send what it tells and its outcome, and leave without the parent's exit handlers."""
    code = 1
    try:
        os.setpgid(0, 0)  # what it starts is killed with it
        faulthandler.disable()  # the parent tells of a crash, in one sentence
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:
            _send(writer, ("done", _outcome(work, writer)))
            code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _outcome(work: Callable[[Observers], Any], writer: int) -> tuple[bool, Any]:
    try:
        outcome = True, work(Observers([_Sender(writer)]))
        pickle.dumps(outcome, protocol=5)
    except Exception as error:  # of whatever kind: it is raised in the parent
        error.add_note("".join(traceback.format_exception(error)))
        return False, isolate._portable(error)
    return outcome


class _Sender:
    """An observer that sends what it is told to the parent."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def stage(self, name: str) -> None:
        _send(self._writer, ("stage", name))

    def before(self, step: str) -> None:
        _send(self._writer, ("before", step))

    def after(self, result: StepResult) -> None:
        _send(self._writer, ("after", result))


def _send(writer: int, message: tuple[str, Any]) -> None:
    data = pickle.dumps(message, protocol=5)
    left = memoryview(len(data).to_bytes(8, "little") + data)
    while left:
        left = left[os.write(writer, left) :]


def _receive(child: _Child[Any]) -> None:
    """Take in what the child sent; at the end of it, how it ended."""
    data = os.read(child.reader, 1 << 20)
    child.received += data
    while len(child.received) >= 8:
        end = 8 + int.from_bytes(child.received[:8], "little")
        if len(child.received) < end:
            break
        kind, told = pickle.loads(child.received[8:end])
        del child.received[:end]
        if kind == "done":
            child.outcome = told
        else:
            child.told.append((kind, told))
    if not data and child.outcome is None:
        _bury(child, os.waitpid(child.process, 0)[1])


def _look_after(child: _Child[Any]) -> None:
    """Notice a death that the pipe does not tell of: a process that the dead one started may still hold it."""
    process, status = os.waitpid(child.process, os.WNOHANG)
    if process:
        _bury(child, status)


def _bury(child: _Child[Any], status: int) -> None:
    child.process = 0
    child.outcome = False, isolate._death("The conversion", os.waitstatus_to_exitcode(status), None)


def _end(child: _Child[Any]) -> None:
    """Kill what is left of the child and of what it started."""
    os.close(child.reader)
    if child.process:
        if child.outcome is None:
            for kill in (os.killpg, os.kill):  # the group is there when the child got so far
                with contextlib.suppress(ProcessLookupError):
                    kill(child.process, signal.SIGKILL)
        os.waitpid(child.process, 0)


def _tell(watch: Observers, kind: str, told: Any) -> None:
    if kind == "stage":
        watch.tell(told)
    elif kind == "before":
        watch.before(told)
    else:
        watch.after(told)


def _returned(child: _Child[T]) -> T | InfconvError:
    assert child.outcome is not None
    return child.outcome[1]
