"""Engines run on a stand-in for the GPU (fake_gpu/): its memory is not the host's, and it really computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import infconv
from infconv.bench import Settings, bench
from infconv.convert import _tensorrt
from infconv.convert._exporter import Exported
from infconv.convert._tensorrt_execute import run_engine
from infconv.convert.to_tensorrt import ToTensorRT
from infconv.errors import InfconvError, ResourceError, UnsupportedError, UsageError

FAKES = Path(__file__).parent / "fake_gpu"
ROOT = Path(__file__).parents[2]
NET = """
    <ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 3] x, int64[1] host_axis) => (float[batch, 3] y, int64[2, found] where, int64[2] host_size) {
        y = CumSum(x, axis)
        axis = Squeeze(host_axis)
        where = NonZero(y)
        host_size = Shape(y)
    }
"""
X = np.array([[1, 0, 2], [-1, 0, 5]], np.float32)
FEEDS = {"x": X, "host_axis": np.array([0])}


def model(text: str = NET) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(text)
    nodes = sorted(parsed.graph.node, key=lambda node: node.op_type != "Squeeze")
    del parsed.graph.node[:]
    parsed.graph.node.extend(nodes)
    return parsed


def engine_at(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(b"vtrt" + proto.SerializeToString())
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU."""
    monkeypatch.setattr(_tensorrt, "local_gpu", lambda: "sm89")
    monkeypatch.setenv("PYTHONPATH", str(FAKES))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensorrt, "local_gpu", lambda: None)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return engine_at(tmp_path / "net.engine", model())


@pytest.mark.usefixtures("gpu")
def test_an_engine_computes_outputs_of_every_kind(engine: Path) -> None:
    """Of sizes that only the run shows, empty ones, in host memory, and of another size at the next sample."""
    shorter = {"x": np.zeros((1, 3)), "host_axis": np.array([1])}  # float64, which is cast
    by, (first, second) = run_engine(engine, [FEEDS, shorter])
    assert by.endswith("on sm89")
    np.testing.assert_array_equal(first["y"], np.cumsum(X, axis=0))
    np.testing.assert_array_equal(first["where"], np.nonzero(np.cumsum(X, axis=0)))
    np.testing.assert_array_equal(first["host_size"], [2, 3])
    assert second["y"].dtype == np.float32
    assert second["where"].shape == (2, 0)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": X}, "input 'host_axis' is not given"),
        ({**FEEDS, "x": np.zeros((5, 3), np.float32)}, "takes 'x' from [1, 3] to [4, 3], not [5, 3]"),
        ({**FEEDS, "x": np.zeros(3, np.float32)}, "not [3]"),
        ({**FEEDS, "host_axis": np.array([0.5])}, "'host_axis' is int64, not float64"),
    ],
)
def test_inputs_that_the_engine_does_not_take(engine: Path, feeds: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_engine(engine, [feeds])
    assert words in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_what_can_go_wrong_on_the_gpu_is_told(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = '<ir_version: 10, opset_import: ["": 20]> net (int64[1] n) => (float[m] y) { y = ConstantOfShape(n) }'
    with pytest.raises(UnsupportedError, match="could not run the engine"):
        run_engine(engine_at(tmp_path / "large.engine", model(large)), [{"n": np.array([1 << 20])}])
    inputs = '<ir_version: 10, opset_import: ["": 20]> net (float[524288] x) => (float[524288] y) { y = Neg(x) }'
    with pytest.raises(ResourceError, match="too little memory free"):
        run_engine(engine_at(tmp_path / "inputs.engine", model(inputs)), [{"x": np.zeros(1 << 19, np.float32)}])
    (tmp_path / "broken.engine").write_bytes(b"vtrt and then nothing")
    with pytest.raises(UnsupportedError, match="magic tag does not match"):
        run_engine(tmp_path / "broken.engine", [FEEDS])
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(InfconvError) as caught:  # the real TensorRT, which has no GPU, or no such engine
        run_engine(engine, [FEEDS])
    assert caught.value.exit_code in {4, 8}


@pytest.mark.usefixtures("gpu")
def test_an_engine_is_described_where_its_gpu_is(engine: Path) -> None:
    info = _tensorrt.inspect(engine, _tensorrt.runtime("rtx"))
    assert info.evidence == "engine"
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in info.inputs] == [
        ("x", "float32", (-1, 3)),
        ("host_axis", "int64", (1,)),
    ]
    assert info.inputs[0].profile == ((1, 3), (2, 3), (4, 3))
    assert [tensor.name for tensor in info.outputs] == ["y", "where", "host_size"]


@pytest.mark.usefixtures("gpu")
def test_compare_runs_engines(engine: Path, tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "net.onnx")
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **FEEDS)
    assert infconv.compare(tmp_path / "net.onnx", engine, inputs=inputs).passed
    wrong = model()
    next(node for node in wrong.graph.node if node.op_type == "CumSum").attribute.add(name="reverse", i=1, type=2)
    found = infconv.compare(engine, engine_at(tmp_path / "wrong.engine", wrong), inputs=inputs)
    assert {output.name for output in found.samples[0].outputs if not output.ok} == {"y", "where"}
    with pytest.raises(UnsupportedError, match="Give --inputs"):
        infconv.compare(engine, engine)


@pytest.mark.usefixtures("gpu")
def test_an_engine_is_verified_by_running_it(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = engine.with_name("net.onnx")
    onnx.save(model(), source)
    exported = Exported([engine], {"renamed_outputs": {"y": "z"}, "tf32": True}, compiled_from=source)
    executed = ToTensorRT().execute(exported, [FEEDS])
    assert executed.artifact_itself
    assert executed.precision == "fp16"
    np.testing.assert_array_equal(executed.outputs[0]["z"], np.cumsum(X, axis=0))
    beyond = ToTensorRT().execute(exported, [{**FEEDS, "x": np.ones((9, 3), np.float32)}])
    assert not beyond.artifact_itself
    assert "takes 'x' from [1, 3] to [4, 3]" in beyond.note
    np.testing.assert_array_equal(beyond.outputs[0]["host_size"], [9, 3])
    monkeypatch.setattr(_tensorrt, "local_gpu", lambda: None)
    assert "that needs its GPU" in ToTensorRT().execute(exported, [FEEDS]).note


@pytest.mark.usefixtures("gpu")
def test_bench_measures_engines(engine: Path) -> None:
    with pytest.raises(UsageError, match="Give --inputs"):
        bench([str(engine)])
    script = f"""
import numpy as np
from infconv import bench
from infconv.convert import _tensorrt
from infconv.errors import UnsupportedError
_tensorrt.local_gpu = lambda: "sm89"
feeds = {{"x": np.ones((2, 3), np.float32), "host_axis": np.array([0])}}
runtime, call = bench._OPENERS[".engine"]({str(engine)!r}, feeds, None)
call()
print(runtime, call()["y"].tolist())
try:
    bench._OPENERS[".engine"]({str(engine)!r}, {{"x": feeds["x"]}}, None)
except UnsupportedError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "on sm89 [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]" in done.stdout
    assert "input 'host_axis' is not given" in done.stdout


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_an_engine_is_refused_with_the_way_out(engine: Path, tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "net.onnx")
    for act in (
        lambda: infconv.compare(tmp_path / "net.onnx", engine),
        lambda: infconv.compare(engine, tmp_path / "net.onnx"),
        lambda: bench([str(engine)], settings=Settings(runs=3)),
    ):
        with pytest.raises(UnsupportedError) as caught:
            act()
        assert "this machine has none" in caught.value.message
        assert "--option keep_onnx=true" in caught.value.hint
        assert caught.value.exit_code == 4
    onnx.save(model(), tmp_path / "net.engine.onnx")
    with pytest.raises(UnsupportedError, match="net.engine.onnx', or a machine with such a GPU"):
        infconv.compare(tmp_path / "net.onnx", engine)


@pytest.mark.usefixtures("no_gpu")
def test_the_onnx_that_an_engine_was_built_from_is_kept(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> net (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }'
    onnx.save(model(text), tmp_path / "net.onnx")
    result = infconv.convert(
        tmp_path / "net.onnx", target="trt", output=tmp_path / "net.engine", options={"keep_onnx": True}
    )
    assert [Path(file).name for file in result.artifacts[0].files] == ["net.engine", "net.engine.onnx"]
    assert infconv.compare(tmp_path / "net.onnx", tmp_path / "net.engine.onnx").passed


def test_an_engine_for_another_gpu_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensorrt, "local_gpu", lambda: "sm75")
    monkeypatch.setattr(_tensorrt, "runs_here", lambda _: False)
    with pytest.raises(UnsupportedError, match="this machine's is sm75"):
        run_engine(engine, [FEEDS])
