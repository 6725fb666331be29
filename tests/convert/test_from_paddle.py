"""Paddle sources: recognised, refused or exported, and compared with Paddle itself at other sizes.

The tests marked `paddle` need a Python with Paddle: `infconv env create paddle`, or INFCONV_PADDLE_PYTHON=PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import infconv
from infconv.convert import recognise
from infconv.convert._paddle_files import locate
from infconv.convert._worker import WorkerError
from infconv.convert._worker_paddle_program import Program, attribute, operands
from infconv.convert._worker_paddle_weights import check_parameters
from infconv.convert.from_paddle import FromPaddle
from infconv.environments import choose_interpreter
from infconv.errors import DependencyError, InfconvError, SourceError, UnsupportedError, UsageError

MAKER = Path(__file__).with_name("paddle_models.py")
NAMES = {
    "pir": (
        *("resnet", "mobilenet", "transformer", "lstm", "gru", "several", "apart", "loop", "branch", "scalars"),
        *("resize", "alias", "singular", "singular_branch", "norm"),
    ),
    # Paddle 3 in its old mode cannot save a branch or an encoder any more
    "program": ("resnet", "mobilenet", "lstm", "gru", "several", "loop", "scalars", "singular"),
}
CONVERTED = [
    *[("pir", name) for name in NAMES["pir"][:11]],
    *[("program", name) for name in NAMES["program"][:7]],
]


@pytest.fixture(scope="session")
def paddle_python() -> str:
    """The Python that has Paddle."""
    given = os.environ.get("INFCONV_PADDLE_PYTHON")
    try:
        found = choose_interpreter("paddle", FromPaddle.requires, python=given)
    except DependencyError as error:
        pytest.skip(f"{error.message} {error.hint}")
    return found or sys.executable


@pytest.fixture(scope="session")
def models(paddle_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each file format with every model that it can hold."""
    root = tmp_path_factory.mktemp("paddle")
    for kind, names in NAMES.items():
        (root / kind).mkdir()
        mode = {"FLAGS_enable_pir_api": "1" if kind == "pir" else "0"}
        command = [paddle_python, str(MAKER), str(root / kind), *names]
        subprocess.run(command, env=os.environ | mode, check=True, capture_output=True)
    return root


@pytest.fixture
def convert(paddle_python: str, tmp_path: Path) -> Callable[..., Any]:
    """Convert to `tmp_path / "out.onnx"` with the Python that has Paddle, and return the artifact."""

    def run(source: Path, **options: Any) -> Any:
        result = infconv.convert(source, output=tmp_path / "out.onnx", python=paddle_python, **options)
        return result.artifacts[0]

    return run


def dims_of(path: Path) -> dict[str, list[int | str]]:
    """Return name -> dims of the inputs of an ONNX file."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    return {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs}


# --- what needs Paddle -------------------------------------------------------------------------------------------


@pytest.mark.paddle
@pytest.mark.parametrize(("kind", "name"), CONVERTED)
def test_every_model_from_every_format_to_every_target(
    models: Path, paddle_python: str, tmp_path: Path, kind: str, name: str
):
    pipeline = tmp_path / "pipeline.yaml"
    targets = [
        {"target": target, "precision": precision, "output": "out/"}
        for target in ("onnx", "openvino", "tensorrt")
        for precision in ("fp32", "fp16")
        # nothing to compute in float16: elementwise operators only
        if precision == "fp32" or name not in ("apart", "scalars")
    ]
    source = {"path": str(models / kind / name), "python": paddle_python}
    pipeline.write_text(json.dumps({"version": 1, "source": source, "targets": targets}))
    for artifact in infconv.run(pipeline).artifacts:
        assert artifact.verification.passed
        assert artifact.verification.reference.startswith("paddle ")
        assert len(artifact.verification.samples) == 3
        found = artifact.verification.worst()
        assert artifact.precision != "fp32" or found.sqnr_db is None or found.sqnr_db > 80, "1e-4 of the signal"


@pytest.mark.paddle
def test_two_inputs_have_one_batch_where_the_model_runs_with_nothing_else(models: Path, convert: Callable[..., Any]):
    assert dims_of(Path(convert(models / "pir" / "several").path)) == {"ids": ["batch", 6], "mask": ["batch", 6]}
    assert dims_of(Path(convert(models / "pir" / "apart").path)) == {"x": ["x_0", 4], "y": ["y_0", 3]}


@pytest.mark.paddle
def test_dims_get_the_names_that_the_user_gives(models: Path, convert: Callable[..., Any]):
    artifact = convert(models / "pir" / "lstm", input={"x": ["clips", "frames", 4]}, dim={"frames": (1, 20)})
    assert dims_of(Path(artifact.path)) == {"x": ["clips", "frames", 4]}
    assert {word.split("=")[0] for s in artifact.verification.samples for word in s.label.split()} == {
        "clips",
        "frames",
    }


@pytest.mark.paddle
@pytest.mark.parametrize("kind", ["pir", "program"])
def test_inputs_and_outputs_keep_paddles_names_and_order(models: Path, convert: Callable[..., Any], kind: str):
    graph = onnx.load(convert(models / kind / "several").path).graph
    assert [i.name for i in graph.input] == ["ids", "mask"]
    names = {"pir": ["fetch_name_0", "fetch_name_1", "fetch_name_2"], "program": ["sum_0.tmp_0", "linear_0.tmp_1"]}
    assert [o.name for o in graph.output][: len(names[kind])] == names[kind]


@pytest.mark.paddle
@pytest.mark.parametrize(
    ("kind", "name", "error", "words"),
    [
        ("pir", "singular", UnsupportedError, r"operator 'lgamma' \(after layer /Linear\w*/\)"),
        ("program", "singular", UnsupportedError, r"operator 'lgamma' \(after the layer of parameter linear_"),
        ("pir", "singular_branch", UnsupportedError, "operator 'lgamma'"),
        ("pir", "norm", UnsupportedError, "'fetch_name_0' 1 dimensions, the model has 0"),
        ("pir", "alias", SourceError, "Output 1 of this file is its input 'y'"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence_with_a_remedy(
    models: Path, convert: Callable[..., Any], kind: str, name: str, error: type[InfconvError], words: str
):
    with pytest.raises(error, match=words) as caught:
        convert(models / kind / name)
    assert "\n" not in caught.value.message
    assert caught.value.hint


HANDLERS = """
from onnx import helper

def lgamma(operator, inputs, outputs):
    assert operator.name == "lgamma" and operator.results[0].dims == (-1, 4), operator
    return [helper.make_node("Mul", [inputs[0], inputs[0]], ["square"]),
            helper.make_node("Sqrt", ["square"], outputs)]

handlers = {"lgamma": lgamma}
"""


@pytest.mark.paddle
def test_an_operator_is_mapped_by_the_users_module(
    models: Path, convert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_operators.py").write_text(HANDLERS)
    artifact = convert(models / "pir" / "singular", source_options={"handlers": "my_operators"}, verify="off", skip=[])
    graph = onnx.load(artifact.path).graph
    assert not {"Lgamma"} & {node.op_type for node in graph.node}
    assert [o.name for o in graph.output] == ["fetch_name_0"]
    # |x| instead of the logarithm of gamma: verification sees that the handler is wrong
    with pytest.raises(InfconvError) as caught:
        convert(models / "pir" / "singular", source_options={"handlers": "my_operators"})
    assert caught.value.exit_code == 5
    with pytest.raises(UnsupportedError, match="inside a branch"):
        convert(models / "pir" / "singular_branch", source_options={"handlers": "my_operators"})


@pytest.mark.paddle
def test_a_file_of_paddle_3_3_has_float64_scales(models: Path, convert: Callable[..., Any], tmp_path: Path):
    text = (models / "pir" / "resize.json").read_text()
    newer = text.replace('{"#":"0.a_f32","D":2.0}', '{"#":"0.a_f64","D":2.0}').replace('"version":3', '"version":4')
    assert newer.count("a_f64") == text.count("a_f64") + 2
    (tmp_path / "newer.json").write_text(newer)
    shutil.copy(models / "pir" / "resize.pdiparams", tmp_path / "newer.pdiparams")
    artifact = convert(tmp_path / "newer.json")
    assert artifact.verification.passed
    assert "saved by a newer Paddle" in " ".join(artifact.notes) or "A newer Paddle" in " ".join(artifact.notes)


@pytest.mark.paddle
def test_the_manifest_has_both_files_and_what_paddle_printed(models: Path, convert: Callable[..., Any]):
    manifest = json.loads(Path(convert(models / "pir" / "lstm").manifest).read_text())
    assert set(manifest["source"]["files"]) == {"lstm.json", "lstm.pdiparams"}
    assert {"paddlepaddle", "paddle2onnx"} <= set(manifest["versions"])
    assert isinstance(manifest["frontend"]["log"], list)


@pytest.mark.paddle
@pytest.mark.parametrize("kind", ["pir", "program"])
def test_damaged_files_are_refused(models: Path, convert: Callable[..., Any], tmp_path: Path, kind: str):
    program, parameters = locate(str(models / kind / "lstm")).program, models / kind / "lstm.pdiparams"
    shutil.copy(program, tmp_path)
    (tmp_path / "lstm.pdiparams").write_bytes(parameters.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged or cut short"):
        convert(tmp_path / "lstm")
    shutil.copy(parameters, tmp_path)
    (tmp_path / program.name).write_bytes(program.read_bytes()[: program.stat().st_size * 3 // 4])
    with pytest.raises(SourceError, match=r"not a complete Paddle program|as a Paddle 2 model"):
        convert(tmp_path / "lstm")


@pytest.mark.paddle
def test_parameters_of_another_model_are_refused(models: Path, convert: Callable[..., Any], tmp_path: Path):
    shutil.copy(models / "pir" / "lstm.json", tmp_path)
    shutil.copy(models / "pir" / "gru.pdiparams", tmp_path / "lstm.pdiparams")
    with pytest.raises(SourceError, match="does not belong to this program"):
        convert(tmp_path / "lstm.json")


@pytest.mark.paddle
def test_an_unknown_source_option_is_named(models: Path, convert: Callable[..., Any]):
    with pytest.raises(UsageError, match="no option 'handler'"):
        convert(models / "pir" / "lstm", source_options={"handler": "x"})


# --- recognition, and the program: Paddle is not needed ------------------------------------------------------------


def op(kind: str, inputs: list[int], outputs: dict[int, list[int]], /, **attributes: Any) -> dict[str, Any]:
    """Return an operator of a PIR file, its results float32."""
    kinds = {str: "0.a_str", float: "0.a_f64", int: "0.a_i32", list: "0.a_array"}
    return {
        "#": kind,
        "A": [{"AT": {"#": kinds[type(value)], "D": value}, "N": key} for key, value in attributes.items()],
        "I": [{"%": number} for number in inputs],
        "O": [{"%": n, "TT": {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, d]}} for n, d in outputs.items()],
        "OA": [],
    }


def parameter(number: int, name: str, dims: list[int]) -> dict[str, Any]:
    made = op("p", [], {number: dims})
    return made | {"A": [0, 1, 1, name], "I": [], "O": made["O"][0], "OA": [1, 0, 1]}


def write_program(path: Path, *ops: dict[str, Any]) -> Path:
    blocks = [{"#": "block_0", "args": [], "ops": list(ops)}]
    regions = [{"#": "region_0", "blocks": blocks}]
    document = {"base_code": {"magic": "pir", "trainable": True, "version": 3}, "program": {"regions": regions}}
    path.write_text(json.dumps(document, separators=(",", ":")))
    return path


INPUT = op("1.data", [], {1: [-1, 4]}, name="x")
FETCH = op("1.fetch", [3], {4: []}, name="out", col=0)


def record(dims: list[int]) -> bytes:
    """Return a record of a .pdiparams file, float32 zeros."""
    described = b"\x08\x05" + b"".join(b"\x10" + bytes([dim]) for dim in dims)
    return struct.pack("<IQIi", 0, 0, 0, len(described)) + described + bytes(4 * int(np.prod(dims)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The prefix of a model with one parameter."""
    write_program(tmp_path / "net.json", parameter(2, "w", [4]), INPUT, op("1.add", [1, 2], {3: [-1, 4]}), FETCH)
    (tmp_path / "net.pdiparams").write_bytes(record([4]))
    return tmp_path / "net"


@pytest.mark.parametrize("ending", [".json", ".pdiparams", "", "/.."])
def test_a_model_is_named_by_either_file_the_prefix_or_the_folder(model: Path, ending: str):
    source = str(model.parent) if ending == "/.." else f"{model}{ending}"
    assert recognise(source) == ("paddle", "pir")
    assert locate(source).parameters == model.with_suffix(".pdiparams")


def test_a_program_of_paddle_2_is_known_by_its_content(tmp_path: Path):
    block = b"\x08\x00\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    weight = b"\x0a\x01w\x18\x01"
    variable = b"\x1a" + bytes([len(weight)]) + weight
    (tmp_path / "free.pdmodel").write_bytes(b"\x0a" + bytes([len(block)]) + block)
    (tmp_path / "net.pdmodel").write_bytes(b"\x0a" + bytes([len(block) + len(variable)]) + block + variable)
    assert recognise(str(tmp_path / "net.pdmodel")) == ("paddle", "program")
    assert locate(str(tmp_path / "free")).parameters is None
    with pytest.raises(SourceError, match=r"needs its parameters, and 'net\.pdiparams'"):
        locate(str(tmp_path / "net"))


def test_missing_parameters_are_refused_unless_the_model_has_none(model: Path, tmp_path: Path):
    model.with_suffix(".pdiparams").unlink()
    with pytest.raises(SourceError, match="not beside it"):
        locate(str(model))
    free = write_program(tmp_path / "free.json", INPUT, op("1.tanh", [1], {3: [-1, 4]}), FETCH)
    assert locate(str(free)).parameters is None


def test_parameters_alone_are_refused(model: Path):
    model.with_suffix(".json").unlink()
    assert FromPaddle.recognise(f"{model}.pdiparams") == "weights"
    with pytest.raises(SourceError, match=r"no \.json or \.pdmodel beside it"):
        locate(f"{model}.pdiparams")


def test_a_folder_with_two_models_is_not_guessed(model: Path):
    shutil.copy(f"{model}.json", model.with_name("other.json"))
    with pytest.raises(SourceError, match=r"several Paddle models: net\.json, other\.json"):
        locate(str(model.parent))


@pytest.mark.parametrize("text", ['{"a": 1}', "", "[]", '{"magic": "other"}'])
def test_other_json_is_not_paddles(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    assert FromPaddle.recognise(str(tmp_path / "config.json")) is None
    assert FromPaddle.recognise(str(tmp_path)) is None


def test_an_lfs_pointer_is_named(model: Path):
    model.with_suffix(".pdiparams").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(SourceError, match="Git LFS pointer"):
        locate(str(model))


def test_the_axes_of_a_whole_mean_are_written_out(tmp_path: Path):
    path = write_program(
        tmp_path / "net.json",
        INPUT,
        op("1.full_int_array", [], {2: [0]}, value=[]),
        op("1.mean", [1, 2], {3: []}),
        FETCH,
    )
    program = Program.read(str(path))
    program.prepare()
    axes = next(each for each in program.ops if each["#"] == "1.full_int_array" and attribute(each, "value"))
    assert [value["D"] for value in attribute(axes, "value")] == [0, 1]
    mean = next(each for each in program.ops if each["#"] == "1.mean")
    assert operands(mean) == [1, axes["O"][0]["%"]]


def test_two_outputs_of_one_value_become_two_values(tmp_path: Path):
    twin = op("1.fetch", [3], {5: []}, name="twin", col=1)
    path = write_program(tmp_path / "net.json", INPUT, op("1.tanh", [1], {3: [-1, 4]}), FETCH, twin)
    program = Program.read(str(path))
    program.prepare()
    read = [operands(each)[0] for each in program.ops if each["#"] == "1.fetch"]
    assert len(set(read)) == 2
    assert [each["#"] for each in program.ops] == ["1.data", "1.tanh", "1.fetch", "1.assign", "1.fetch"]


def test_parameters_are_checked_against_the_program(model: Path, tmp_path: Path):
    tensors = Program.read(f"{model}.json").parameters()
    assert [(r.dtype, r.dims, r.length) for r in check_parameters(tensors, f"{model}.pdiparams")] == [
        ("float32", (4,), 16)
    ]
    (tmp_path / "other").write_bytes(record([5]))
    with pytest.raises(WorkerError, match=r"parameter 'w' is float32\[5\] there, float32\[4\] here"):
        check_parameters(tensors, str(tmp_path / "other"))
    (tmp_path / "cut").write_bytes(record([4])[:-1])
    with pytest.raises(WorkerError, match="damaged or cut short"):
        check_parameters(tensors, str(tmp_path / "cut"))
