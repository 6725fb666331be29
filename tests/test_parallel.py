"""Several things at a time: the same outcome and the same words as one after another, and no process too many."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infconv import parallel
from infconv.errors import DependencyError, InfconvError, SourceError
from infconv.isolate import Crashed, OutOfMemory
from infconv.observe import Observers
from infconv.parallel import processes, run_each
from infconv.result import StepResult
from infconv.runs import execute_all
from infconv.spec import PipelineSpec
from tests.conftest import make_mlp


class Watcher:
    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, name: str) -> None:
        self.told.append(name)

    def before(self, step: str) -> None:
        self.told.append(f"before {step}")

    def after(self, result: StepResult) -> None:
        self.told.append(f"after {result.name}")


def tell(number: int, watch: Observers) -> int:
    """Tell of two stages and a step; the earlier, the slower."""
    watch.tell(f"{number} begins")
    time.sleep(0.2 / (number + 1))
    watch.before(f"step {number}")
    watch.after(StepResult(f"step {number}"))
    return number * number


@pytest.mark.parametrize("most", [1, 2, 4])
def test_outcomes_and_words_are_in_order(most: int) -> None:
    watcher = Watcher()
    works = [partial(tell, number) for number in range(5)]
    assert run_each(works, most, Observers([watcher])) == [0, 1, 4, 9, 16]
    expected = [w for n in range(5) for w in (f"{n} begins", f"before step {n}", f"after step {n}")]
    assert watcher.told == expected


def raises(error: Exception, watch: Observers) -> int:
    raise error


def dies(number: signal.Signals, watch: Observers) -> int:
    os.kill(os.getpid(), number)
    return 0


@pytest.mark.parametrize("most", [1, 2])
def test_a_refusal_does_not_stop_the_others(most: int) -> None:
    works: list[Callable[[Observers], int]] = [partial(raises, SourceError("no", "why")), partial(tell, 2)]
    outcomes = run_each(works, most, Observers())
    assert isinstance(outcomes[0], SourceError)
    assert (outcomes[0].message, outcomes[0].hint, outcomes[1]) == ("no", "why", 4)


def test_a_crash_does_not_stop_the_others() -> None:
    works: list[Callable[[Observers], int]] = [
        partial(dies, signal.SIGSEGV),
        partial(dies, signal.SIGKILL),
        partial(tell, 1),
    ]
    outcomes = run_each(works, 2, Observers())
    assert isinstance(outcomes[0], Crashed)
    assert isinstance(outcomes[1], OutOfMemory)
    assert outcomes[2] == 1


@pytest.mark.parametrize("most", [1, 2])
def test_a_bug_is_raised_with_its_place(most: int) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_each([partial(raises, ZeroDivisionError("oh")), partial(tell, 1)], most, Observers())
    if most > 1:
        assert "in raises" in caught.value.__notes__[0]


def spawn(place: Path, watch: Observers) -> int:
    """Start a process that would go on for long, and wait for it."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    place.write_text(str(child))
    os.waitpid(child, 0)
    return 0


def test_nothing_is_left_running_after_a_bug(tmp_path: Path) -> None:
    def fail(watch: Observers) -> int:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_each([fail, partial(spawn, tmp_path / "pid")], 2, Observers())
    grandchild = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _lives(grandchild):
        time.sleep(0.02)
    assert not _lives(grandchild)


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_no_more_run_than_asked_for() -> None:
    def count(watch: Observers) -> float:
        begin = time.monotonic()
        time.sleep(0.1)
        return begin

    begins = run_each([count] * 6, 2, Observers())
    spans = [float(begin) for begin in begins if not isinstance(begin, InfconvError)]
    assert all(sum(other <= begin < other + 0.1 for other in spans) <= 2 for begin in spans)


@pytest.mark.parametrize(
    ("jobs", "limit", "count", "expected"),
    [(None, None, 8, 1), (4, None, 8, 4), (4, None, 2, 2), (4, 3 << 30, 8, 2), (4, 30 << 30, 8, 1), (0, None, 1, 1)],
)
def test_how_many_run_at_a_time(
    jobs: int | None, limit: int | None, count: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_memory", lambda: 8 << 30)
    data = {"source": {"path": "x.onnx"}, "targets": [{"target": "onnx"}], "jobs": jobs, "memory_limit": limit}
    assert processes(PipelineSpec.model_validate(data), count) == expected


# --- conversions -----------------------------------------------------------------------------------------------------


def pipelines(folder: Path, output: Path, **more: Any) -> list[PipelineSpec]:
    """Return pipelines of two good sources and a bad one between them, each for two targets."""
    sources = [make_mlp(folder / "a.onnx"), folder / "bad.onnx", make_mlp(folder / "c.onnx", width=12)]
    sources[1].write_bytes(b"not a model")
    targets = [("onnx", "fp32"), ("onnxruntime", "fp16")]
    return [
        PipelineSpec.model_validate(
            {
                "source": {"path": str(source)},
                "targets": [
                    {"target": t, "precision": p, "output": str(output / f"{source.stem}.{t}.onnx")} for t, p in targets
                ],
                "cache": False,
                **more,
            }
        )
        for source in sources
    ]


def test_everything_is_as_with_one_process(tmp_path: Path) -> None:
    results = []
    for jobs in (1, 2, 3):
        output = tmp_path / "out"
        result = execute_all(pipelines(tmp_path, output, jobs=jobs))
        files = {f.name: f.read_bytes() for f in sorted(output.glob("*.onnx"))}
        document = result.as_json()
        for step in [document, *document["steps"], *(s for a in document["artifacts"] for s in a["steps"])]:
            step["seconds"] = 0
        results.append((files, document))
        for file in output.iterdir():
            file.unlink()
    assert results[0][1]["exit_code"] == 3
    assert len(results[0][0]) == 4
    assert results[1] == results[0]
    assert results[2] == results[0]


def test_targets_of_one_source_share_its_opening(tmp_path: Path) -> None:
    spec = pipelines(tmp_path, tmp_path / "out", jobs=2)[0]
    words = []
    for jobs in (1, 2):
        watcher = Watcher()
        assert execute_all([spec.model_copy(update={"jobs": jobs})], [watcher]).error is None
        words.append(watcher.told)
    assert words[0] == words[1]
    assert words[0].count("open the source") == 1


def test_processes_fill_one_cache(tmp_path: Path) -> None:
    specs = pipelines(tmp_path, tmp_path / "out", jobs=2, cache=str(tmp_path / "cache"))[::2]
    assert [a.cached for a in execute_all(specs).artifacts] == [False] * 4
    again = execute_all(specs)
    assert [a.cached for a in again.artifacts] == [True] * 4
    assert again.notes == ["From the cache, with the verification of the same bytes: 4 of 4 artifacts."]


def test_the_command_line_takes_jobs(infconv: Any, mlp: Path, tmp_path: Path) -> None:
    outcome = infconv("convert", mlp, "-t", "onnx", "-t", "ort", "-o", "out", "--jobs", "2", "--json")
    assert outcome.code == 0
    assert [a["target"] for a in outcome.json["artifacts"]] == ["onnx", "onnxruntime"]
    assert infconv("convert", mlp, "--jobs", "-1").code == 2


def test_ray_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match="'ray'") as caught:
        execute_all(pipelines(tmp_path, tmp_path / "out"), on="ray")
    assert "infconv[ray]" in caught.value.hint
