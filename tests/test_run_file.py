"""What makes several pipelines of one file, and one of several files: sources, matrix, extends, references, --set."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infconv.errors import UsageError
from infconv.run_file import load_run, load_spec
from infconv.runs import plan_all, select
from infconv.spec import absolute, to_yaml

ROOT = Path(__file__).parent.parent

ONE = "version: 1\nsource: {path: m.onnx}\ntargets: [{target: onnx, output: out/m.onnx}]\n"


def named(output: str) -> str:
    return ONE.replace("out/m.onnx", f"'{output}.onnx'")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def made(path: Path, *overrides: str) -> list[tuple[str, str, str, str]]:
    """Return source, target, precision and output of every artifact, relative to the file."""
    return [
        (
            str(Path(spec.source.path).relative_to(path.parent)),
            target.target,
            target.precision,
            str(Path(target.output or "").relative_to(path.parent)),
        )
        for spec in load_run(path, overrides)
        for target in spec.targets
    ]


# --- sources and matrix ----------------------------------------------------------------------------------------------


def test_every_source_is_made_for_every_target(tmp_path: Path) -> None:
    text = "sources: [{path: a.onnx}, {path: b.onnx, name: bee}]\n"
    text += "targets: [{target: onnx, output: '${source}.onnx'}, "
    text += "{target: ov, precision: fp16, output: 'ov/${source}.xml'}]\n"
    assert made(write(tmp_path / "p.yaml", text)) == [
        ("a.onnx", "onnx", "fp32", "a.onnx"),
        ("a.onnx", "ov", "fp16", "ov/a.xml"),
        ("b.onnx", "onnx", "fp32", "bee.onnx"),
        ("b.onnx", "ov", "fp16", "ov/bee.xml"),
    ]


def test_a_source_may_have_samples_of_its_own(tmp_path: Path) -> None:
    text = "sources: [{path: a.onnx, sample: a.npz}, {path: b.onnx}]\nsample: all.npz\ntargets: [{target: onnx}]\n"
    specs = load_run(write(tmp_path / "p.yaml", text))
    assert [spec.sample for spec in specs] == [str(tmp_path / "a.npz"), str(tmp_path / "all.npz")]


def test_a_matrix_multiplies_the_targets_that_refer_to_it(tmp_path: Path) -> None:
    text = """
source: {path: m.onnx}
matrix: {target: [onnx, ort], precision: [fp32, fp16], exclude: [{target: ort, precision: fp32}]}
targets:
  - {target: '${matrix:target}', precision: '${matrix:precision}', output: '${target}.${precision}.onnx'}
  - {target: openvino, output: m.xml}
"""
    path = write(tmp_path / "p.yaml", text)
    assert [target for _, *target in made(path)] == [
        ["onnx", "fp32", "onnx.fp32.onnx"],
        ["onnx", "fp16", "onnx.fp16.onnx"],
        ["ort", "fp16", "ort.fp16.onnx"],
        ["openvino", "fp32", "m.xml"],
    ]
    assert len(load_run(path)) == 1, "the source is opened once"


def test_a_matrix_outside_of_targets_multiplies_the_pipeline(tmp_path: Path) -> None:
    text = """
matrix: {model: [{path: a.onnx, limit: 5}, {path: b.onnx, limit: 9}], opset: [17, 20]}
source: {path: '${matrix:model.path}'}
opset: '${matrix:opset}'
targets: [{target: onnx, output: '${source}.${matrix:opset}.onnx', gates: {nodes: {max: '${matrix:model.limit}'}}}]
"""
    specs = load_run(write(tmp_path / "p.yaml", text))
    found = [(spec.source.label(), spec.opset, spec.targets[0].gates.nodes.max) for spec in specs]  # type: ignore[union-attr]
    assert found == [("a", 17, 5), ("a", 20, 5), ("b", 17, 9), ("b", 20, 9)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrix: {p: [fp32]}\n" + ONE, "p.yaml:1: 'matrix.p' is used nowhere: write ${matrix:p}"),
        ("matrix: {p: fp32}\n" + ONE, "p.yaml:1: 'matrix.p' takes a list with at least one value"),
        (named("${matrix:p}"), "p.yaml:3: 'targets.0.output': the matrix has no 'p'"),
        (named("${env}"), "p.yaml:3: 'targets.0.output': '${env}' is not ${env:NAME} or ${matrix:NAME}"),
        (
            "matrix: {p: [fp32, fp61]}\n" + ONE.replace("{target: onnx", "{target: onnx, precision: '${matrix:p}'"),
            "p.yaml:4: 'targets.0.precision' is 'fp61', did you mean 'fp16'?",
        ),
        (
            "matrix: {n: [1, many]}\n"
            + ONE.replace("{target: onnx", "{target: onnx, gates: {nodes: {max: '${matrix:n}'}}"),
            "p.yaml:4: 'targets.0.gates.nodes.max' takes a number, not 'many' (with n=many).",
        ),
        (
            "matrix: {p: [fp32], exclude: [{q: 1}]}\n" + named("${matrix:p}"),
            "p.yaml:1: 'matrix.exclude.0.q': no axis.",
        ),
        (
            "matrix: {p: [fp32], exclude: [{p: fp32}]}\n" + named("${matrix:p}"),
            "p.yaml:1: 'matrix.exclude' leaves nothing to do.",
        ),
        ("sources: [a.onnx]\ntargets: [{target: onnx}]\n", "'sources.0' takes a mapping: write {path: …}."),
        ("sources: [{pth: a.onnx}]\ntargets: [{target: onnx}]\n", "unknown key 'sources.0.pth', did you mean 'path'?"),
        ("sources: [{path: a.onnx}]\n" + ONE, "'sources' and 'source' exclude each other."),
        ("reports: [a.pdf]\n" + ONE, "p.yaml:1: 'reports.0': the report '"),
        ("gates: {error: {}}\n" + ONE, "p.yaml:1: 'gates.error': give max_abs or min_sqnr."),
        ("extends: gone.yaml\n" + ONE, "p.yaml:1: 'extends': 'gone.yaml' is neither a file in '"),
    ],
)
def test_each_mistake_is_told_once_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_run(write(tmp_path / "p.yaml", text))
    assert message in caught.value.message
    assert caught.value.message.count("\n") == 0


def test_a_reference_without_quotes_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not YAML") as caught:
        load_run(write(tmp_path / "p.yaml", ONE.replace("out/m", "${matrix:p}")))
    assert "in quotes" in caught.value.hint


def test_a_mistake_that_many_combinations_have_is_told_once(tmp_path: Path) -> None:
    text = "matrix: {p: [fp32, fp16]}\nsources: [{path: a.onnx}, {path: b.onnx}]\n"
    text += "targets: [{target: onnx, precision: '${matrix:p}', outptu: x}]\nskp: []\n"
    with pytest.raises(UsageError) as caught:
        load_run(write(tmp_path / "p.yaml", text))
    head, *lines = caught.value.message.splitlines()
    assert head.endswith("has 2 problems:")
    assert [line.partition("unknown key ")[2][:18] for line in lines] == ["'targets.0.outptu'", "'skp', did you mea"]


def test_two_artifacts_of_one_name_are_refused(tmp_path: Path) -> None:
    text = "sources: [{path: a.onnx}, {path: b.onnx}]\ntargets: [{target: onnx, output: out/m.onnx}]\n"
    with pytest.raises(UsageError, match="would both be written") as caught:
        plan_all(load_run(write(tmp_path / "p.yaml", text)))
    assert "${source}" in caught.value.hint


GARBAGE = (None, 7, "x", [7], {"a": 7}, [{}], [[]], "${matrix:p}")
KEYS = ("version", "source", "sources", "targets", "steps", "add", "skip", "verify", "gates", "reports", "matrix")


@pytest.mark.parametrize("key", [*KEYS, "calibration", "sample", "source.path", "source.python_path", "targets.0"])
def test_no_value_is_a_bug(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "p.yaml", ONE)
    for value in GARBAGE:
        with contextlib.suppress(UsageError):
            load_run(path, [f"{key}={json.dumps(value)}"])


# --- extends ---------------------------------------------------------------------------------------------------------


def test_a_file_goes_on_top_of_another_and_paths_stay_with_who_says_them(tmp_path: Path) -> None:
    base = "source: {path: m.onnx, dims: {batch: {min: 1, max: 8}}}\nsample: s.npz\nskip: [fold-shapes]\n"
    write(tmp_path / "base" / "b.yaml", base + "targets: [{target: onnx, output: out/m.onnx}]\n")
    text = "extends: base/b.yaml\nsource: {dims: {batch: {max: 4}}}\nsample: null\n"
    text += "targets: [{target: ort, output: m.onnx}]\n"
    spec = load_spec(write(tmp_path / "p.yaml", text))
    assert spec.source.path == str(tmp_path / "base" / "m.onnx")
    assert (spec.source.dims["batch"].min, spec.source.dims["batch"].max) == (1, 4)
    assert [target.output for target in spec.targets] == [str(tmp_path / "m.onnx")]
    assert (spec.skip, spec.sample) == (["fold-shapes"], None)


def test_a_shipped_pipeline_may_be_extended(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path / "p.yaml", "extends: basic\n" + ONE)).steps == ["basic"]


def test_a_mistake_is_told_in_the_file_that_makes_it(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", "opest: 17\n" + ONE)
    path = write(tmp_path / "p.yaml", "extends: b.yaml\nverify: {when: ech}\n")
    with pytest.raises(UsageError) as caught:
        load_run(path)
    assert f"{path}:2: 'verify.when' is 'ech', did you mean 'each'?" in caught.value.message
    assert f"{tmp_path / 'b.yaml'}:1: unknown key 'opest', did you mean 'opset'?" in caught.value.message


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(UsageError, match=r"b\.yaml:1: .*a\.yaml' extends this file in turn"):
        load_run(tmp_path / "a.yaml")


# --- references and --set --------------------------------------------------------------------------------------------


def test_environment_variables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("LIMIT", "12")
    text = (
        ONE.replace("m.onnx}", "'${env:WHERE}/m.onnx'}", 1)
        + "gates: {nodes: {max: '${env:LIMIT}'}}\nskip: ['$${env:X}']\n"
    )
    spec = load_spec(write(tmp_path / "p.yaml", text))
    assert spec.source.path == "/data/m.onnx"
    assert spec.gates is not None
    assert spec.gates.nodes is not None
    assert spec.gates.nodes.max == 12
    assert spec.skip == ["${env:X}"]


def test_a_variable_that_is_not_set_is_told_with_the_other_mistakes(tmp_path: Path) -> None:
    text = ONE + "timeout: '${env:NO_SUCH_TIME}'\nopest: 17\n"
    with pytest.raises(UsageError) as caught:
        load_run(write(tmp_path / "p.yaml", text))
    head, *lines = caught.value.message.splitlines()
    assert head.endswith("has 2 problems:")
    assert lines[0].endswith("p.yaml:4: 'timeout': the environment variable 'NO_SUCH_TIME' is not set.")


def test_set_replaces_adds_and_removes(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", ONE + "sample: s.npz\n")
    overrides = ["targets.0.precision=fp16", "verify.when=each", "sample=", "skip=[a, b]", "source.inputs.x=[n, 8]"]
    spec = load_spec(path, overrides)
    assert (spec.targets[0].precision, spec.verify.when, spec.sample, spec.skip) == ("fp16", "each", None, ["a", "b"])
    assert spec.source.input_specs()["x"].dims == ("n", 8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.pth=x", "--set source.pth=x: unknown key 'source.pth', did you mean 'path'?"),
        ("target.0.precision=fp16", "--set target.0.precision=fp16: unknown key 'target', did you mean 'targets'?"),
        ("targets.1.precision=fp16", "'targets' is a list of 1; it has no '1'."),
        ("source.path.x=1", "'source.path' is 'm.onnx', which has no keys."),
        ("targets.0.precision=fp61", "--set targets.0.precision=fp61: 'targets.0.precision' is 'fp61', did you mean"),
        ("nonsense", "--set 'nonsense' is not KEY=VALUE."),
        ("skip=[", "--set 'skip=[': the value is not YAML."),
    ],
)
def test_a_wrong_set_is_told_as_it_was_typed(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_run(write(tmp_path / "p.yaml", ONE), [override])
    assert message in caught.value.message


# --- --only ----------------------------------------------------------------------------------------------------------

TWO = """
sources: [{path: a.onnx}, {path: b.onnx, name: bee}]
matrix: {precision: [fp32, fp16]}
targets: [{target: ort, precision: '${matrix:precision}', output: '${source}.${precision}.onnx'}, {target: openvino}]
"""


@pytest.mark.parametrize(
    ("only", "outputs"),
    [
        (["bee"], ["bee.fp32.onnx", "bee.fp16.onnx", "b.xml"]),
        (["onnxruntime"], ["a.fp32.onnx", "a.fp16.onnx", "bee.fp32.onnx", "bee.fp16.onnx"]),
        (["ort"], ["a.fp32.onnx", "a.fp16.onnx", "bee.fp32.onnx", "bee.fp16.onnx"]),
        (["fp16"], ["a.fp16.onnx", "bee.fp16.onnx"]),
        (["*.xml", "a.fp32.onnx"], ["a.fp32.onnx", "a.xml", "b.xml"]),
    ],
)
def test_only_names_what_is_made(tmp_path: Path, only: list[str], outputs: list[str]) -> None:
    specs = select(load_run(write(tmp_path / "p.yaml", TWO)), only)
    assert [job.output.name for own in plan_all(specs) for job in own] == outputs


def test_only_with_an_unknown_name_says_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--only 'openvno'") as caught:
        select(load_run(write(tmp_path / "p.yaml", TWO)), ["openvno"])
    assert caught.value.hint == "Did you mean 'openvino'?"


# --- what is written down again, and the pages -----------------------------------------------------------------------


def test_a_resolved_pipeline_is_a_pipeline_file(tmp_path: Path) -> None:
    text = TWO + "gates: {latency_ms: {max: 5}, error: {min_sqnr: 40}, baseline: b.json}\nreports: [r.md]\n"
    for spec in load_run(write(tmp_path / "p.yaml", text)):
        assert load_spec(write(tmp_path / "again" / "p.yaml", to_yaml(absolute(spec)))) == spec


def blocks(page: str) -> list[dict[str, Any]]:
    """Return the YAML on a page that is of a pipeline file."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return [each for each in found if isinstance(each, dict) and set(each) & {"source", "sources", "gates"}]


@pytest.mark.parametrize(("page", "count"), [("pipelines.md", 2), ("ci.md", 1)])
def test_the_pipelines_on_the_pages_are_valid(tmp_path: Path, page: str, count: int) -> None:
    assert len(blocks(page)) == count
    for data in blocks(page):
        whole = data if "sources" in data else {"source": {"path": "m.onnx"}, **data}
        assert load_run(write(tmp_path / "p.yaml", yaml.safe_dump(whole)))
