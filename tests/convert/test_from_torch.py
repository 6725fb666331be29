"""PyTorch sources of every kind: recognised, refused or exported, and compared with the module at other sizes."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from torch import nn

from infconv.convert import _worker_source
from infconv.convert._base import DimRange, SourceRequest, parse_input
from infconv.convert._worker_client import WorkerProcess
from infconv.convert._worker_source import WorkerSource
from infconv.convert.from_torch import FromTorch
from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError
from tests.convert.shared_worker import lend, started

MODELS = '''
import torch
from torch import nn

class Net(nn.Module):
    """Several outputs in a dictionary, an option with a default, a buffer, and its input among the outputs."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
    def forward(self, x, scale=2.0, mask=None):
        y = self.norm(self.conv(x)).relu() * scale
        return {"y": y, "pair": (x, y.mean((2, 3))), "nothing": None, "number": 3}

def net():
    torch.manual_seed(0)
    return Net()

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 8, batch_first=True, bidirectional=True)
    def forward(self, x):
        return self.rnn(x)[0]

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1

class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 4)
    def forward(self, x):
        return x + self.table.weight[: x.shape[1]]

class Pair(nn.Module):
    def forward(self, a, b):
        return a + b

class FixedBatch(nn.Module):
    def forward(self, x):
        return x + torch.ones(2, 1)

class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).bfloat16()
    def forward(self, x):
        return self.layer(x)

number = 3

def broken():
    raise OSError("no such checkpoint")
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the user's model code."""
    path = tmp_path_factory.mktemp("home")
    (path / "models.py").write_text(MODELS)
    return path


@pytest.fixture(scope="module")
def worker(home: Path) -> Iterator[WorkerProcess]:
    """One process for most of the tests."""
    with started("torch", None, home) as process:
        yield process


@pytest.fixture
def folder(home: Path, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the test's own, as the current one; its sources are opened in the shared worker."""
    lend(worker, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_folder(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same with the user's model code in it, and a worker process for each source."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(
    source: str, folder: Path, *inputs: str, dims: dict[str, DimRange] | None = None, **more: Any
) -> WorkerSource:
    """Recognise and open `source` with a workdir inside `folder`."""
    found = FromTorch.recognise(source)
    assert found is not None
    workdir = folder / "work"
    workdir.mkdir(exist_ok=True)
    request = SourceRequest(source, found, dict(map(parse_input, inputs)), dims or {}, **more)
    return FromTorch().open(request, workdir)


def onnx_inputs(source: WorkerSource) -> dict[str, list[int | str]]:
    """Return the ONNX inputs with their dims."""
    graph = onnx.load(source.model_path, load_external_data=False).graph
    return {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}


def assert_same(source: WorkerSource, inputs: Mapping[str, np.ndarray], limit: float = 1e-5) -> dict[str, np.ndarray]:
    """Compare the ONNX file in ONNX Runtime with the source's own outputs, and return the latter."""
    session = ort.InferenceSession(str(source.model_path), providers=["CPUExecutionProvider"])
    expected = source.run(inputs)
    names = [output.name for output in session.get_outputs()]
    assert names == list(expected)
    for name, got in zip(names, session.run(None, dict(inputs)), strict=True):
        np.testing.assert_allclose(got, expected[name], atol=limit, rtol=limit, err_msg=name)
    return expected


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()


# --- recognition and refusal: nothing is loaded ---------------------------------------------------------------------


def _program(path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=9)
    torch.export.save(torch.export.export(small(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "exported-program": _program,
    "torchscript": lambda path: torch.jit.save(torch.jit.script(small()), path),
    "pickled-module": lambda path: torch.save(small(), path),
    "weights": lambda path: torch.save(small().state_dict(), path),
}


@pytest.mark.parametrize("found", WRITERS)
def test_a_file_is_recognised_by_its_content_whatever_its_name(tmp_path: Path, found: str):
    path = tmp_path / "model.bin"
    with path.open("wb") as stream:
        WRITERS[found](stream)  # type: ignore[arg-type]
    assert FromTorch.recognise(str(path)) == found


@pytest.mark.parametrize(("value", "found"), [(small(), "pickled-module"), (small().state_dict(), "weights")])
def test_the_legacy_format_is_recognised(tmp_path: Path, value: object, found: str):
    path = tmp_path / "legacy.pt"
    torch.save(value, path, _use_new_zipfile_serialization=False)
    assert FromTorch.recognise(str(path)) == found


def test_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "bert"}')
    np.savez(tmp_path / "arrays.npz", x=np.zeros(2))
    (tmp_path / "text.onnx").write_bytes(b"\x08\x08\x12\x04spox")
    assert FromTorch.recognise(str(tmp_path / "w.safetensors")) == "weights"
    assert FromTorch.recognise(str(tmp_path / "hf")) == "huggingface"
    assert FromTorch.recognise("package.module:build_model") == "factory"
    for other in ("arrays.npz", "text.onnx", str(tmp_path), "missing.pt", "https://host/model.pt"):
        assert FromTorch.recognise(other) is None


def test_a_pickled_module_is_refused_with_the_safe_roads(folder: Path):
    torch.save(small(), folder / "whole.pt")
    with pytest.raises(UsageError, match=r"runs code.*torch\.nn\.modules") as caught:
        opened("whole.pt", folder, "x:batch,4")
    for road in ("torch.export.save", "torch.jit.save", "--weights", "--trust-pickle"):
        assert road in caught.value.hint


def test_weights_alone_are_no_model(folder: Path):
    torch.save({"state_dict": small().state_dict(), "epoch": 3}, folder / "w.pth")
    with pytest.raises(SourceError, match="only weights") as caught:
        opened("w.pth", folder)
    assert "--weights w.pth" in caught.value.hint


@pytest.mark.parametrize("found", ["exported-program", "torchscript", "pickled-module"])
def test_a_file_cut_short_says_so(folder: Path, found: str):
    path = folder / ("cut.pt2" if found == "exported-program" else "cut.pt")
    WRITERS[found](path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match="damaged or cut short"):
        opened(path.name, folder, trust_pickle=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"abc", "not a PyTorch file")],
)
def test_a_file_that_is_something_else(folder: Path, content: bytes, words: str):
    (folder / "model.pt").write_bytes(content)
    with pytest.raises(SourceError, match=words):
        opened("model.pt", folder)


def test_a_folder_without_weights(folder: Path):
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(SourceError, match="no weights"):
        opened("hf", folder)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "hf" / "model-1.safetensors").touch()
    with pytest.raises(SourceError, match=r"lacks 1 of its 2 weight files: model-2\.safetensors"):
        opened("hf", folder)


class _Runs:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def _with_target(name: str, content: bytes) -> bytes:
    return (
        content.replace(b"torch.ops.aten.relu.default", b"torch.serialization.os.system")
        if ".json" in name
        else content
    )


def _with_expression(name: str, content: bytes) -> bytes:
    evil = b"__import__('os').getcwd()"
    return content.replace(b"Symbol('s31', positive=True, integer=True)", evil) if "models/" in name else content


def _with_pickle(name: str, content: bytes) -> bytes:
    if name.endswith("model_weights_config.json"):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return pickle.dumps(_Runs()) if name.endswith("weights/weight_0") else content


@pytest.mark.parametrize("change", [_with_target, _with_expression, _with_pickle])
def test_a_pt2_that_would_run_code_is_refused(folder: Path, change: Callable[[str, bytes], bytes]):
    _program(folder / "good.pt2")
    with zipfile.ZipFile(folder / "good.pt2") as good, zipfile.ZipFile(folder / "evil.pt2", "w") as evil:
        parts = {name: change(name, good.read(name)) for name in good.namelist()}
        assert any(parts[name] != good.read(name) for name in parts)
        for name, content in parts.items():
            evil.writestr(name, content)
    with pytest.raises(UsageError, match="run.? code when loaded"):
        opened("evil.pt2", folder)


# --- what the user may get wrong: answered before any export --------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "inputs", "error", "words"),
    [
        ("models:net", [], UsageError, r"forward\(x, scale=\.\.\., mask=\.\.\.\)(.|\n)*--input x:batch,3,224,224"),
        ("models:net", ["y:batch,3,8,8"], UsageError, "no input 'y'(.|\n)*x, scale, mask"),
        ("models:net", ["x:batch,3,8,8:float3"], UsageError, "Did you mean 'float32'"),
        ("models:net", ["x:batch,4"], UsageError, r"does not run on x\[2, 4\]"),
        ("models:Pair", ["a:batch,4"], UsageError, "also needs the input 'b'"),
        ("models:nett", ["x:batch,4"], UsageError, "Did you mean 'net'"),
        ("modelz:net", ["x:batch,4"], UsageError, "no Python module 'modelz'"),
        ("models:number", ["x:batch,4"], UsageError, "not a callable"),
        ("models:broken", ["x:batch,4"], SourceError, "OSError: no such checkpoint"),
        ("models:Pair", ["a:n,4", "b:m,4"], UsageError, "'m' and 'n' must be equal"),
    ],
)
def test_a_wrong_request(folder: Path, source: str, inputs: list[str], error: type[InfconvError], words: str):
    with pytest.raises(error, match=words):
        opened(source, folder, *inputs)
    assert not list((folder / "work").iterdir())


def test_weights_that_do_not_fit(folder: Path):
    torch.save(small().state_dict(), folder / "w.pt")
    with pytest.raises(SourceError, match=r"does not fit the model: 7 missing .*; 2 not the model's"):
        opened("models:net", folder, "x:batch,3,8,8", weights="w.pt")


# --- exports --------------------------------------------------------------------------------------------------------


def test_a_factory_with_weights(own_folder: Path):
    folder = own_folder
    state = {f"module.{k}": v + 1 for k, v in _user_models(folder).net().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, folder / "w.pth")
    with opened("models:net", folder, "x:batch,3,h,8", dims={"batch": DimRange(1, 2, 16)}, weights="w.pth") as source:
        assert onnx_inputs(source) == {"x": ["batch", 3, "h", 8]}
        assert [each["road"] for each in source.attempts] == ["dynamo"]
        outputs = assert_same(source, {"x": noise(5, 3, 10, 8)})
        assert list(outputs) == ["y", "pair_0", "pair_1"]
        np.testing.assert_array_equal(outputs["pair_0"], noise(5, 3, 10, 8))
        model = source.model_path.read_bytes()
        assert b"infconv.source" in model
        assert str(folder).encode() not in model
        with pytest.raises(UsageError, match=r"'x' has shape \[5, 4\]"):
            source.run({"x": noise(5, 4)})
        assert source.peak_memory < 1 << 30
    left = {path.name for path in (folder / "work").iterdir()}
    assert left == {"model.onnx", "model.onnx.data"}
    assert not list(folder.glob("__pycache__"))


def _user_models(folder: Path) -> Any:
    namespace: dict[str, Any] = {"__name__": "models"}
    exec(compile(MODELS, folder / "models.py", "exec"), namespace)
    return type("models", (), {name: staticmethod(value) for name, value in namespace.items() if callable(value)})


def test_two_runs_give_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch, home: Path):
    def export() -> list[bytes]:
        with opened("models:net", folder, "x:batch,3,8,8") as source:
            return [path.read_bytes() for path in sorted(source.model_path.parent.glob("model*"))]

    in_a_used_process = export()
    monkeypatch.setattr(_worker_source, "WorkerProcess", WorkerProcess)
    monkeypatch.chdir(home)
    assert export() == in_a_used_process


def test_an_exported_program_brings_its_inputs_and_takes_new_names(folder: Path):
    _program(folder / "m.pt2")
    with pytest.raises(UsageError, match=r"fixed to 4 in the \.pt2"):
        opened("m.pt2", folder, "input:n,5")
    with pytest.raises(UsageError, match=r"exported for n = 1\.\.9"):
        opened("m.pt2", folder, "input:n,4", dims={"n": DimRange(1, None, 99)})
    with opened("m.pt2", folder, "input:n,4") as source:
        assert onnx_inputs(source) == {"input": ["n", 4]}
        assert source.dims == {"n": DimRange(1, None, 9)}
        assert_same(source, {"input": noise(7, 4)})


def test_torchscript_and_a_trusted_pickle(folder: Path):
    torch.jit.save(torch.jit.script(small()), folder / "s.pt")
    torch.save(small(), folder / "p.pt")
    for name in ("s.pt", "p.pt"):
        with opened(name, folder, "input:batch,4", trust_pickle=True) as source:
            assert onnx_inputs(source) == {"input": ["batch", 4]}
            assert_same(source, {"input": noise(5, 4)})


def test_a_recurrent_net_keeps_its_operator_and_its_dynamic_length(folder: Path):
    with opened("models:Lstm", folder, "x:batch,seq,4") as source:
        operators = [node.op_type for node in onnx.load(source.model_path).graph.node]
        assert operators.count("LSTM") == 1
        assert_same(source, {"x": noise(3, 5, 4)})


def test_a_branch_on_data_becomes_an_if(folder: Path):
    with opened("models:Branch", folder, "x:batch,4") as source:
        assert [(each["road"], each["ok"]) for each in source.attempts] == [
            ("dynamo", False),
            ("dynamo-strict", False),
            ("torchscript-script", True),
        ]
        for values in (np.ones((3, 4), np.float32), -np.ones((3, 4), np.float32)):
            assert_same(source, {"x": values})


def test_a_bound_of_the_model_narrows_an_open_range_and_refuses_a_wider_one(folder: Path):
    with opened("models:Positions", folder, "x:batch,seq,4") as source:
        assert source.dims["seq"] == DimRange(1, None, 16)
        assert any("seq = 1..16" in note for note in source.notes)
    with pytest.raises(UsageError, match=r"takes seq = 1\.\.16.*asks for 1\.\.64") as caught:
        opened("models:Positions", folder, "x:batch,seq,4", dims={"seq": DimRange(1, 8, 64)})
    assert "--dim seq=1..16" in caught.value.hint


def test_a_dimension_that_the_model_fixes_is_never_silently_static(folder: Path):
    with pytest.raises(UsageError, match="'batch' cannot be dynamic: the model's code fixes it to 2"):
        opened("models:FixedBatch", folder, "x:batch,4")


def test_an_operator_without_onnx_form_names_every_road(folder: Path):
    with pytest.raises(UnsupportedError) as caught:
        opened("models:Svd", folder, "x:batch,4,4")
    for road in ("dynamo:", "dynamo-strict:", "torchscript:", "torchscript-script:", "linalg_svd"):
        assert road in caught.value.message


def test_bfloat16_travels_as_float32(folder: Path):
    with opened("models:Half", folder, "x:batch,4") as source:
        output = source.run({"x": noise(3, 4)})["output"]
        assert output.dtype == np.float32


# --- Hugging Face ---------------------------------------------------------------------------------------------------

TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IMAGE = {"image_size": 16, "patch_size": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "BertModel": ("BertConfig", TEXT),
    "LlamaForCausalLM": ("LlamaConfig", {**TEXT, "num_key_value_heads": 1}),
    "T5EncoderModel": (
        "T5Config",
        {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    ),
    "ViTModel": ("ViTConfig", {**TEXT, **IMAGE}),
    "SwinModel": ("SwinConfig", {**IMAGE, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2}),
    "ResNetModel": ("ResNetConfig", {"embedding_size": 4, "hidden_sizes": [4], "depths": [1]}),
}
FIRST_OUTPUT = {"LlamaForCausalLM": "logits"}


def save_family(name: str, path: Path, **options: Any) -> None:
    import transformers

    torch.manual_seed(0)
    config, values = FAMILIES[name]
    values = {key: value for key, value in values.items() if key != "vocab_size" or name != "ViTModel"}
    getattr(transformers, name)(getattr(transformers, config)(**values)).save_pretrained(path, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hugging_face_folder(folder: Path, name: str):
    save_family(name, folder / "hf")
    with opened("hf", folder) as source:
        assert [each["road"] for each in source.attempts] == ["dynamo"]
        inputs = onnx_inputs(source)
        if "input_ids" in inputs:
            assert inputs["input_ids"] == inputs["attention_mask"] == ["batch", "seq"]
            feed = {n: np.ones((3, 5), np.int64) for n in inputs}
            feed["input_ids"] = np.random.default_rng(0).integers(0, 50, (3, 5))
        else:
            assert inputs["pixel_values"][0] == "batch"
            feed = {"pixel_values": noise(3, *map(int, inputs["pixel_values"][1:]))}
        outputs = assert_same(source, feed)
        assert next(iter(outputs)) == FIRST_OUTPUT.get(name, "last_hidden_state")


def test_sharded_weights_and_a_wrong_input_name(folder: Path):
    save_family("BertModel", folder / "hf", max_shard_size="2KB")
    assert len(list((folder / "hf").glob("*.safetensors"))) > 1
    with pytest.raises(UsageError, match="no input 'ids'(.|\n)*attention_mask, input_ids, token_type_ids"):
        opened("hf", folder, "ids:batch,seq:int64")
