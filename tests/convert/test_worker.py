"""The worker process and its client, with a toy framework beside a copy of the worker script."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infconv.convert import _worker_client
from infconv.convert._worker_client import WorkerProcess
from infconv.errors import (
    DependencyError,
    InfconvError,
    ResourceError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from tests.helpers import children

TOY = """
import ctypes, os, signal, subprocess, sys, time
from ._worker import WorkerError

def echo(request):
    print("chatter on standard output")
    os.write(1, b"and below Python\\n")
    return {"text": request["text"], "modules": [n for n in sys.modules if n.startswith("infconv.")]}

def refuse(request):
    raise WorkerError(request["kind"], "a fact", "a remedy")

def fail(request):
    raise KeyError("what")

def leave(request):
    sys.exit(3)

def die(request):
    os.write(2, b"something odd\\n")
    os._exit(3)

def kill(request):
    os.kill(os.getpid(), signal.SIGKILL)

def crash(request):
    ctypes.string_at(0)

def bad_alloc(request):
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\\n")
    os.abort()

def hang(request):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(request["pid_file"], "w") as stream:
        stream.write(str(child.pid))
    time.sleep(600)

def allocate(request):
    return {"size": len(bytearray(request["bytes"]))}

def connect(request):
    import socket
    socket.create_connection(("192.0.2.1", 80), timeout=1)

def native_connect(request):
    code = "import socket; socket.create_connection(('127.0.0.1', %d), timeout=5)" % request["port"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    return {"connected": done.returncode == 0, "network": os.readlink("/proc/self/ns/net"), "user": os.getuid()}

def missing(request):
    import a_package_that_is_not_installed

def operations():
    return {f.__name__: f for f in (
        echo, refuse, fail, leave, die, kill, crash, bad_alloc, hang, allocate, connect, native_connect, missing)}
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the worker script with the toy framework beside it."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    copy = Path(shutil.copy(_worker_client.SCRIPT, folder))
    (folder / "_worker_toy.py").write_text(TOY)
    monkeypatch.setattr(_worker_client, "SCRIPT", copy)
    monkeypatch.chdir(tmp_path)
    return copy


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture
def toy(script: Path, log: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess("toy", None, None, log) as worker:
        yield worker
    assert not log.exists()


def test_chatter_cannot_corrupt_an_answer(toy: WorkerProcess, log: Path):
    assert toy.ask({"op": "echo", "text": "ü"})["text"] == "ü"
    assert "chatter" in log.read_text()
    assert "below Python" in log.read_text()


def test_one_process_answers_many_requests_and_needs_no_infconv(toy: WorkerProcess):
    answers = [toy.ask({"op": "echo", "text": str(i)}) for i in range(3)]
    assert [each["text"] for each in answers] == ["0", "1", "2"]
    assert answers[0]["modules"] == []
    assert toy.peak_memory > 1 << 20


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("usage", UsageError),
        ("source", SourceError),
        ("unsupported", UnsupportedError),
        ("resource", ResourceError),
        ("dependency", DependencyError),
    ],
)
def test_a_failure_keeps_its_class_and_the_worker_lives_on(toy: WorkerProcess, kind: str, error: type[InfconvError]):
    with pytest.raises(error) as caught:
        toy.ask({"op": "refuse", "kind": kind})
    assert (caught.value.message, caught.value.hint) == ("a fact", "a remedy")
    assert toy.ask({"op": "echo", "text": "still here"})["text"] == "still here"


def test_a_bug_keeps_its_traceback(toy: WorkerProcess):
    with pytest.raises(InfconvError, match="KeyError") as caught:
        toy.ask({"op": "fail"})
    assert type(caught.value) is InfconvError
    assert "_worker_toy.py" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("op", "error", "words"),
    [
        ("leave", SourceError, r"sys\.exit\(3\)"),
        ("die", SourceError, "exit code 3.*something odd"),
        ("kill", ResourceError, "SIGKILL.*memory"),
        ("crash", UnsupportedError, "SIGSEGV.*in crash"),
        ("bad_alloc", ResourceError, "memory"),
        ("missing", DependencyError, "a_package_that_is_not_installed"),
        ("connect", InfconvError, "offline"),
    ],
)
def test_every_end_is_one_clear_sentence(toy: WorkerProcess, op: str, error: type[InfconvError], words: str):
    with pytest.raises(error, match=words) as caught:
        toy.ask({"op": op})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("op", ["die", "kill", "crash"])
def test_the_log_of_a_dead_worker_is_kept(toy: WorkerProcess, tmp_path: Path, op: str):
    toy.ask({"op": "echo", "text": ""})
    with pytest.raises(InfconvError) as caught:
        toy.ask({"op": op})
    assert "infconv-crash/worker.log" in caught.value.hint
    assert "chatter on standard output" in (tmp_path / "infconv-crash" / "worker.log").read_text()


def test_the_log_of_a_finished_worker_can_be_read(toy: WorkerProcess, tmp_path: Path):
    toy.ask({"op": "echo", "text": ""})
    toy.close()
    assert "chatter on standard output" in toy.log
    assert not (tmp_path / "infconv-crash").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")
def test_native_code_and_child_processes_have_no_network(toy: WorkerProcess):
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = toy.ask({"op": "native_connect", "port": server.getsockname()[1]})
    if found["network"] == str(Path("/proc/self/ns/net").readlink()):
        pytest.skip("this system lets no user process have a network namespace of its own")
    assert not found["connected"]
    assert found["user"] == os.getuid()


def test_after_a_death_the_next_request_starts_a_new_process(toy: WorkerProcess):
    with pytest.raises(ResourceError):
        toy.ask({"op": "kill"})
    assert toy.ask({"op": "echo", "text": "again"})["text"] == "again"


def test_a_hang_is_ended_with_its_children(toy: WorkerProcess, tmp_path: Path):
    pid_file = tmp_path / "child"
    started = time.monotonic()
    with pytest.raises(ResourceError, match="did not answer within 2 s"):
        toy.ask({"op": "hang", "pid_file": str(pid_file)}, timeout=2)
    assert time.monotonic() - started < 10
    assert _ended(int(pid_file.read_text()))


def _ended(pid: int) -> bool:
    """Tell whether a process that is not our child has gone, within a moment."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # killed; its own parent (init) has yet to reap it
        time.sleep(0.1)
    return False


def test_no_zombie_is_left(script: Path, log: Path):
    before = children()
    worker = WorkerProcess("toy", None, None, log)
    worker.ask({"op": "echo", "text": ""})
    worker.close()
    worker.close()
    assert children() <= before


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no limit on address space")
def test_the_memory_limit_is_an_error_with_a_remedy(script: Path, log: Path):
    with WorkerProcess("toy", None, 512 << 20, log) as worker:
        assert worker.ask({"op": "allocate", "bytes": 1 << 20}) == {"size": 1 << 20}
        with pytest.raises(ResourceError, match="Memory ran out") as caught:
            worker.ask({"op": "allocate", "bytes": 1 << 30})
    assert "--memory-limit" in caught.value.hint


def test_a_framework_that_is_not_installed_names_the_extra(script: Path, log: Path):
    script.with_name("_worker_absent.py").write_text("import absent_framework\n")
    with (
        WorkerProcess("absent", None, None, log) as worker,
        pytest.raises(DependencyError, match="absent_framework") as caught,
    ):
        worker.ask({"op": "echo"})
    assert "pip install 'infconv[absent]'" in caught.value.hint


def test_a_plugins_worker_lives_in_its_own_folder(tmp_path: Path, log: Path):
    code = "from ._worker import peak_memory\ndef operations(): return {'peak': lambda _: {'bytes': peak_memory()}}\n"
    (tmp_path / "_worker_plugged.py").write_text(code)
    with WorkerProcess("plugged", None, None, log, tmp_path) as worker:
        assert worker.ask({"op": "peak"})["bytes"] > 1 << 20


@pytest.mark.parametrize(("python", "words"), [("/no/such/python", "cannot be started"), ("/bin/true", "ended early")])
def test_an_interpreter_that_is_none(script: Path, log: Path, python: str, words: str):
    with WorkerProcess("toy", python, None, log) as worker, pytest.raises(InfconvError, match=words):
        worker.ask({"op": "echo", "text": ""})
    assert not log.exists()
