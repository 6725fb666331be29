"""Isolated environments: found, made whole or not at all, refused with a remedy. Nothing here needs the network."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from infconv import environments
from infconv.environments import RECORD, _create, choose_interpreter
from infconv.environments._installers import pip_settings, uv_variables
from infconv.environments._pythons import Python, ask, candidates, find_python
from infconv.errors import DependencyError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for environments."""
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "environments"


@pytest.fixture
def nothing(tmp_path: Path) -> str:
    """A requirements file that asks for nothing."""
    path = tmp_path / "requirements.txt"
    path.write_text("# nothing\n")
    return str(path)


def test_an_environment_is_made_listed_used_and_removed(infconv: Any, nothing: str, cache: Path) -> None:
    made = infconv("env", "create", "mine", "--requirements", nothing, "--json")
    assert made.code == 0, made.err
    assert made.json["created"]
    [row] = infconv("env", "list", "--json").json["environments"]
    assert row["name"] == "mine"
    assert row["ok"]
    assert row["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert {"frontends", "versions", "size_mb"} <= set(row)
    assert choose_interpreter("torch", {"torch": "torch"}, env="mine") == str(cache / "mine" / "bin" / "python")
    assert not infconv("env", "create", "mine", "--requirements", nothing, "--json").json["created"]
    assert infconv("env", "remove", "mine").code == 0
    assert infconv("env", "list", "--json").json == {"environments": []}
    assert [path.name for path in cache.iterdir()] == [".mine.lock"]


def test_a_failed_installation_leaves_nothing(infconv: Any, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.txt").write_text("./no-such-folder\n")
    outcome = infconv("env", "create", "mine", "--requirements", "bad.txt", "--json")
    assert outcome.code == 8
    assert "could not make the environment 'mine'" in outcome.json["error"]["message"]
    assert [path.name for path in cache.iterdir()] == [".mine.lock"]


def test_what_cannot_be_imported_is_no_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = environments.Lock("torch", "", (), complete=True)
    monkeypatch.setattr(_create, "shipped_lock", lambda _: lock)
    with pytest.raises(DependencyError, match="'torch' cannot be imported there: it is not installed"):
        _create.create("torch", {"torch": ["torch"]})
    assert environments.every() == []


def test_an_unfinished_environment_is_never_whole(cache: Path) -> None:
    (cache / "tensorflow" / "bin").mkdir(parents=True)
    (cache / "tensorflow" / "bin" / "python").write_text("")
    found = environments.find("tensorflow")
    assert found is not None
    assert not found.ok
    assert "unfinished" in found.problem
    with pytest.raises(DependencyError, match="cannot be used") as caught:
        choose_interpreter("x", {"no_such_package": "x"}, env="tensorflow")
    assert "infconv env create tensorflow" in caught.value.hint


def test_an_environment_without_its_python_is_broken(cache: Path, nothing: str) -> None:
    made, _ = _create.create("mine", {}, requirements=nothing)
    made.interpreter.unlink()
    found = environments.find("mine")
    assert found is not None
    assert "is gone" in found.problem
    assert _create.create("mine", {}, requirements=nothing)[1], "a broken one is made anew"


def test_another_lock_makes_an_environment_outdated(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = environments.Lock("torch", "# one\n", (), complete=True)
    monkeypatch.setattr(_create, "shipped_lock", lambda _: lock)
    made, new = _create.create("torch", {})
    assert new
    assert made.ok
    assert made.outdated, "it was not made from the lock that is shipped"
    assert not _create.create("torch", {})[1]
    lock = environments.Lock("torch", "# two\n", (), complete=True)
    assert _create.create("torch", {})[1]


def test_two_at_a_time_make_it_once(nothing: str) -> None:
    made: list[bool] = []
    threads = [
        threading.Thread(target=lambda: made.append(_create.create("mine", {}, requirements=nothing)[1]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, True]


def test_a_killed_run_is_cleaned_up(cache: Path, nothing: str) -> None:
    (cache / ".mine.build-old").mkdir(parents=True)
    _create.create("mine", {}, requirements=nothing)
    assert not (cache / ".mine.build-old").exists()


# --- which interpreter ---------------------------------------------------------------------------------------------


def test_the_environment_of_the_frontend_s_name_comes_first(cache: Path, nothing: str) -> None:
    assert choose_interpreter("mine", {"json": "x"}) is None
    made, _ = _create.create("mine", {}, requirements=nothing)
    assert choose_interpreter("mine", {"json": "x"}) == str(made.interpreter)
    assert choose_interpreter("mine", {"json": "x"}, python="/other") == "/other"


def test_a_missing_framework_has_a_remedy() -> None:
    with pytest.raises(DependencyError, match="needs 'no_such_package'") as caught:
        choose_interpreter("tensorflow", {"json": "x", "no_such_package": "tensorflow"})
    assert "infconv env create tensorflow" in caught.value.hint
    with pytest.raises(DependencyError) as caught:
        choose_interpreter("plugin", {"no_such_package": "plugin"})
    assert "env create" not in caught.value.hint


def test_usage_errors(nothing: str) -> None:
    with pytest.raises(UsageError, match="exclude"):
        choose_interpreter("torch", {"torch": "torch"}, "/python", "torch")
    with pytest.raises(UsageError, match="no environment 'paddle'") as caught:
        choose_interpreter("torch", {"torch": "torch"}, env="paddle")
    assert "infconv env create paddle" in caught.value.hint
    with pytest.raises(UsageError, match="no lock"):
        _create.create("tensorflw", {})
    with pytest.raises(UsageError, match="no name"):
        _create.create("../evil", {}, requirements=nothing)
    with pytest.raises(UsageError, match="no environment"):
        _create.remove("../cache")


def test_a_wrong_python_is_refused_with_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"needs Python 3.1 or 3.2; '.*' is 3.\d+") as caught:
        find_python("x", ((3, 1), (3, 2)), sys.executable)
    assert "--python" in caught.value.hint
    with pytest.raises(UsageError, match="no Python interpreter"):
        find_python("x", ((3, 11),), "/no/such/python")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DependencyError, match=r"needs Python 3.1, and none was found"):
        find_python("x", ((3, 1),), None)


def test_an_interpreter_is_looked_for_on_path_and_in_pyenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("bin", "pyenv/versions/3.99.1/bin"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "python3.99").write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / place / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    found = list(candidates(((3, 99),)))
    assert found[0] == sys.executable
    assert str(tmp_path / "bin" / "python3.99") in found
    assert str(tmp_path / "pyenv/versions/3.99.1/bin/python3.99") in found
    assert ask(str(tmp_path / "bin" / "python3.99")) is None, "a shim for a version that is not active"
    assert ask(sys.executable) == Python(sys.executable, sys.version_info[:3])


# --- locks and installers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", environments.shipped())
def test_locks_name_their_pythons_and_pin_everything(name: str) -> None:
    lock = environments.shipped_lock(name)
    assert (3, 11) in lock.pythons
    assert lock.complete == (name != "torch")
    wanted = [line for line in lock.text.splitlines() if line and not line.startswith("#")]
    assert wanted
    assert all("==" in line for line in wanted)
    assert "://" not in lock.text, "where packages come from is the user's matter"


def test_uv_is_given_what_pip_is_configured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    config = f"[global]\nindex-url = https://one.example/simple\nfind-links = {tmp_path}/wheels\n    /no/such/folder\n"
    (tmp_path / "pip.conf").write_text(config + "extra-index-url = https://two.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    variables = uv_variables(pip_settings(sys.executable))
    assert variables["UV_INDEX_URL"] == "https://one.example/simple"
    assert variables["UV_EXTRA_INDEX_URL"] == "https://two.example/simple"
    assert variables["UV_FIND_LINKS"] == f"{tmp_path}/wheels"
    assert variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"


def test_doctor_tells_environments_and_how_to_make_them(infconv: Any, cache: Path) -> None:
    (cache / "tensorflow" / "bin").mkdir(parents=True)
    document = infconv("doctor", "--json").json
    assert [row["name"] for row in document["environments"]] == ["tensorflow"]
    assert not document["environments"][0]["ok"]
    states = {row["name"]: row["install"] for row in document["parts"] if row["kind"] == "frontend"}
    assert set(states) >= {"onnx", "torch", "tensorflow"}
    record = json.dumps(document)
    assert RECORD not in record
