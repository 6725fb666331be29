"""The pipeline file: what is wrong in it is told with its key, its place and the likely spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from infconv.api import make_spec
from infconv.errors import UsageError
from infconv.spec import load_spec, to_yaml


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "p.yaml").write_text(text)
    return tmp_path / "p.yaml"


GOOD = """
version: 1
source: {path: m.onnx, dims: {batch: {min: 1, opt: 8, max: 32}}}
targets: [{target: onnx, output: out/m.onnx}]
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD))
    assert spec.source.path == str(tmp_path / "m.onnx")
    assert spec.targets[0].output == str(tmp_path / "out/m.onnx")


def test_a_factory_and_a_url_are_no_paths(tmp_path: Path) -> None:
    for source in ("package.module:factory", "s3://bucket/m.onnx"):
        assert load_spec(write(tmp_path, GOOD.replace("m.onnx, dims", f"'{source}', dims"))).source.path == source


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("targets:", "target:", "unknown key 'target', did you mean 'targets'"),
        ("opt: 8", "optt: 8", r"unknown key 'source\.dims\.batch\.optt'"),
        ("output:", "outptu:", "unknown key 'targets.0.outptu', did you mean 'output'"),
        ("version: 1", "version: 2", "'version'"),
        ("max: 32", "max: 4", "min <= opt <= max"),
        ("{path: m.onnx, ", "{", "'source.path' is missing"),
        ("target: onnx,", "target: onnx, precision: fp61,", "'targets.0.precision'"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_spec(write(tmp_path, GOOD.replace(old, new)))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(write(tmp_path, GOOD.replace("version: 1", "version: 2").replace("output:", "outptu:")))
    assert "version" in caught.value.message
    assert "outptu" in caught.value.message


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        load_spec(write(tmp_path, text))


def test_flags_become_the_same_pipeline(tmp_path: Path) -> None:
    source = str(tmp_path / "m.onnx")
    spec = make_spec(
        source,
        target=["onnx", "ov"],
        output=str(tmp_path / "out"),
        fp16=True,
        dim={"batch": (1, 8, 32)},
        passes=[{"fold-constants": {"max_bytes": 1024}}],
        verify="each",
    )
    path = write(tmp_path, to_yaml(spec))
    assert load_spec(path) == spec


def test_precisions_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--fp16 and --bf16"):
        make_spec("m.onnx", fp16=True, bf16=True)
