"""The pipeline file: what is wrong in it is told with its key, its place and the likely spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from infconv.api import make_spec
from infconv.convert._base import DimRange, InputSpec
from infconv.errors import UsageError
from infconv.run_file import load_spec
from infconv.spec import to_yaml


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
        ("targets:", "target:", "4: unknown key 'target', did you mean 'targets'?"),
        ("opt: 8", "optt: 8", "3: unknown key 'source.dims.batch.optt', did you mean 'opt'?"),
        ("output:", "outptu:", "4: unknown key 'targets.0.outptu', did you mean 'output'?"),
        ("version: 1", "version: 2", "2: 'version' is 2; it takes 1."),
        ("version: 1", "precision: fp16", "2: unknown key 'precision': it belongs under 'targets'."),
        ("max: 32", "max: 4", "3: 'source.dims.batch': min <= opt <= max is needed, not 1, 8, 4."),
        ("max: 32", "max: lots", "3: 'source.dims.batch.max' takes a whole number, not 'lots'."),
        ("min: 1", "min: 0", "3: 'source.dims.batch.min' is 0; it must be at least 1."),
        ("{path: m.onnx, ", "{", "3: 'source.path' is missing."),
        ("path: m.onnx", "path: m.onnx, inputs: 7", "3: 'source.inputs' takes a mapping, not 7."),
        ("path: m.onnx", "path: m.onnx, inputs: {x: 7}", "3: 'source.inputs.x' takes a list or a mapping, not 7."),
        ("path: m.onnx", "path: m.onnx, inputs: {x: [1.5]}", "'source.inputs.x.0' takes a whole number or text"),
        ("path: m.onnx", "path: m.onnx, inputs: {x: {dims: [2], dtyp: int64}}", "dtyp', did you mean 'dtype'?"),
        ("path: m.onnx", "path: m.onnx, inputs: {x: '2,n:flot'}", "Did you mean 'float32'?"),
        ("target: onnx,", "target: onnx, precision: fp61,", "4: 'targets.0.precision' is 'fp61', did you mean 'fp16'?"),
        ("targets:", "steps: [fold-constnts]\ntargets:", "4: 'steps.0': Unknown pass 'fold-constnts'. Did you mean"),
        ("targets:", "timeout: soon\ntargets:", "4: 'timeout': the text 'soon' is not a number with a unit."),
        ("[{target: onnx, output: out/m.onnx}]", "[]", "4: 'targets' is empty; it needs at least 1."),
    ],
)
def test_each_mistake_is_told_with_its_line_and_the_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(write(tmp_path, GOOD.replace(old, new)))
    assert caught.value.message.startswith(f"{tmp_path / 'p.yaml'}:")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("version: 1", "version: 2").replace("output:", "outptu:") + "add: [fuse-glu]\n"
    with pytest.raises(UsageError) as caught:
        load_spec(write(tmp_path, text))
    head, *lines = caught.value.message.splitlines()
    assert head.endswith("has 3 problems:")
    assert [line.removeprefix(f"{tmp_path / 'p.yaml'}:")[:1] for line in lines] == ["2", "4", "5"]
    assert "Did you mean 'fuse-gelu'?" in lines[2]


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"p\.yaml:2: this is not YAML"):
        load_spec(write(tmp_path, "version: 1\nsource: {path: [}\n"))


def test_times_and_sizes_are_written_as_people_do(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD + "timeout: 30m\nmemory_limit: 8GiB\nverify: {step_timeout: 90s}\n"))
    assert (spec.timeout, spec.memory_limit, spec.verify.step_timeout) == (1800, 8 << 30, 90)


def test_inputs_may_be_written_as_on_the_command_line(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD.replace("path: m.onnx", "path: m.onnx, inputs: {x: 'batch,8:int64'}")))
    assert spec.source.input_specs()["x"] == InputSpec(("batch", 8), "int64")


def test_an_unnamed_output_goes_beside_the_file(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD.replace(", output: out/m.onnx", "")))
    assert spec.targets[0].output == str(tmp_path)


def test_modules_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, GOOD)).source.python_path == []
    spec = load_spec(write(tmp_path, GOOD.replace("m.onnx, dims", "'my.module:make', dims")))
    assert spec.source.python_path == [str(tmp_path)]


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


@pytest.mark.parametrize(
    "given", [{"x": ["batch", 8]}, {"x": "batch,8"}, {"x": ("batch", 8)}, ["x:batch,8"], "x:batch,8"]
)
def test_inputs_are_taken_in_every_form(given) -> None:
    assert make_spec("m.onnx", input=given).source.input_specs() == {"x": InputSpec(("batch", 8))}


@pytest.mark.parametrize("given", [{"n": (1, 4)}, {"n": "1..4"}, {"n": {"min": 1, "max": 4}}, ["n=1..4"], "n=1..4"])
def test_dims_are_taken_in_every_form(given) -> None:
    assert make_spec("m.onnx", dim=given).source.dim_ranges() == {"n": DimRange(1, None, 4)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": {"n": (4, 1)}}, "dim 'n': 1 <= min <= opt <= max is needed, not 4, 1"),
        ({"dim": ["n=1", "n=2"]}, "--dim 'n' is given twice"),
        ({"input": {"x": "n,4:flaot16"}}, "input 'x' has the unknown type 'flaot16'"),
        ({"rtol": -1}, "--rtol is -1; it must be at least 0"),
        ({"verify": "ech"}, "--verify is 'ech', did you mean 'each'?"),
        ({"timeout": "soon"}, "--timeout: the text 'soon' is not a number with a unit"),
        ({"memory_limit": 0}, "--memory-limit is 0; it must be more than 0"),
        ({"opset": "x"}, "--opset takes a whole number, not 'x'"),
    ],
)
def test_wrong_options_are_told_by_their_names(options, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_spec("m.onnx", **options)
    assert message in str(caught.value)
