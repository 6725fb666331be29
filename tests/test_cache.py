"""The cache: what is taken from it, what is not, and that nothing depends on it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infconv import api
from infconv.cache import Cache, find_cache
from infconv.cache._codec import decode, encode
from infconv.cache._digests import Digests, Stamp
from infconv.cache._local import Damaged, LocalStore
from infconv.errors import UsageError
from infconv.limits import execute_limited
from infconv.result import Artifact, Result
from infconv.shelf import Shelf
from infconv.spec import PipelineSpec
from tests.conftest import make_mlp


def spec_for(source: Path, folder: Path, *targets: str, **more: Any) -> PipelineSpec:
    """Return a pipeline that writes to `folder`, with its cache beside the source."""
    entries = [{"target": target, "output": str(folder / f"{target}.onnx")} for target in targets or ("onnx",)]
    data = {"source": {"path": str(source)}, "targets": entries, "cache": str(source.parent / "cache"), **more}
    return PipelineSpec.model_validate(data)


def made(spec: PipelineSpec) -> list[bool]:
    """Run the pipeline; return for each artifact whether it was in the cache."""
    result = execute_limited(spec)
    assert result.error is None
    return [artifact.cached for artifact in result.artifacts]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Watcher:
    """Remembers the stages and steps that it was told of."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, name: str) -> None:
        self.told.append(name)

    def before(self, step: str) -> None:
        self.told.append(step)

    def after(self, result: Any) -> None:
        self.told.append(f"{result.name} {result.status}")


# --- artifacts -------------------------------------------------------------------------------------------------------


def test_the_same_again_is_taken_from_the_cache(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out", "onnx", "onnxruntime")
    assert made(spec) == [False, False]
    first = contents(tmp_path / "out")
    watcher = Watcher()
    result = execute_limited(spec, [watcher])
    assert [artifact.cached for artifact in result.artifacts] == [True, True]
    assert contents(tmp_path / "out") == first
    assert "open the source" not in watcher.told
    assert result.artifacts[0].verification.passed
    assert result.artifacts[0].verification.worst() is not None


def test_what_is_there_already_is_left_alone(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out")
    made(spec)
    before = Stamp.of(tmp_path / "out" / "onnx.onnx")
    assert made(spec) == [True]
    assert Stamp.of(tmp_path / "out" / "onnx.onnx") == before


def test_a_changed_output_is_put_right(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out")
    made(spec)
    first = contents(tmp_path / "out")
    (tmp_path / "out" / "onnx.onnx").write_bytes(b"other")
    assert made(spec) == [True]
    assert contents(tmp_path / "out") == first
    shutil.rmtree(tmp_path / "out")
    assert made(spec) == [True]
    assert contents(tmp_path / "out") == first


def test_another_folder_gets_the_same_bytes_and_a_manifest_of_its_own(mlp: Path, tmp_path: Path) -> None:
    made(spec_for(mlp, tmp_path / "a"))
    assert made(spec_for(mlp, tmp_path / "b")) == [True]
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert a["onnx.onnx"] == b["onnx.onnx"]
    manifest = json.loads(b["onnx.onnx.infconv.json"])
    assert manifest["path"] == str(tmp_path / "b" / "onnx.onnx")
    assert manifest["pipeline"]["targets"][0]["output"] == str(tmp_path / "b" / "onnx.onnx")
    assert manifest["verification"] == json.loads(a["onnx.onnx.infconv.json"])["verification"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"verify": {"rtol": 0.5}},
        {"verify": {"when": "off"}},
        {"verify": {"edge_cases": ["zeros"]}},
        {"skip": ["fold-constants"]},
        {"opset": 19},
        {"targets": [{"target": "onnx", "precision": "fp16"}]},
        {"targets": [{"target": "onnx", "output": "another-name.onnx"}]},
    ],
    ids=str,
)
def test_what_the_result_depends_on_makes_another_key(mlp: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    monkey = spec_for(mlp, tmp_path / "out")
    made(monkey)
    changed = {**monkey.model_dump(mode="json", exclude_defaults=True), **change}
    changed["targets"] = [
        {**target, "output": str(tmp_path / "out" / target.get("output", "onnx.onnx"))} for target in changed["targets"]
    ]
    assert made(PipelineSpec.model_validate(changed)) == [False]


def test_a_changed_source_is_another_one(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out")
    made(spec)
    stamp = mlp.stat()
    make_mlp(mlp, scale=2.0)
    os.utime(mlp, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert made(spec) == [False]
    make_mlp(mlp)
    assert made(spec) == [True]


def test_changed_external_weights_are_another_source(mlp: Path, tmp_path: Path) -> None:
    model = onnx.load(mlp)
    (tmp_path / "src").mkdir()
    source = tmp_path / "src" / "model.onnx"
    onnx.save(model, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    spec = spec_for(source, tmp_path / "out")
    assert made(spec) == [False]
    assert made(spec) == [True]
    data = bytearray((tmp_path / "src" / "weights.bin").read_bytes())
    data[:4] = np.float32(1).tobytes()
    (tmp_path / "src" / "weights.bin").write_bytes(data)
    assert made(spec) == [False]


def test_changed_samples_are_another_reference(mlp: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample.npz"
    np.savez(sample, x=np.zeros((1, 8), "f4"))
    spec = spec_for(mlp, tmp_path / "out", sample=str(sample))
    made(spec)
    np.savez(sample, x=np.ones((1, 8), "f4"))
    assert made(spec) == [False]


def test_calibration_data_is_part_of_the_key_of_int8_only(mlp: Path, tmp_path: Path) -> None:
    data = tmp_path / "calibration.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(8, 8)).astype("f4"))
    targets = [{"target": "onnx", "output": str(tmp_path / "out" / "a.onnx")}]
    targets.append({"target": "onnxruntime", "precision": "int8", "output": str(tmp_path / "out" / "b.onnx")})
    loose = {"min_sqnr": 10.0, "atol": 1.0}
    spec = spec_for(mlp, tmp_path / "out", calibration={"path": str(data)}, verify=loose).model_copy()
    spec = PipelineSpec.model_validate({**spec.model_dump(mode="json", exclude_defaults=True), "targets": targets})
    assert made(spec) == [False, False]
    assert made(spec) == [True, True]
    np.savez(data, x=np.random.default_rng(1).normal(size=(8, 8)).astype("f4"))
    assert made(spec) == [True, False]


def test_users_code_is_not_cached(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_code.py").write_text(
        "def quality(model): return 1.0\n"
        "from infconv.passes import Pass\n"
        "class Nothing(Pass):\n"
        "    '''Do nothing.'''\n"
        "    def run(self, model, context): return 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for more in ({"verify": {"metric": "own_code:quality"}}, {"add": ["own_code:Nothing"]}):
        spec = spec_for(mlp, tmp_path / "out", **more)
        assert made(spec) == [False]
        assert made(spec) == [False]


def test_a_failure_is_not_cached(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out", verify={"min_sqnr": 300.0})
    spec = PipelineSpec.model_validate(
        {
            **spec.model_dump(mode="json", exclude_defaults=True),
            "targets": [{"target": "onnx", "precision": "fp16", "output": str(tmp_path / "out" / "a.onnx")}],
        }
    )
    for _ in range(2):
        result = execute_limited(spec)
        assert result.exit_code == 5
        assert not (tmp_path / "out" / "a.onnx").exists()


def test_without_being_asked_the_python_interface_uses_no_cache(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFCONV_CACHE", raising=False)
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path / "cache"))
    api.convert(mlp, output=tmp_path / "a.onnx")
    assert not (tmp_path / "cache").exists()
    assert api.convert(mlp, output=tmp_path / "a.onnx", cache=True).artifacts[0].cached is False
    assert api.convert(mlp, output=tmp_path / "a.onnx", cache=True).artifacts[0].cached is True


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_change_of_the_target_reruns_the_export_only(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shelf, "worth_seconds", 0.0)
    made(spec_for(mlp, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    named = spec_for(mlp, tmp_path / "out").model_dump(mode="json", exclude_defaults=True)
    named["targets"][0]["output"] = str(tmp_path / "out" / "other.onnx")
    watcher = Watcher()
    result = execute_limited(PipelineSpec.model_validate(named), [watcher])
    assert not result.artifacts[0].cached
    uncached = execute_limited(PipelineSpec.model_validate({**named, "cache": False}))
    assert strip(result) == strip(uncached)
    assert "run the source on samples" not in watcher.told


def test_a_change_of_the_last_step_reruns_that_step(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "worth_seconds", 0.0)
    run: list[str] = []
    from infconv.runner import _Run

    original = _Run._run_one
    monkeypatch.setattr(
        _Run, "_run_one", lambda self, step, *rest: run.append(step.step_name()) or original(self, step, *rest)
    )
    steps: list[Any] = ["infer-shapes", "fold-constants", "fuse-gelu", {"convert-opset": {"to": 18}}]
    made(spec_for(mlp, tmp_path / "out", steps=steps))
    run.clear()
    steps[-1] = {"convert-opset": {"to": 19}}
    made(spec_for(mlp, tmp_path / "out", steps=steps))
    assert run == ["convert-opset"]
    cached = (tmp_path / "out" / "onnx.onnx").read_bytes()
    made(spec_for(mlp, tmp_path / "out", steps=steps, cache=False))
    assert (tmp_path / "out" / "onnx.onnx").read_bytes() == cached


def strip(result: Result) -> list[Any]:
    """Return the artifacts without seconds."""
    plain = json.loads(json.dumps(result.as_json()))["artifacts"]
    for artifact in plain:
        for step in artifact["steps"]:
            step["seconds"] = 0
    return plain


@pytest.mark.parametrize(
    ("target", "precision"),
    [("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("onnxruntime", "fp32"), ("openvino", "fp16")],
)
def test_the_same_bytes_from_every_state_of_the_cache(
    target: str, precision: str, mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shelf, "worth_seconds", 0.0)
    output = tmp_path / "out" / ("m.xml" if target == "openvino" else "m.onnx")
    entry = {"target": target, "precision": precision, "output": str(output)}
    data = {"source": {"path": str(mlp)}, "targets": [entry], "verify": {"atol": 0.5}}
    if precision == "int8":  # without the steps' race for speed, which another run may decide otherwise
        np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(8, 8)).astype("f4"))
        data["calibration"] = {"path": str(tmp_path / "c.npz")}
        data["steps"] = ["infer-shapes", {"quantize-static": {"never_slower": False}}, "remove-unused"]
    store = LocalStore(tmp_path / "cache")
    found: list[dict[str, bytes]] = []
    for state in ("none", "empty", "full", "no artifact", "no artifact and source"):
        for entry in list(store.entries()):
            if entry.kind == "artifact" and "no artifact" in state:
                store.remove(entry.key)
            if entry.kind == "opened" and "source" in state:
                store.remove(entry.key)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        cache = False if state == "none" else str(tmp_path / "cache")
        assert execute_limited(PipelineSpec.model_validate({**data, "cache": cache})).error is None
        found.append({k: v for k, v in contents(tmp_path / "out").items() if not k.endswith(".infconv.json")})
    assert all(files == found[0] for files in found)


def test_a_framework_is_not_started_for_another_target(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    torch.export.save(torch.export.export(net, (torch.ones(2, 8),)), tmp_path / "net.pt2")
    made(spec_for(tmp_path / "net.pt2", tmp_path / "out", "onnx"))
    watcher = Watcher()
    result = execute_limited(spec_for(tmp_path / "net.pt2", tmp_path / "out", "onnx", "onnxruntime"), [watcher])
    assert [artifact.cached for artifact in result.artifacts] == [True, False]
    assert "run the source on samples" not in watcher.told
    assert result.artifacts[1].verification.reference.startswith("torch")
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    whole = execute_limited(spec_for(tmp_path / "net.pt2", tmp_path / "new", "onnxruntime", cache=False))
    assert strip_paths(whole) == strip_paths(result)[1:]


def strip_paths(result: Result) -> list[Any]:
    """Return the artifacts without seconds, paths and where they came from."""
    own = ("path", "files", "manifest", "cached")
    return [{key: value for key, value in artifact.items() if key not in own} for artifact in strip(result)]


# --- the store -------------------------------------------------------------------------------------------------------


def put(cache: Cache, key: str, size: int = 10) -> None:
    def fill(stage: Path) -> tuple[dict[str, Any], dict[str, str]]:
        (stage / "data.bin").write_bytes(key.encode()[:1] * size)
        return {"x": 1}, {}

    assert cache.put(key, "test", f"entry {key}", fill)


def test_a_damaged_entry_is_noticed_and_made_again(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out")
    made(spec)
    first = (tmp_path / "out" / "onnx.onnx").read_bytes()
    stored = next((tmp_path / "cache" / "entries").glob("*/onnx.onnx"))
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    shutil.rmtree(tmp_path / "out")
    result = execute_limited(spec)
    assert [artifact.cached for artifact in result.artifacts] == [False]
    assert "is damaged and is made anew" in result.notes[0]
    assert (tmp_path / "out" / "onnx.onnx").read_bytes() == first
    assert made(spec) == [True]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"files": 3}', "[]"])
def test_a_damaged_record_is_noticed(text: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(Cache(store), "a")
    (tmp_path / "entries" / "a" / "entry.json").write_text(text)
    with pytest.raises(Damaged):
        store.get("a")
    assert store.get("a") is None
    assert list(store.entries()) == []


def test_a_changed_figure_in_a_record_is_noticed(mlp: Path, tmp_path: Path) -> None:
    spec = spec_for(mlp, tmp_path / "out")
    made(spec)
    record = next((tmp_path / "cache" / "entries").glob("*/onnx.onnx")).with_name("entry.json")
    text = record.read_text()
    assert text.count('\\"size\\": ') >= 1
    record.write_text(text.replace('\\"size\\": ', '\\"size\\": 1', 1))
    assert made(spec) == [False]


@pytest.mark.parametrize("moment", ["run the source on samples", "write onnx fp32"])
def test_a_source_that_changes_during_the_run_leaves_nothing(mlp: Path, tmp_path: Path, moment: str) -> None:
    class Changes(Watcher):
        def stage(self, name: str) -> None:
            if name == moment:
                make_mlp(mlp, scale=3.0)

    spec = spec_for(mlp, tmp_path / "out")
    execute_limited(spec, [Changes()])
    make_mlp(mlp)
    assert made(spec) == [False]
    assert (tmp_path / "out" / "onnx.onnx").read_bytes() == uncached(spec)


def uncached(spec: PipelineSpec) -> bytes:
    """Return the bytes of the pipeline's artifact, made without a cache."""
    assert execute_limited(spec.model_copy(update={"cache": False})).error is None
    return Path(spec.targets[0].output or "").read_bytes()


def test_a_missing_file_is_noticed(tmp_path: Path) -> None:
    cache = Cache(LocalStore(tmp_path))
    put(cache, "a")
    (tmp_path / "entries" / "a" / "data.bin").unlink()
    assert cache.get("a") is None
    assert len(cache.notes) == 1


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(LocalStore(tmp_path), limit=3000)
    for age, key in enumerate("abc"):
        put(cache, key, 1000)
        os.utime(tmp_path / "entries" / key / "entry.json", (time.time() - 100 + age,) * 2)
    assert cache.get("a") is not None  # which makes it the newest
    cache.close()
    assert sorted(entry.key for entry in cache.local.entries()) == ["a", "c"]


def test_what_is_in_use_is_not_removed(tmp_path: Path) -> None:
    mine, other = Cache(LocalStore(tmp_path)), LocalStore(tmp_path)
    put(mine, "a")
    assert mine.get("a") is not None
    assert other.trim(0) == (0, 0)
    mine.close()
    assert other.trim(0)[0] == 1


def test_only_what_is_old_is_removed(tmp_path: Path) -> None:
    cache = Cache(LocalStore(tmp_path))
    put(cache, "a")
    put(cache, "b")
    os.utime(tmp_path / "entries" / "a" / "entry.json", (time.time() - 3600,) * 2)
    assert cache.local.trim(1 << 40, older_than=1800)[0] == 1
    assert [entry.key for entry in cache.local.entries()] == ["b"]


def test_a_disk_that_cannot_be_written_is_no_error(mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    result = execute_limited(spec_for(mlp, tmp_path / "out"))
    assert result.error is None
    assert any("cannot be cached" in note for note in result.notes)


def _hammer(folder: Path, number: int) -> None:
    cache = Cache(LocalStore(folder), limit=6000)
    for turn in range(60):
        key = "abcdefgh"[(turn * (number + 1)) % 8]
        entry = cache.get(key)
        if entry is None:
            put(cache, key, 1000)
        else:
            assert (entry.folder / "data.bin").read_bytes() == key.encode() * 1000
        if turn % 7 == 0:
            cache.close()
    cache.close()
    assert cache.notes == []


def test_many_processes_share_a_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hammer, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert list((tmp_path / "new").iterdir()) == []
    LocalStore(tmp_path).trim(6000)
    assert sum(entry.bytes for entry in LocalStore(tmp_path).entries()) <= 6000


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    digests = Digests(tmp_path / "digests")
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(2 << 20))
    assert not digests.is_known(path)
    first = digests.of(path)
    assert not digests.is_known(path)  # so new that a further change might not show in its time stamps
    time.sleep(0.06)
    assert digests.of(path) == first
    assert digests.is_known(path)
    stamp = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"1")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the change time tells nevertheless
    assert digests.of(path) != first


def test_typed_objects_come_back_as_they_were() -> None:
    import ml_dtypes

    arrays: dict[str, Any] = {}
    given = {
        "half": np.ones((2, 3), "f2"),
        "bfloat16": np.arange(6, dtype="f4").reshape(2, 3).astype(ml_dtypes.bfloat16),
        "texts": np.array([["a", "ü"]], dtype=object),
        "none": None,
        "list": [1, 2.5, float("inf"), "x", np.zeros((0, 4), "i8"), np.array(3, "u1")],
    }
    back = decode(json.loads(json.dumps(encode(given, arrays))), arrays)
    assert back["half"].dtype == np.float16
    assert back["bfloat16"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back["bfloat16"], given["bfloat16"])
    assert back["texts"].tolist() == [["a", "ü"]]
    assert back["none"] is None
    assert back["list"][:4] == [1, 2.5, float("inf"), "x"]
    assert back["list"][4].shape == (0, 4)
    assert back["list"][5].shape == ()
    with pytest.raises(TypeError, match="cannot be stored"):
        encode(object(), {})


def test_the_codec_knows_what_a_run_returns(mlp: Path, tmp_path: Path) -> None:
    artifact = execute_limited(spec_for(mlp, tmp_path / "out", cache=False)).artifacts[0]
    again: Artifact = decode(json.loads(json.dumps(encode(artifact, {}))), {})
    assert again.verification.samples[0].outputs[0] == artifact.verification.samples[0].outputs[0]
    assert list(again.steps) == list(artifact.steps)


# --- the environment, the command line -------------------------------------------------------------------------------


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("INFCONV_CACHE", raising=False)
    assert find_cache(None) is None
    assert find_cache(False) is None
    default = find_cache(True)
    assert default is not None
    assert default.local.folder == tmp_path / "results"
    monkeypatch.setenv("INFCONV_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("INFCONV_CACHE_SIZE", "5GB")
    own = find_cache(None)
    assert own is not None
    assert (own.local.folder, own.limit) == (tmp_path / "own", 5 * 10**9)
    monkeypatch.setenv("INFCONV_CACHE", "off")
    assert find_cache(None, default=True) is None
    monkeypatch.setenv("INFCONV_CACHE_SIZE", "large")
    with pytest.raises(UsageError, match="INFCONV_CACHE_SIZE"):
        find_cache(True)


PIPELINE = "source: {path: mlp.onnx}\ntargets: [{target: onnx, output: out/}, {target: ort, output: out/}]\n"


def test_run_caches_by_default_and_says_so(
    infconv: Any, mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFCONV_CACHE", raising=False)
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    plan = infconv("run", "p.yaml", "--dry-run", "--json").json
    assert [job["cached"] for job in plan["jobs"]] == ["-", "-"]
    assert [a["cached"] for a in infconv("run", "p.yaml", "--json").json["artifacts"]] == [False, False]
    plan = infconv("run", "p.yaml", "--dry-run", "--json").json
    assert [job["cached"] for job in plan["jobs"]] == ["artifact", "artifact"]
    assert "2 of 2 artifacts" in infconv("run", "p.yaml").out
    assert [a["cached"] for a in infconv("run", "p.yaml", "--no-cache", "--json").json["artifacts"]] == [False, False]
    told = infconv("cache", "list", "--json").json
    assert sorted(entry["kind"] for entry in told["entries"]) == ["artifact", "artifact", "opened"]
    assert infconv("cache", "clean", "--older-than", "1h", "--json").json["removed"] == 0
    assert infconv("cache", "clean", "--json").json["removed"] == 3
    assert infconv("cache", "list", "--json").json["entries"] == []


def test_no_cache_and_a_folder_exclude_each_other(infconv: Any, mlp: Path) -> None:
    outcome = infconv("convert", mlp, "--no-cache", "--cache-dir", "c")
    assert outcome.code == 2
    assert "exclude each other" in outcome.err


# --- a shared place --------------------------------------------------------------------------------------------------


def test_a_shared_cache_serves_another_machine(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    url = "memory://infconv-test"
    fsspec.filesystem("memory").rm("/infconv-test", recursive=True) if fsspec.filesystem("memory").exists(
        "/infconv-test"
    ) else None
    for machine, cached in (("one", False), ("two", True)):
        monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path / machine))
        assert made(spec_for(mlp, tmp_path / "out" / machine, cache=url)) == [cached]
    assert contents(tmp_path / "out" / "one")["onnx.onnx"] == contents(tmp_path / "out" / "two")["onnx.onnx"]


def test_what_comes_damaged_from_a_shared_cache_is_not_used(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    url = f"file://{tmp_path}/shared"
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path / "one"))
    made(spec_for(mlp, tmp_path / "out", cache=url))
    for stored in (tmp_path / "shared").rglob("onnx.onnx"):
        stored.write_bytes(b"damaged")
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(tmp_path / "two"))
    result = execute_limited(spec_for(mlp, tmp_path / "out", cache=url))
    assert [artifact.cached for artifact in result.artifacts] == [False]
    assert any("cannot be read" in note for note in result.notes)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def test_after_kill_9_the_next_run_goes_on_and_nothing_partial_was_ever_seen(tmp_path: Path) -> None:
    make_mlp(tmp_path / "mlp.onnx", width=64)
    (tmp_path / "p.yaml").write_text(PIPELINE + "cache: cache\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "infconv.cli", "run", "p.yaml", "--json"]

    def run(seconds: float | None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return process

    start = time.perf_counter()
    subprocess.run([*command, "--no-cache"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    whole = time.perf_counter() - start
    expected = {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.onnx")}
    shutil.rmtree(tmp_path / "out")
    for share in np.random.default_rng(0).uniform(0.3, 1.1, 6):
        run(whole * share)
        time.sleep(0.1)
        for file in (tmp_path / "out").glob("*.onnx"):
            assert file.read_bytes() == expected[file.name]
    done = run(None)
    assert done.returncode == 0
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.onnx")} == expected
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        name for onnx_name in sorted(expected) for name in (onnx_name, f"{onnx_name}.infconv.json")
    ]
