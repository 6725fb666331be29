"""TensorFlow sources of every format: recognised, refused or exported, and compared with TensorFlow at other sizes.

The models are made in the environment `tensorflow`, where the tests that need it run: infconv env create tensorflow.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from infconv import environments
from infconv.convert import recognise
from infconv.convert._base import SourceRequest, parse_input
from infconv.convert._worker_client import WorkerProcess
from infconv.convert._worker_source import WorkerSource
from infconv.convert.from_tensorflow import FromTensorflow
from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError
from infconv.model import load
from infconv.pipeline import execute
from infconv.reference import make_reference
from infconv.result import Result
from infconv.spec import PipelineSpec
from tests.convert.shared_worker import lend, started

MAKER = Path(__file__).with_name("tensorflow_models.py")
SMALL = ("cnn", "sequential", "transformer", "recurrent", "wide", "flow", "version1", "unsupported", "no_rank")
SMALL += ("keras2", "lambda3", "huge")
SUFFIXES = (".keras", ".h5", "", ".pb", ".tflite")
PEAK_BYTES = 2.8e9


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter of the environment `tensorflow`."""
    found = environments.find("tensorflow")
    if found is None or not found.ok:
        pytest.skip("there is no environment 'tensorflow': infconv env create tensorflow")
    return str(found.interpreter)


def make_models(python: str, folder: Path, *names: str) -> None:
    done = subprocess.run([python, str(MAKER), str(folder), *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="session")
def models(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every small model in every format."""
    folder = tmp_path_factory.mktemp("tensorflow")
    make_models(python, folder, *SMALL)
    return folder


@pytest.fixture(scope="session")
def worker(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One process for most of the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / "my_operators.py").write_text(HANDLERS)
    with started("tensorflow", python, home) as process:
        yield process


@pytest.fixture
def shared(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are opened in the shared worker."""
    lend(worker, monkeypatch)


def opened(path: Path, folder: Path, *inputs: str, **more: Any) -> WorkerSource:
    found = FromTensorflow.recognise(str(path))
    assert found is not None
    request = SourceRequest(str(path), found, dict(map(parse_input, inputs)), **more)
    return FromTensorflow().open(request, folder)


def ports(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def worst_error(source: WorkerSource) -> float:
    """Return the largest difference to TensorFlow relative to an output's largest value, over several sizes."""
    session = ort.InferenceSession(source.model_path)
    worst = 0.0
    for sample in make_reference(source, load(source.model_path), {}, None, 0).samples:
        found = session.run(list(sample.outputs), sample.inputs)
        for expected, actual in zip(sample.outputs.values(), found, strict=True):
            assert expected.shape == actual.shape
            assert expected.dtype == actual.dtype
            scale = float(np.abs(expected).max()) or 1.0
            worst = max(worst, float(np.abs(expected.astype(float) - actual.astype(float)).max()) / scale)
    return worst


# --- recognition, without TensorFlow -------------------------------------------------------------------------------


def keras_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
    return stream.getvalue()


CONTENTS = {
    "saved-model": ("saved_model.pb", b"\x08\x01\x12\x02\x0a\x00"),
    "keras": ("model.bin", keras_file()),
    "keras-h5": ("model.bin", b"\x89HDF\r\n\x1a\n" + bytes(64)),
    "weights": ("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(64)),
    "tflite": ("model.bin", b"\x1c\x00\x00\x00TFL3" + bytes(64)),
    "frozen-graph": ("model.bin", b"\x0a\x12\x0a\x01x\x12\x0bPlaceholder" + b"\x0a\x02\x0a\x00"),
}


@pytest.mark.parametrize("format", CONTENTS)
def test_the_content_tells_the_format(format: str, tmp_path: Path) -> None:
    name, content = CONTENTS[format]
    (tmp_path / name).write_bytes(content)
    assert recognise(str(tmp_path / name)) == ("tensorflow", format)


def test_a_saved_model_is_a_folder_too(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    assert recognise(str(tmp_path)) == ("tensorflow", "saved-model")


def test_a_damaged_file_is_known_by_its_name(infconv: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.keras").write_bytes(keras_file()[:100])
    with pytest.raises(SourceError, match=r"cut\.keras' is damaged or cut short \(File is not a zip file\)"):
        opened(tmp_path / "cut.keras", tmp_path)
    (tmp_path / "model.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "model.tflite").write_bytes(b"")
    for name, words in (("model.h5", "is a Git LFS pointer"), ("model.tflite", "is empty")):
        outcome = infconv("convert", name)
        assert (outcome.code, words in outcome.err) == (3, True), outcome.err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x0a\x02\x0a\x00", b"\x0a\xff\xff\xff", b"hello", bytes(8)])
def test_other_files_are_not_tensorflow_s(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    assert FromTensorflow.recognise(str(tmp_path / "model.bin")) is None


def test_weights_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"')
    with pytest.raises(SourceError, match="only weights"):
        opened(tmp_path, tmp_path)


def test_without_tensorflow_the_remedy_is_an_environment(mlp: Path, infconv: Any, monkeypatch: Any) -> None:
    (mlp.parent / "model.tflite").write_bytes(CONTENTS["tflite"][1])
    monkeypatch.setenv("INFCONV_CACHE_DIR", str(mlp.parent / "cache"))
    outcome = infconv("convert", "model.tflite", "--json")
    assert outcome.code == 8
    assert "infconv env create tensorflow" in outcome.json["error"]["hint"]


# --- exports -------------------------------------------------------------------------------------------------------

IMAGE = {"image": ["batch", 32, 32, 3]}
TOKENS = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
SORTED_TOKENS = dict(sorted(TOKENS.items()))
STEPS = {"steps": ["batch", "sequence", 4]}
EXPORTS = {
    "cnn.keras": IMAGE,
    "cnn.h5": IMAGE,
    "cnn": IMAGE,
    "cnn.pb": IMAGE,
    "cnn.tflite": IMAGE,
    "sequential.keras": {"input": ["batch", 3]},
    "sequential": {"input": ["batch", 3]},
    "transformer.keras": TOKENS,
    "transformer.h5": TOKENS,
    "transformer": SORTED_TOKENS,
    "transformer.pb": TOKENS,
    "transformer.tflite": {"attention_mask": [1, 12], "input_ids": [1, 12]},
    "wide_transformer.keras": TOKENS,
    "lstm.keras": STEPS,
    "lstm": STEPS,
    "lstm.pb": STEPS,
    "gru.h5": STEPS,
    "gru": STEPS,
    "gru.pb": STEPS,
    "lstm.tflite": {"steps": [1, 6, 4]},
    "wide_recurrent.keras": {"steps": ["batch", "sequence", 32]},
    "flow": {"x": ["batch", 4]},
    "version1": {"features": ["batch", 4]},
    "keras2": {"image": ["batch", 8, 8, 3]},
    "keras2.keras": {"image": ["batch", 8, 8, 3]},
    "keras2.h5": {"image": ["batch", 8, 8, 3]},
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", EXPORTS)
def test_the_export_computes_what_tensorflow_does(name: str, models: Path, shared: None, tmp_path: Path) -> None:
    with opened(models / name, tmp_path) as source:
        graph = onnx.load(source.model_path).graph
        assert ports(graph.input) == EXPORTS[name]
        assert all(dim for dims in ports(graph.output).values() for dim in dims), "a dim of an output has no name"
        assert worst_error(source) < 1e-5


@pytest.mark.tensorflow
def test_a_quantised_tflite_keeps_its_types_and_bits(models: Path, shared: None, tmp_path: Path) -> None:
    with opened(models / "cnn_int8.tflite", tmp_path) as source:
        operators = Counter(node.op_type for node in onnx.load(source.model_path).graph.node)
        assert operators["QuantizeLinear"] > 5
        assert operators["DequantizeLinear"] > 5
        assert worst_error(source) == 0


@pytest.mark.tensorflow
@pytest.mark.parametrize(("name", "renamed"), [("cnn.h5", "cnn.keras"), ("cnn.keras", "cnn.bin"), ("keras2.h5", "old")])
def test_keras_files_may_have_any_name(name: str, renamed: str, models: Path, shared: None, tmp_path: Path) -> None:
    shutil.copy(models / name, tmp_path / renamed)
    with opened(tmp_path / renamed, tmp_path) as source:
        assert worst_error(source) < 1e-5


@pytest.mark.tensorflow
def test_outputs_have_their_layers_names(models: Path, shared: None, tmp_path: Path) -> None:
    with opened(models / "cnn.keras", tmp_path) as source:
        graph = onnx.load(source.model_path).graph
    assert ports(graph.output) == {"classes": ["batch", 5], "box": ["batch", 2]}
    origins = {p.value for node in graph.node for p in node.metadata_props if p.key == "infconv.module"}
    assert any(origin.endswith(("stem_1", "stem")) for origin in origins)


@pytest.mark.tensorflow
def test_inputs_that_need_not_agree_have_dims_of_their_own(models: Path, shared: None, tmp_path: Path) -> None:
    with opened(models / "flow", tmp_path, options={"signature": "outer"}) as source:
        graph = onnx.load(source.model_path).graph
        assert ports(graph.input) == {"a": ["a_batch", 4], "b": ["b_batch", 4]}
        assert ports(graph.output) == {"product": ["a_batch", "b_batch"]}
        assert worst_error(source) < 1e-5


@pytest.mark.tensorflow
def test_dims_have_the_user_s_names_and_sizes(models: Path, shared: None, tmp_path: Path) -> None:
    told = ("input_ids:n,16:int32", "attention_mask:n,16")
    with opened(models / "transformer.keras", tmp_path, *told) as source:
        graph = onnx.load(source.model_path).graph
        assert ports(graph.input) == {"input_ids": ["n", 16], "attention_mask": ["n", 16]}
        assert ports(graph.output)["hidden"][0] == "n"
        assert worst_error(source) < 1e-5


@pytest.mark.tensorflow
def test_a_graph_s_inputs_and_outputs_can_be_told(models: Path, shared: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Nothing says how many dimensions"):
        opened(models / "no_rank.pb", tmp_path)
    with opened(models / "no_rank.pb", tmp_path, "picture:batch,8,8,3") as source:
        assert ports(onnx.load(source.model_path).graph.output) == {"scores": ["batch", 2]}
        assert worst_error(source) < 1e-5
    with opened(models / "no_rank.pb", tmp_path, "features:batch,8,8,2", options={"outputs": "scores"}) as source:
        assert ports(onnx.load(source.model_path).graph.input) == {"features": ["batch", 8, 8, 2]}
        assert worst_error(source) < 1e-5


HANDLERS = """
def multiply(context, node, name, arguments):
    node.type = "Mul"
    return node


handlers = {"MulNoNan": multiply}
"""


@pytest.mark.tensorflow
def test_an_unknown_operator_is_named_and_can_be_mapped(models: Path, shared: None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"MulNoNan .*odd_layer.* has no conversion") as caught:
        opened(models / "unsupported", tmp_path)
    assert "handlers=MODULE" in caught.value.hint
    for name in ("unsupported", "unsupported_branch"):
        with opened(models / name, tmp_path, options={"handlers": "my_operators"}) as source:
            assert worst_error(source) < 1e-5


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["lambda2.h5", "lambda3.h5", "lambda3.keras"])
def test_python_code_in_a_file_runs_only_when_trusted(name: str, models: Path, shared: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Lambda") as caught:
        opened(models / name, tmp_path)
    assert "--trust-pickle" in caught.value.hint
    with opened(models / name, tmp_path, trust_pickle=True) as source:
        assert worst_error(source) == 0


REFUSALS: dict[str, tuple[str, list[str], dict[str, Any], type[InfconvError], str]] = {
    "no such signature": ("flow", [], {"options": {"signature": "no"}}, UsageError, "no signature 'no'"),
    "no such tags": ("flow", [], {"options": {"tags": ["gpu"]}}, UsageError, "no graph tagged gpu"),
    "an option of another format": ("cnn.keras", [], {"options": {"signature": "x"}}, UsageError, "goes with a saved"),
    "an unknown option": ("flow", [], {"options": {"sig": "x"}}, UsageError, "no option 'sig'"),
    "no such input": ("cnn.keras", ["x:1"], {}, UsageError, "no input 'x'"),
    "no such tensor": ("cnn.pb", ["x:1"], {}, UsageError, "no tensor 'x'"),
    "another rank": ("cnn.keras", ["image:batch,3"], {}, UsageError, "4 dimensions"),
    "another size": ("cnn", ["image:batch,32,32,4"], {}, UsageError, "fixed to 3"),
    "another type": ("cnn", ["image:batch,32,32,3:int32"], {}, UsageError, "float32 in the model"),
    "no such output": ("cnn.pb", [], {"options": {"outputs": ["no"]}}, UsageError, "no tensor 'no'"),
    "weights alone": ("weights_alone.h5", [], {}, SourceError, "only weights"),
    "a checkpoint": ("checkpoint", [], {}, SourceError, "only weights"),
    "loops taken apart": ("gru_lowered.pb", [], {}, UnsupportedError, "gru"),
    "damage": ("damaged.h5", [], {}, SourceError, "cannot be read"),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_why(case: str, models: Path, shared: None, tmp_path: Path) -> None:
    (models / "damaged.h5").write_bytes((models / "cnn.h5").read_bytes()[:4000])
    name, inputs, more, kind, words = REFUSALS[case]
    with pytest.raises(kind, match=words):
        opened(models / name, tmp_path, *inputs, **more)
    assert not list(tmp_path.glob("model.onnx*"))


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "name", ["cnn.keras", "cnn.h5", "cnn.pb", "cnn.tflite", "cnn_int8.tflite", "transformer.tflite"]
)
def test_a_file_that_was_cut_short_is_one_sentence(name: str, models: Path, shared: None, tmp_path: Path) -> None:
    content = (models / name).read_bytes()
    for share in (0.1, 0.5, 0.95):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(SourceError, match=r"damaged or cut short|cannot be read as a") as caught:
            opened(tmp_path / name, tmp_path)
        assert "\n" not in caught.value.message
        assert caught.value.hint


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "part", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_saved_model_that_was_cut_short_is_one_sentence(
    part: str, models: Path, shared: None, tmp_path: Path
) -> None:
    shutil.copytree(models / "cnn", tmp_path / "cnn")
    content = (tmp_path / "cnn" / part).read_bytes()
    for size in (len(content) // 2, 0):
        (tmp_path / "cnn" / part).write_bytes(content[:size])
        with pytest.raises(SourceError, match="cannot be read as a|is empty|holds no graph") as caught:
            opened(tmp_path / "cnn", tmp_path)
        assert "\n" not in caught.value.message


@pytest.mark.tensorflow
def test_a_model_too_large_for_a_graph_is_refused_before_it_is_loaded(
    models: Path, worker: WorkerProcess, shared: None, tmp_path: Path
) -> None:
    assert (models / "huge.h5").stat().st_size > 2**31
    before = worker.peak_memory
    with pytest.raises(
        UnsupportedError, match=r"2\.5 GB of weights; the conversion from TensorFlow ends at 2 GB"
    ) as caught:
        opened(models / "huge.h5", tmp_path)
    assert "in float16" in caught.value.hint
    assert worker.peak_memory < before + 500e6
    # large files of a small model, such as those with an optimizer's variables, are none of that
    shutil.copytree(models / "cnn", tmp_path / "cnn")
    with (tmp_path / "cnn" / "variables" / "variables.data-00000-of-00001").open("r+b") as stream:
        stream.truncate(2_500_000_000)
    with opened(tmp_path / "cnn", tmp_path) as source:
        assert worst_error(source) < 1e-5


# --- targets -------------------------------------------------------------------------------------------------------


def converted(path: Path, folder: Path, targets: list[str], *precisions: str, **source: Any) -> Result:
    entries = [
        {"target": target, "precision": precision, "output": str(folder)}
        for target in targets
        for precision in precisions
    ]
    result = execute(PipelineSpec.model_validate({"source": {"path": str(path), **source}, "targets": entries}))
    assert result.error is None
    assert len(result.artifacts) == len(entries)
    assert all(artifact.verification.passed for artifact in result.artifacts)
    return result


MATRIX = [
    *(f"{name}{suffix}" for name in ("cnn", "transformer", "lstm", "gru") for suffix in SUFFIXES),
    *("flow", "flow.pb", "version1"),
]


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", MATRIX)
def test_every_model_from_every_format_to_every_target(name: str, models: Path, shared: None, tmp_path: Path) -> None:
    result = converted(models / name, tmp_path, ["onnx", "openvino", "tensorrt"], "fp32", "fp16")
    for artifact in result.artifacts:
        assert artifact.verification.reference.startswith("tensorflow ")
        errors = [output.sqnr_db for sample in artifact.verification.samples for output in sample.outputs]
        least = {"fp32": 80, "fp16": 40}[artifact.precision]  # decibel: 1e-4 and 1e-2 of the output
        assert all(error is None or error > least for error in errors), (artifact.target, artifact.precision)


@pytest.mark.tensorflow
def test_a_quantised_model_reaches_what_has_asymmetric_int8(models: Path, shared: None, tmp_path: Path) -> None:
    converted(models / "cnn_int8.tflite", tmp_path, ["onnx", "openvino"], "fp32")


@pytest.mark.tensorflow
def test_a_gelu_of_keras_has_the_usual_form(models: Path, shared: None, tmp_path: Path) -> None:
    """Keras writes x/2 erfc(-x/√2), for which runtimes have no fused operator; x/2 (1 + erf(x/√2)) they know."""
    with opened(models / "sequential.keras", tmp_path) as source:
        operators = Counter(node.op_type for node in onnx.load(source.model_path).graph.node)
    assert operators["Erf"] == 1
    assert operators["Neg"] == operators["Sub"] - 1 == 0, "the other Sub is the normalization's"


@pytest.mark.tensorflow
def test_the_command_line_finds_the_environment_and_repeats_itself(models: Path, infconv: Any, tmp_path: Path) -> None:
    digests: set[str] = set()
    for name in ("a.onnx", "b.onnx"):
        outcome = infconv("convert", models / "cnn.keras", "-o", name, "--env", "tensorflow", "--json")
        assert outcome.code == 0, outcome.out + outcome.err
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    manifest = json.loads((tmp_path / "b.onnx.infconv.json").read_text())
    assert "tensorflow" in json.dumps(manifest)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_applications_keep_one_transpose(name: str, python: str, shared: None, tmp_path: Path) -> None:
    make_models(python, tmp_path, {"MobileNetV2": "mobilenet", "EfficientNetB0": "efficientnet"}[name])
    result = converted(
        tmp_path / f"{name}.keras", tmp_path, ["onnx", "openvino"], "fp32", inputs={"input": "1,64,64,3"}
    )
    operators = Counter(node.op_type for node in onnx.load(result.artifacts[0].path).graph.node)
    assert operators["Transpose"] == 1
    assert operators["BatchNormalization"] == 0


@pytest.mark.tensorflow
@pytest.mark.slow
def test_resnet50_stays_within_its_memory(python: str, tmp_path: Path) -> None:
    make_models(python, tmp_path, "resnet")
    with opened(tmp_path / "ResNet50.keras", tmp_path, python=python) as source:
        graph = onnx.load(source.model_path, load_external_data=False).graph
        assert ports(graph.input) == {"input": ["batch", 224, 224, 3]}
        image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("f4")
        [expected] = source.run({"input": image}).values()
        [found] = ort.InferenceSession(source.model_path).run(None, {"input": image})
        assert np.abs(expected - found).max() / np.abs(expected).max() < 1e-4
        assert source.peak_memory < PEAK_BYTES
