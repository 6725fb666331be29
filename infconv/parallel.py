"""Make independent things at the same time, in forked processes; told and returned as if one came after another.

What the earliest unfinished thing tells its observers is passed on at once, what a later one tells when its turn comes:
the output is the same with any number of processes. A native crash fails one thing only.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

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
    if not isolate.CAN_FORK or spec.jobs is None:
        return 1
    asked = spec.jobs or len(os.sched_getaffinity(0))
    if spec.memory_limit is not None and asked > 1:
        asked = min(asked, _memory() // spec.memory_limit)
    return max(1, min(asked, count))


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
class _Heard:
    """What is known of one of the works."""

    told: list[tuple[str, Any]] = dataclasses.field(default_factory=list[tuple[str, Any]])
    """What it told its observers, and nobody has been told yet."""
    outcome: tuple[bool, Any] | None = None
    """Whether it returned, and what; else what it raised."""


@dataclasses.dataclass
class _Worker:
    """A process that does one work after another; forking once for each would cost a quarter of a small conversion."""

    process: int
    reader: int
    writer: int
    work: int | None = None
    """The number of what it does now."""
    received: bytearray = dataclasses.field(default_factory=bytearray)


class _Pool(Generic[T]):
    def __init__(self, works: Sequence[Callable[[Observers], T]], most: int, watch: Observers) -> None:
        self._works, self._most, self._watch = works, most, watch
        self._heard = [_Heard() for _ in works]
        self._workers: list[_Worker] = []
        self._next = self._turn = 0

    def run(self) -> list[T | InfconvError]:
        try:
            while self._turn < len(self._works):
                if not self._assign():
                    self._listen()
                self._pass_on()
        finally:
            for worker in self._workers:
                _end(worker)
        return [cast("tuple[bool, Any]", heard.outcome)[1] for heard in self._heard]

    def _assign(self) -> bool:
        """Give the next work to a worker without one, or to a new one; return whether that was possible."""
        if self._next == len(self._works):
            return False
        idle = next((worker for worker in self._workers if worker.work is None), None)
        if idle is None and len(self._workers) == self._most:
            return False
        if idle is None:
            idle = self._start()
            self._workers.append(idle)
        idle.work = self._next
        with contextlib.suppress(BrokenPipeError):  # it died: listening tells of it
            _send(idle.writer, ("do", self._next))
        self._next += 1
        return True

    def _start(self) -> _Worker:
        results, commands = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # see isolate.call
            process = os.fork()
        if process == 0:
            for worker in self._workers:  # whose ends the parent holds alone
                os.close(worker.reader)
                os.close(worker.writer)
            os.close(results[0])
            os.close(commands[1])
            _run_worker(self._works, commands[0], results[1], parent)
        os.close(results[1])
        os.close(commands[0])
        return _Worker(process, results[0], commands[1])

    def _listen(self) -> None:
        readers = {worker.reader: worker for worker in self._workers if worker.work is not None}
        ready, _, _ = select.select(list(readers), [], [], _LOOK_SECONDS)
        for reader in ready:
            self._receive(readers[reader])
        for worker in [] if ready else readers.values():
            # A process that the dead one started may still hold the pipe, which then does not tell.
            process, status = os.waitpid(worker.process, os.WNOHANG)
            if process:
                self._bury(worker, status)

    def _receive(self, worker: _Worker) -> None:
        """Take in what the worker sent; at the end of it, how it died."""
        data = os.read(worker.reader, 1 << 20)
        worker.received += data
        for kind, told in _messages(worker.received):
            assert worker.work is not None
            heard = self._heard[worker.work]
            if kind == "done":
                heard.outcome, worker.work = told, None
            else:
                heard.told.append((kind, told))
        if not data:
            self._bury(worker, os.waitpid(worker.process, 0)[1])

    def _bury(self, worker: _Worker, status: int) -> None:
        death = isolate._death("The conversion", os.waitstatus_to_exitcode(status), None)
        if worker.work is not None:
            self._heard[worker.work].outcome = False, death
        self._workers.remove(worker)
        os.close(worker.reader)
        os.close(worker.writer)

    def _pass_on(self) -> None:
        """Tell the observers what the earliest unfinished work told, and raise what is no InfconvError."""
        while self._turn < len(self._works):
            heard = self._heard[self._turn]
            for kind, told in heard.told:
                _tell(self._watch, kind, told)
            heard.told.clear()
            if heard.outcome is None:
                return
            ok, value = heard.outcome
            if not ok and not isinstance(value, InfconvError):
                raise value
            self._turn += 1


def _run_worker(works: Sequence[Callable[[Observers], Any]], reader: int, writer: int, parent: int) -> None:
    """Do the works whose numbers come in until no more do, and leave without the parent's exit handlers."""
    code = 1
    try:
        os.setpgid(0, 0)  # what it starts is killed with it
        faulthandler.disable()  # the parent tells of a crash, in one sentence
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        received = bytearray()
        while os.getppid() == parent and (data := os.read(reader, 1 << 16)):
            received += data
            for _, number in _messages(received):
                _send(writer, ("done", _outcome(works[number], writer)))
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


def _messages(received: bytearray) -> Iterator[tuple[str, Any]]:
    """Take the messages that are whole out of `received`."""
    while len(received) >= 8:
        end = 8 + int.from_bytes(received[:8], "little")
        if len(received) < end:
            return
        message = pickle.loads(received[8:end])
        del received[:end]
        yield message


def _end(worker: _Worker) -> None:
    """Let an idle worker go; kill a busy one and what it started."""
    os.close(worker.writer)
    if worker.work is not None:
        for kill in (os.killpg, os.kill):  # the group is there when the worker got so far
            with contextlib.suppress(ProcessLookupError):
                kill(worker.process, signal.SIGKILL)
    os.waitpid(worker.process, 0)
    os.close(worker.reader)


def _tell(watch: Observers, kind: str, told: Any) -> None:
    if kind == "stage":
        watch.tell(told)
    elif kind == "before":
        watch.before(told)
    else:
        watch.after(told)
