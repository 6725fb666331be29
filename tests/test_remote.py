"""Sources and outputs at URLs: the same artifacts as with local files, and never a part of one at its name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import onnx
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from onnx import numpy_helper

import infconv
from infconv import remote, urls
from infconv.errors import DependencyError, InfconvError, ResourceError, SourceError, UsageError
from infconv.fetch import Fetcher
from infconv.manifest import check_files, manifest_of
from infconv.remote import upload
from infconv.runs import execute_all
from infconv.spec import PipelineSpec
from tests.conftest import make_mlp


class Bucket(MemoryFileSystem):
    """A store whose files have an ETag, that counts what is done, and refuses what it is told to."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    done: ClassVar[list[str]] = []
    broken: ClassVar[dict[str, Exception]] = {}
    """Operation and name -> what it raises."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("bucket://"))

    def _do(self, what: str, path: str) -> None:
        self.done.append(f"{what} {path}")
        for name, error in self.broken.items():
            if name in f"{what} {path}":
                raise error

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self._tagged(super().info(path, **kwargs))

    def find(self, path: str, **kwargs: Any) -> Any:
        return {name: self.info(name) for name in super().find(path)}

    def _tagged(self, told: dict[str, Any]) -> dict[str, Any]:
        if told["type"] == "file":
            told["ETag"] = hashlib.sha256(self.store[told["name"]].getvalue()).hexdigest()
        return told

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self._do("get", rpath)
        super().get_file(rpath, lpath, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._do("put", rpath)
        super().put_file(lpath, rpath, **kwargs)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._do("move", path2)
        super().mv(path1, path2, **kwargs)


@pytest.fixture
def bucket() -> Bucket:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    for kept in (Bucket.store, Bucket.done, Bucket.broken):
        kept.clear()
    Bucket.pseudo_dirs[:] = [""]
    return Bucket()


def names(bucket: Bucket) -> list[str]:
    return sorted(bucket.store)


def put_model(bucket: Bucket, folder: Path, name: str = "m.onnx", width: int = 8) -> bytes:
    make_mlp(folder / "local.onnx", width=width)
    data = (folder / "local.onnx").read_bytes()
    bucket.pipe_file(f"/{name}", data)
    return data


def run(folder: Path, **more: Any) -> Any:
    data = {
        "source": {"path": "bucket://m.onnx"},
        "targets": [{"target": "onnx", "output": "bucket://out/"}],
        "cache": str(folder / "cache"),
        **more,
    }
    return execute_all([PipelineSpec.model_validate(data)])


# --- the parts of a URL ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("s3://b/a/m.onnx", "s3://b/a", "m.onnx"),
        ("s3://b/a/", "s3://b", "a"),
        ("memory://m.onnx", "memory://", "m.onnx"),
        ("zip://a/m.onnx::s3://b/x.zip", "zip://a::s3://b/x.zip", "m.onnx"),
        ("simplecache::s3://b/m.onnx", "simplecache::s3://b", "m.onnx"),
        ("https://h/a/m.onnx?download=1", "https://h/a?download=1", "m.onnx"),
        ("a/m.onnx", "a", "m.onnx"),
    ],
)
def test_a_place_has_a_folder_and_a_name(url: str, folder: str, name: str) -> None:
    assert (urls.parent_of(url), urls.name_of(url)) == (folder, name)
    assert urls.join(folder, name) == url.rstrip("/")


# --- a run -----------------------------------------------------------------------------------------------------------


def test_the_artifact_is_that_of_local_files(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    result = run(tmp_path)
    assert result.error is None
    assert [result.artifacts[0].path, result.artifacts[0].manifest] == [
        "bucket://out/m.onnx",
        "bucket://out/m.onnx.infconv.json",
    ]
    assert names(bucket) == ["/m.onnx", "/out/m.onnx", "/out/m.onnx.infconv.json"]
    infconv.convert(tmp_path / "local.onnx", output=tmp_path / "here" / "m.onnx")
    assert bucket.cat_file("/out/m.onnx") == (tmp_path / "here" / "m.onnx").read_bytes()


def test_everything_that_is_told_names_the_urls(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    told = json.dumps(run(tmp_path).as_json()) + bucket.cat_file("/out/m.onnx.infconv.json").decode()
    assert "infconv-remote" not in told
    assert str(tmp_path) not in told.replace(str(tmp_path / "cache"), "")
    manifest = json.loads(bucket.cat_file("/out/m.onnx.infconv.json"))
    assert manifest["source"]["path"] == "bucket://m.onnx"
    assert manifest["pipeline"]["targets"][0]["output"] == "bucket://out/m.onnx"


def test_a_second_run_fetches_and_copies_nothing(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    run(tmp_path)
    bucket.done.clear()
    assert run(tmp_path).artifacts[0].cached
    assert bucket.done == []
    put_model(bucket, tmp_path, width=12)
    assert not run(tmp_path).artifacts[0].cached
    assert "get /m.onnx" in bucket.done


def test_an_artifact_that_was_tampered_with_goes_up_again(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    run(tmp_path)
    bucket.pipe_file("/out/m.onnx", b"x")
    checks = check_files(manifest_of("bucket://out/m.onnx"))
    assert [(check.path, check.status) for check in checks] == [("bucket://out/m.onnx", "changed")]
    run(tmp_path)
    assert [check.status for check in check_files(manifest_of("bucket://out/m.onnx"))] == ["ok"]


def test_samples_and_calibration_data_are_fetched(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    np.savez(tmp_path / "s.npz", x=np.ones((2, 8), "f4"))
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(16, 8)).astype("f4"))
    bucket.put_file(str(tmp_path / "s.npz"), "/s.npz")
    bucket.put_file(str(tmp_path / "c.npz"), "/data/c.npz")
    targets = [{"target": "ort", "precision": "int8", "output": "bucket://out/q.onnx"}]
    result = run(tmp_path, sample="bucket://s.npz", calibration={"path": "bucket://data"}, targets=targets)
    assert result.error is None, result.error
    assert "/out/q.onnx" in names(bucket)


def test_the_memory_of_this_process_is_a_place(tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    files = fsspec.filesystem("memory")
    files.put_file(str(tmp_path / "m.onnx"), "/test-remote/m.onnx")
    try:
        result = infconv.convert("memory://test-remote/m.onnx", output="memory://test-remote/out/o.onnx")
        assert result.artifacts[0].path == "memory://test-remote/out/o.onnx"
        assert onnx.load_from_string(files.cat_file("/test-remote/out/o.onnx")).graph.node
    finally:
        files.rm("/test-remote", recursive=True)


@pytest.mark.parametrize("option", [{"jobs": 2}, {"timeout": "1h"}, {"memory_limit": "8GiB"}])
def test_the_memory_of_a_process_that_ends_is_no_place(tmp_path: Path, option: dict[str, Any]) -> None:
    make_mlp(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="the memory of a process that ends"):
        infconv.convert(tmp_path / "m.onnx", output="memory://x.onnx", **option)


def test_a_file_url_is_the_path(tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    result = infconv.convert(f"file://{tmp_path}/m.onnx", output=f"file://{tmp_path}/o.onnx")
    assert result.artifacts[0].path == str(tmp_path / "o.onnx")


def test_other_processes_find_the_artifact(tmp_path: Path) -> None:
    """`dir://` is a file system of fsspec's that every process has."""
    make_mlp(tmp_path / "m.onnx")
    place = f"dir://out/o.onnx::file://{tmp_path}"
    command = [sys.executable, "-m", "infconv.cli", "convert", f"dir://m.onnx::file://{tmp_path}", "-o", place]
    done = subprocess.run([*command, "--json", "--jobs", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["artifacts"][0]["path"] == place
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["o.onnx", "o.onnx.infconv.json"]


def test_the_root_of_a_place_is_a_folder(tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    (tmp_path / "base").mkdir()
    base = f"file://{tmp_path}/base"
    result = infconv.convert(tmp_path / "m.onnx", output=f"dir://o.onnx::{base}", report=f"dir://r.md::{base}")
    assert result.artifacts[0].path == f"dir://o.onnx::{base}"
    assert sorted(f.name for f in (tmp_path / "base").iterdir()) == ["o.onnx", "o.onnx.infconv.json", "r.md"]


# --- gates, baselines and reports ------------------------------------------------------------------------------------


def test_a_baseline_and_reports_lie_beside_the_artifacts(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    more = {
        "gates": {"nodes": {"max": 9}, "baseline": "bucket://out/baseline.json", "max_regression": 0.05},
        "reports": ["bucket://out/r.md"],
    }
    assert [gate.status for gate in run(tmp_path, **more).gates] == ["passed"]
    assert list(json.loads(bucket.cat_file("/out/baseline.json"))["artifacts"]) == ["m.onnx"]
    put_model(bucket, tmp_path, width=40)
    result = run(tmp_path, **more)
    assert result.exit_code == 6
    assert "bucket://out/m.onnx: regression.size_mb" in result.error.message


def test_reports_and_bills_go_to_urls(bucket: Bucket, tmp_path: Path) -> None:
    from infconv.report import Report, write_reports
    from infconv.sbom import write_sbom

    put_model(bucket, tmp_path)
    result = run(tmp_path)
    write_reports(["bucket://r.md", str(tmp_path / "r.json")], Report("p.yaml", result))
    write_sbom("bucket://sbom.json", [result.artifacts[0].manifest])
    assert b"bucket://out/m.onnx" in bucket.cat_file("/r.md")
    assert json.loads(bucket.cat_file("/sbom.json"))["bomFormat"] == "CycloneDX"
    bucket.broken["put"] = PermissionError()
    with pytest.raises(ResourceError, match=r"report 'bucket://q.md' cannot be written.*no permission"):
        write_reports(["bucket://q.md"], Report("p.yaml", result))


# --- publishing ------------------------------------------------------------------------------------------------------


def files(folder: Path, *given: str) -> list[Path]:
    for name in given:
        (folder / name).write_text(f"new {name}")
    return [folder / name for name in given]


def test_the_file_that_users_open_comes_last(bucket: Bucket, tmp_path: Path) -> None:
    upload(files(tmp_path, "a.xml", "a.bin"), "bucket://out")
    moves = [line for line in bucket.done if line.startswith("move")]
    assert moves == ["move /out/a.bin", "move /out/a.xml"]
    assert all("/.infconv-" in line for line in bucket.done if line.startswith("put"))
    assert names(bucket) == ["/out/a.bin", "/out/a.xml"]


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ("put /out/.infconv-a.xml", {"a.xml": b"old", "a.bin": b"old"}),
        ("a.bin", {"a.xml": b"old", "a.bin": b"old"}),
        ("move /out/a.bin", {"a.bin": b"old"}),
        ("move /out/a.xml", {"a.bin": b"new a.bin"}),
    ],
)
def test_what_fails_on_the_way_leaves_the_old_artifact_or_none(
    bucket: Bucket, tmp_path: Path, fails: str, left: dict[str, bytes]
) -> None:
    for name in ("a.xml", "a.bin"):
        bucket.pipe_file(f"/out/{name}", b"old")
    bucket.broken[fails] = OSError("gone away")
    with pytest.raises(ResourceError, match="'bucket://out/a.xml' cannot be written: OSError: gone away"):
        upload(files(tmp_path, "a.xml", "a.bin"), "bucket://out")
    assert {name.removeprefix("/out/"): bucket.cat_file(name) for name in names(bucket)} == left


def test_an_upload_that_fails_fails_its_artifact_only(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    bucket.broken["/out/bad.onnx"] = PermissionError("no")
    targets = [{"target": "onnx", "output": f"bucket://out/{name}.onnx"} for name in ("bad", "good")]
    result = run(tmp_path, targets=targets)
    assert [artifact.path for artifact in result.artifacts] == ["bucket://out/good.onnx"]
    assert [failure.path for failure in result.failures] == ["bucket://out/bad.onnx"]
    assert result.exit_code == 2
    assert "'bucket://out/bad.onnx' cannot be written: no permission." in str(result.error)
    bucket.broken.clear()
    bucket.done.clear()
    assert [artifact.cached for artifact in run(tmp_path, targets=targets).artifacts] == [True, True]
    assert [line for line in bucket.done if line.startswith("move")] == [
        "move /out/bad.onnx.infconv.json",
        "move /out/bad.onnx",
    ]


# --- fetching --------------------------------------------------------------------------------------------------------


def test_external_data_comes_with_the_model(bucket: Bucket, tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    for tensor in model.graph.initializer:
        tensor.raw_data = numpy_helper.to_array(tensor).tobytes()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    for name in ("m.onnx", "w.bin"):
        bucket.put_file(str(tmp_path / name), f"/models/{name}")
    result = run(tmp_path, source={"path": "bucket://models/m.onnx"})
    assert result.error is None, result.error
    assert run(tmp_path, source={"path": "bucket://models/m.onnx"}).artifacts[0].cached
    bucket.rm_file("/models/w.bin")
    error = run(tmp_path, source={"path": "bucket://models/m.onnx"}).error
    assert isinstance(error, SourceError)
    assert "'w.bin' of 'bucket://models/m.onnx' is missing" in error.message


@pytest.mark.parametrize("cached", [True, False])
def test_a_folder_comes_with_all_that_is_in_it(bucket: Bucket, tmp_path: Path, cached: bool) -> None:
    from infconv.cache import find_cache

    for name in ("saved_model.pb", "variables/v.index", "assets/deep/a.txt"):
        bucket.pipe_file(f"/flow/{name}", name.encode())
    cache = find_cache(str(tmp_path / "cache")) if cached else None
    folder = Fetcher(tmp_path, cache).fetch("bucket://flow")
    assert folder.name == "flow"
    assert {f.relative_to(folder).as_posix(): f.read_text() for f in folder.rglob("*") if f.is_file()} == {
        name: name for name in ("saved_model.pb", "variables/v.index", "assets/deep/a.txt")
    }
    if cache is not None:
        again = Fetcher(tmp_path, find_cache(str(tmp_path / "cache"))).fetch("bucket://flow")
        assert again == folder
        assert len([line for line in bucket.done if line.startswith("get")]) == 3


def test_the_parameters_of_a_paddle_model_come_with_it(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("m.json", "m.pdiparams", "other.pdiparams"):
        bucket.pipe_file(f"/p/{name}", b"{}")
    program = Fetcher(tmp_path).fetch("bucket://p/m.json")
    assert sorted(file.name for file in program.parent.iterdir()) == ["m.json", "m.pdiparams"]


def test_a_file_that_is_cut_off_is_no_source(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(bucket, tmp_path)
    monkeypatch.setattr(Bucket, "get_file", lambda self, place, local, **_: Path(local).write_bytes(b"x"))
    with pytest.raises(SourceError, match="was cut off: 1 of"):
        Fetcher(tmp_path).fetch("bucket://m.onnx")


def test_a_file_that_changes_while_it_is_read_is_not_kept(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    fetch, turns = Bucket.get_file, iter([b"other", b"another"])

    def changing(self: Bucket, place: str, local: str, **_: Any) -> None:
        fetch(self, place, local)
        self.pipe_file("/x.bin", next(turns))

    bucket.pipe_file("/x.bin", b"first")
    from infconv.cache import find_cache

    cache = find_cache(str(tmp_path / "cache"))
    assert cache is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "get_file", changing)
        Fetcher(tmp_path, cache).fetch("bucket://x.bin")
    assert "changed while it was read" in cache.notes[0]
    assert Fetcher(tmp_path, cache).fetch("bucket://x.bin").read_bytes() == b"another"


# --- what does not work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("bucket://nope.onnx", SourceError, "'bucket://nope.onnx' does not exist."),
        ("bucket://not-a-model.onnx", SourceError, "'bucket://not-a-model.onnx': The file is not an ONNX model"),
        ("bucket://secret.onnx", SourceError, "'bucket://secret.onnx' cannot be read: no permission."),
        ("bucket://torn.onnx", SourceError, "'bucket://torn.onnx' cannot be read: OSError: the line is dead."),
        ("buckt://m.onnx", UsageError, "Protocol not known: buckt."),
        ("s3://b/m.onnx", DependencyError, "needs a package that is not installed: Install s3fs"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(
    bucket: Bucket, tmp_path: Path, source: str, kind: type[InfconvError], message: str
) -> None:
    for name in ("not-a-model", "secret", "torn"):
        bucket.pipe_file(f"/{name}.onnx", b"text")
    bucket.broken["get /secret"] = PermissionError()
    bucket.broken["get /torn"] = OSError("the line is dead\nand more")
    with pytest.raises(kind) as caught:
        infconv.convert(source, output=tmp_path / "o.onnx")
    assert message in caught.value.message
    assert "infconv-remote" not in str(caught.value)


@pytest.mark.parametrize("key", ["sample", "calibration"])
def test_missing_data_is_wrong_usage(bucket: Bucket, tmp_path: Path, key: str) -> None:
    put_model(bucket, tmp_path)
    with pytest.raises(UsageError, match="'bucket://nope.npz' does not exist"):
        infconv.convert("bucket://m.onnx", output=tmp_path / "o.onnx", int8=True, **{key: "bucket://nope.npz"})


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DependencyError) as caught:
        infconv.convert("s3://b/m.onnx")
    assert "infconv[remote]" in caught.value.hint


def test_an_unknown_place_of_outputs_is_told_before_the_work(tmp_path: Path) -> None:
    make_mlp(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="Did you mean 'memory'"):
        infconv.convert(tmp_path / "m.onnx", output="memry://x.onnx")


def test_the_source_is_not_written_over(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    with pytest.raises(UsageError, match="is the source itself"):
        infconv.convert("bucket://m.onnx", output="bucket:///m.onnx")
    before = bucket.cat_file("/m.onnx")
    result = infconv.convert("bucket://m.onnx", output="bucket://")
    assert result.artifacts[0].path == "bucket://m.optimized.onnx"
    assert bucket.cat_file("/m.onnx") == before
    assert "/m.optimized.onnx" in names(bucket)


def test_a_pipeline_at_a_url_is_not_read() -> None:
    with pytest.raises(UsageError, match="'bucket://p.yaml' is at a URL"):
        infconv.run("bucket://p.yaml")


def test_an_output_of_another_kind_is_refused_before_the_work(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    for output in ("bucket://o.xml", "bucket://o.engine", str(tmp_path / "o.xml")):
        with pytest.raises(UsageError, match="does not fit target onnx, which makes .onnx files"):
            infconv.convert("bucket://m.onnx", output=output)


def test_names_outside_of_a_folder_are_refused(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe_file("/d/a", b"")
    monkeypatch.setattr(Bucket, "find", lambda *_, **__: {"/d/../../etc/x": {"size": 1}})
    with pytest.raises(SourceError, match="a file outside of it"):
        remote.listing("bucket://d")


def test_other_commands_take_urls(bucket: Bucket, tmp_path: Path) -> None:
    put_model(bucket, tmp_path)
    found = infconv.compare("bucket://m.onnx", tmp_path / "local.onnx")
    assert found.passed
