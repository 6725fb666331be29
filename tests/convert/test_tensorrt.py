"""Engines are really built here: TensorRT-RTX needs no GPU for that."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from infconv.convert import _tensorrt, _tensorrt_process
from infconv.convert._tensorrt import BuildOptions, Built, Profile, Runtime
from infconv.convert._tensorrt_inspect import LayerInfo, read_engine_answer, read_plan
from infconv.errors import (
    DependencyError,
    InfconvError,
    ResourceError,
    SourceError,
    UnsupportedError,
    UsageError,
)

RTX = Runtime("rtx", "1.7.1")
CLASSIC = Runtime("classic", "11.4.0")
ADA = BuildOptions(compute_capabilities=("sm89",))

NET = """
    <ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 8] x) => (float[batch, 16] y) {
        [mm] a = MatMul(x, w)
        [act] y = Relu(a)
    }
"""
BATCH: Profile = {"x": ((1, 8), (4, 8), (16, 8))}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests mean the same on machines with a GPU."""
    monkeypatch.setattr(_tensorrt, "local_gpu", lambda: None)


def write(path: Path, text: str, weights: Mapping[str, np.ndarray[Any, Any]] | None = None) -> Path:
    """Write the model `text`, with `weights` as initializers, to `path`."""
    model = onnx.parser.parse_model(text)
    for name, value in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)
    return path


def net(tmp_path: Path) -> Path:
    return write(tmp_path / "net.onnx", NET, {"w": np.ones((8, 16), np.float32)})


def build(model: Path, profile: Profile, options: BuildOptions = ADA, values: Profile | None = None) -> Built:
    return _tensorrt.build(model, model.with_suffix(".engine"), profile, options, RTX, values=values)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Building and reading back


def test_the_engine_is_described_by_its_own_file(tmp_path: Path) -> None:
    built = build(net(tmp_path), BATCH)
    info = _tensorrt.inspect(built.path, RTX, built.network)
    assert info.evidence == "plan"
    assert info.targets == ("sm89",)
    assert info.matrix_precisions == {"float32": 1}
    assert info.weight_bytes["float32"] >= 8 * 16 * 4
    assert {node for layer in info.layers for node in layer.nodes} == {"mm", "act"}
    (x,), (y,) = info.inputs, info.outputs
    assert (x.name, x.dtype, x.shape, x.profile) == ("x", "float32", (-1, 8), ((1, 8), (4, 8), (16, 8)))
    assert (y.name, y.dtype, y.shape, y.profile) == ("y", "float32", (-1, 16), None)


def test_float16_in_the_graph_is_float16_in_the_engine(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        net (float[2, 64] x) => (float[2, 64] y) {
            [down] h = Cast<to=10>(x)
            [mm] a = MatMul(h, w)
            [up] y = Cast<to=1>(a)
        }
    """
    built = build(write(tmp_path / "net.onnx", text, {"w": np.ones((64, 64), np.float16)}), {})
    info = _tensorrt.inspect(built.path, RTX, built.network)
    assert info.matrix_precisions == built.network.matrix_precisions == {"float16": 1}
    assert info.weight_bytes["float16"] == 64 * 64 * 2
    assert [t.dtype for t in (*info.inputs, *info.outputs)] == ["float32", "float32"]


def test_quantized_convolution_with_a_float_bias_is_int8(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        net (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y)
        <float s = {0.1}, int8 z = {0}, float[3] ws = {0.1, 0.2, 0.1}, int8[3] wz = {0, 0, 0},
         int8[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 1, 1}> {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            wd = DequantizeLinear<axis=0>(w, ws, wz)
            [conv] y = Conv(xd, wd, b)
        }
    """
    built = build(write(tmp_path / "net.onnx", text), {})
    assert _tensorrt.inspect(built.path, RTX).matrix_precisions == {"int8": 1}


def test_two_builds_are_byte_identical(tmp_path: Path) -> None:
    model = net(tmp_path)
    first = digest(build(model, BATCH).path)
    assert digest(build(model, BATCH).path) == first
    other = dataclasses.replace(ADA, compute_capabilities=("sm120",))
    assert digest(build(model, BATCH, other).path) != first


def test_weights_in_external_data_are_found(tmp_path: Path) -> None:
    model = onnx.load(net(tmp_path))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="external.data", size_threshold=0)
    assert (tmp_path / "external.data").stat().st_size == 8 * 16 * 4
    assert digest(build(path, BATCH).path) == digest(build(net(tmp_path), BATCH).path)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ((), ("portable",)),
        (("portable",), ("portable",)),
        (("sm120", "8.9"), ("sm89", "sm120")),
    ],
)
def test_targets_are_in_the_engine(tmp_path: Path, asked: tuple[str, ...], got: tuple[str, ...]) -> None:
    built = build(net(tmp_path), BATCH, BuildOptions(compute_capabilities=asked))
    assert built.targets == got
    assert _tensorrt.inspect(built.path, RTX).targets == got


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_decided_by_the_option(tmp_path: Path, tf32: bool) -> None:
    built = build(net(tmp_path), BATCH, dataclasses.replace(ADA, tf32=tf32))
    assert _tensorrt.inspect(built.path, RTX).tf32 is tf32


def test_native_chatter_stays_off_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # C++ prints "operand ... payload type requires precision-lose casting" to stdout for this model.
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        net (float16[2, 3] x) => (float16[2, 3] y) <float zero = {0.0}> { y = Clip(x, zero) }
    """
    with caplog.at_level(logging.DEBUG, logger="infconv.tensorrt"):
        build(write(tmp_path / "net.onnx", text), {})
    assert "precision-lose casting" in caplog.text
    assert capfd.readouterr() == ("", "")


# What is refused, and how


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(float[4] x) => (float[n] y) { [odd] u = Unique(x) y = Relu(u) }", ["Unique 'odd'", "no such operator"]),
        ("(float[4] x) => (float[n] y) { u = Unique(x) y = Relu(u) }", ["Unique '-> u'"]),
        (
            "(float[4] x, float16[4] z) => (float[4] y) { [sum] y = Add(x, z) }",
            ["Add 'sum'", "must have same input types", "Float and Half"],
        ),
        (
            "(float[2, 6] x, int64[1] a) => (float[p, q] y) { [mean] y = ReduceMean(x, a) }",
            ["ReduceMean 'mean'", "build-time constant"],
        ),
        ("(int16[2] x) => (int16[2] y) { y = Identity(x) }", ["input 'x'", "no type int16"]),
    ],
)
def test_a_refused_node_is_named_with_its_reason(tmp_path: Path, body: str, words: list[str]) -> None:
    path = write(tmp_path / "net.onnx", f'<ir_version: 10, opset_import: ["": 20]> net {body}')
    with pytest.raises(UnsupportedError) as caught:
        build(path, {})
    assert [word for word in words if word not in caught.value.message] == []
    assert not path.with_suffix(".engine").exists()


def test_every_unknown_operator_is_listed_before_the_work(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        net (float[4] x) => (float[4] y, float[n] z) {
            [a] u = Unique(x)
            [b] f = Foo(x)
            [c] y = Neg(f)
            [d] z = Relu(u)
        }
    """
    refused = _tensorrt.unsupported(write(tmp_path / "net.onnx", text), RTX)
    assert [(refusal.node, refusal.op) for refusal in refused] == [("a", "Unique"), ("b", "Foo")]
    assert _tensorrt.unsupported(net(tmp_path), RTX) == []


def test_many_refusals_are_summarised(tmp_path: Path) -> None:
    nodes = " ".join(f"[n{i}] u{i} = Unique(x)" for i in range(5))
    text = f'<ir_version: 10, opset_import: ["": 20]> net (float[4] x) => (float[n] y) {{ {nodes} y = Relu(u0) }}'
    with pytest.raises(UnsupportedError, match=r"'n2'.* And 2 more \(Unique\)\."):
        build(write(tmp_path / "net.onnx", text), {})


def test_a_node_inside_a_function_is_found(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "local": 1]>
        net (float[4] x) => (float[n] y) { [call] y = local.f(x) }
        <opset_import: ["": 20], domain: "local"> f (a) => (b) { b = Unique(a) }
    """
    (refused,) = _tensorrt.unsupported(write(tmp_path / "net.onnx", text), RTX)
    assert (refused.node, refused.op) == ("Unique in call (f)", "Unique")


def test_what_only_the_builder_refuses_carries_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"operation 'mm' for Turing \(SM75\): FP32 GEMM is not supported"):
        build(net(tmp_path), BATCH, BuildOptions(compute_capabilities=("sm75",)))


def test_too_little_workspace_is_a_resource(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="within workspace limit"):
        build(net(tmp_path), BATCH, dataclasses.replace(ADA, workspace_bytes=1))


def test_a_crash_is_a_sentence(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 23]>
        net (float[1, 2, 4, 8] x) => (float[1, 2, 4, 8] y) { y = Attention(x, x, x) }
    """
    with pytest.raises(UnsupportedError, match="crashed on this model") as caught:
        build(write(tmp_path / "net.onnx", text), {})
    assert "Attention" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not an ONNX model"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="not a valid ONNX model"):
        build(path, {})


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        build(tmp_path / "none.onnx", {})


def test_time_runs_out(tmp_path: Path) -> None:
    model = net(tmp_path)
    with pytest.raises(ResourceError, match=r"longer than 0\.01 s"):
        build(model, BATCH, dataclasses.replace(ADA, timeout=0.01))
    assert not model.with_suffix(".engine").exists()


def test_an_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="could not be written"):
        _tensorrt.build(net(tmp_path), tmp_path / "missing" / "net.engine", BATCH, ADA, RTX)


# Profiles


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({}, "dynamic dimensions [-1, 8] and no profile"),
        ({"x": ((1, 8), (32, 8), (16, 8))}, "does not satisfy min <= opt <= max"),
        ({"x": ((1, 9), (4, 9), (16, 9))}, "changes dimension 1, which is fixed at 8"),
        ({"x": ((1,), (4,), (16,))}, "does not have 2 dimensions"),
        ({**BATCH, "mask": ((1,), (4,), (16,))}, "'mask', which is no input"),
    ],
)
def test_a_profile_that_does_not_fit(tmp_path: Path, profile: Profile, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(net(tmp_path), profile)
    assert words in caught.value.message


def test_an_input_that_is_a_shape_needs_a_range_of_values(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        net (float[2, 6] x, int64[2] shape) => (float[p, q] y) { y = Reshape(x, shape) }
    """
    model = write(tmp_path / "net.onnx", text)
    with pytest.raises(UsageError, match="values of input 'shape' decide shapes"):
        build(model, {})
    assert build(model, {}, values={"shape": ((1, 1), (3, 4), (12, 12))}).path.is_file()


# Options


@pytest.mark.parametrize(
    ("names", "installed", "error", "words"),
    [
        (("sm90",), RTX, UnsupportedError, "Use classic TensorRT on a machine with that GPU"),
        (("sm8",), RTX, UsageError, "Did you mean 'sm89'?"),
        (("current",), RTX, UsageError, "Name the target's instead"),
        (("portable", "sm89"), RTX, UsageError, "Give it alone"),
        (("sm89",), CLASSIC, UnsupportedError, "Build on the target"),
        ((), CLASSIC, UsageError, "needs an NVIDIA GPU"),
    ],
)
def test_compute_capabilities_that_cannot_be_had(
    names: tuple[str, ...], installed: Runtime, error: type[InfconvError], words: str
) -> None:
    with pytest.raises(error) as caught:
        _tensorrt.resolve_targets(names, installed)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"refit": True},
        {"version_compatible": True},
        {"hardware_compatibility": "ampere-plus"},
        {"timing_cache": Path("cache")},
        {"optimization_level": 5},
    ],
)
def test_an_option_that_the_library_lacks_is_not_ignored(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(option)).split("_")[0]):
        build(net(tmp_path), BATCH, dataclasses.replace(ADA, **option))


def test_weight_streaming_is_accepted(tmp_path: Path) -> None:
    plain = digest(build(net(tmp_path), BATCH).path)
    streaming = build(net(tmp_path), BATCH, dataclasses.replace(ADA, weight_streaming=True))
    assert digest(streaming.path) != plain


def test_classic_options_reach_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorRT-RTX has the same API and lets these calls pass, so it stands in for the classic library.
    monkeypatch.setattr(_tensorrt, "MODULES", {"classic": "tensorrt_rtx"})
    monkeypatch.setattr(_tensorrt, "local_gpu", lambda: "sm89")
    cache = tmp_path / "timing.cache"
    options = BuildOptions(optimization_level=1, hardware_compatibility="ampere-plus", timing_cache=cache)
    model = net(tmp_path)
    built = _tensorrt.build(model, model.with_suffix(".engine"), BATCH, options, CLASSIC)
    assert built.targets == ("current",)
    assert cache.is_file()
    unknown = dataclasses.replace(options, hardware_compatibility="ampere")
    with pytest.raises(UsageError, match="Did you mean 'ampere-plus'"):
        _tensorrt.build(model, built.path, BATCH, unknown, CLASSIC)


def test_which_tensorrt_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _tensorrt.runtime()
    assert found == _tensorrt.runtime("rtx")
    assert str(found).startswith("TensorRT-RTX 1.")
    with pytest.raises(UsageError, match="Did you mean 'rtx'"):
        _tensorrt.runtime("rtz")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(_tensorrt, "MODULES", {"rtx": "absent_rtx", "classic": "absent_classic"})
    with pytest.raises(DependencyError) as caught:
        _tensorrt.runtime()
    assert caught.value.hint == "Install it with: pip install 'infconv[tensorrt]'"


# Engines that this machine cannot read


def test_without_a_kernel_program_the_network_is_the_evidence(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> net (float[n, m] x) => (int64[2] y) { y = Shape(x) }'
    built = build(write(tmp_path / "net.onnx", text), {"x": ((1, 1), (2, 2), (3, 3))})
    assert _tensorrt.inspect(built.path, RTX, built.network).evidence == "network"
    with pytest.raises(UnsupportedError, match="cannot be inspected on this machine"):
        _tensorrt.inspect(built.path, RTX)


def test_a_file_that_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a TensorRT engine"):
        _tensorrt.inspect(net(tmp_path), RTX)


def test_a_kernel_program_is_read_by_its_text(tmp_path: Path) -> None:
    program = (
        b"header {\n  tf32=0\n  hfc_hccc=0\n  accelerators={sm86 sm89 }\n}\n"
        b"descriptors {\n"
        b'  tensor={ alignment=128 const_payload_size=8 dims={ 4 } name="w" offset=0 rank0=0 region=c type=half }\n'
        b'  tensor={ alignment=128 const_payload_size=4 dims={ 1 } name="alpha" rank0=1 region=c type=float }\n'
        b'  tensor={ alignment=32 dims={ 4 } mem_prop=0 name="x" offset=0 rank0=0 region="" type=half }\n'
        b"}\nmain {\n"
        b'  copy={ name="c" output={"y" } input={"x" } stream=0 }\n'
        b'  fully_connected={ name="mm" output={"y" } input={"x" "w" "alpha" } layers="[ONNX Layer: mm]" }\n'
        b"}\n"
    )
    path = tmp_path / "net.engine"
    path.write_bytes(b"vtrt" + bytes(60) + b"NLYM\xa1\xda\x1e\x00" + struct.pack("<Q", len(program)) + program)
    info = read_plan(path)
    assert info is not None
    assert (info.targets, info.tf32, info.weight_bytes) == (("sm86", "sm89"), False, {"float16": 8, "float32": 4})
    assert info.layers == (LayerInfo("mm", "fully_connected", ("float16", "float16"), (), ("mm",), matrix=True),)


def test_on_its_gpu_an_engine_is_described_by_the_inspector() -> None:
    # The JSON of EngineInspector at verbosity DETAILED, shortened, and an engine's own interface.
    tensor = {"name": "x", "dtype": "HALF", "shape": [-1, 8], "profile": [[1, 8], [4, 8], [16, 8]], "is_shape": False}
    layer = {
        "Name": "mm",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
        "Metadata": "[ONNX Layer: mm]",
    }
    info = read_engine_answer({"inputs": [tensor], "outputs": [], "inspector": {"Layers": [layer, "name only"]}}, None)
    assert info.evidence == "engine"
    assert info.matrix_precisions == {"float16": 1}
    assert info.inputs[0].profile == ((1, 8), (4, 8), (16, 8))


def test_precision_is_the_narrowest_type_that_is_no_index() -> None:
    def kernel(reads: tuple[str, ...], writes: tuple[str, ...]) -> str:
        return LayerInfo("k", "function", reads, writes, (), matrix=False).precision

    assert kernel(("float16", "int4", "float16"), ("float16",)) == "int4"
    assert kernel(("int64", "bool"), ("float32",)) == "float32"
    assert kernel(("int64",), ("int64",)) == "int64"


def test_log_records_keep_their_level(caplog: pytest.LogCaptureFixture) -> None:
    output = '[1, "parser failed"]\n[4, "detail"]\nInternal Error: from C++\n[pass.cpp] odd\n'
    with caplog.at_level(logging.DEBUG, logger="infconv.tensorrt"):
        texts = _tensorrt_process.log_records(output)
    assert texts == ["parser failed", "detail", "Internal Error: from C++", "[pass.cpp] odd"]
    assert [record.levelno for record in caplog.records] == [logging.INFO, *[logging.DEBUG] * 3]
