"""`--layout`: the artifact takes images as the user has them, verified against the source in its own layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import infconv

NCHW = """m (float[batch, 3, 8, 6] image, float[batch, 5] other) => (float[batch, 4, 8, 6] y, float[batch, 5] z)
    <float[4, 3, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1]> (image, w) z = Relu (other) }"""
NHWC = """m (float[batch, 8, 6, 3] image) => (float[batch, 8, 6, 4] y) <float[4, 3, 3, 3] w> {
    t = Transpose <perm = [0, 3, 1, 2]> (image)
    c = Conv <pads = [1, 1, 1, 1]> (t, w)
    y = Transpose <perm = [0, 2, 3, 1]> (c) }"""


def write(path: Path, text: str) -> str:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]>' + text.replace("<float[4, 3, 3, 3] w>", "")
    )
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype("f4")
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return str(path)


def run(path: str, **inputs: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], inputs)[0]


@pytest.mark.parametrize("verify", ["end", "each"])
def test_images_come_channels_last_and_the_rest_stays(tmp_path: Path, verify: str) -> None:
    source = write(tmp_path / "nchw.onnx", NCHW)
    result = infconv.convert(source, output=tmp_path / "nhwc.onnx", layout="nhwc", verify=verify)
    made = onnx.load(tmp_path / "nhwc.onnx").graph
    shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in made.input}
    assert shapes == {"image": ["batch", 8, 6, 3], "other": ["batch", 5]}
    assert result.artifacts[0].verification.passed
    image = np.random.default_rng(1).normal(size=(2, 3, 8, 6)).astype("f4")
    other = np.zeros((2, 5), "f4")
    wanted = run(source, image=image, other=other).transpose(0, 2, 3, 1)
    found = run(str(tmp_path / "nhwc.onnx"), image=image.transpose(0, 2, 3, 1), other=other)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_transposes_of_a_channels_last_model_go(tmp_path: Path) -> None:
    source = write(tmp_path / "nhwc.onnx", NHWC)
    infconv.convert(source, output=tmp_path / "nchw.onnx", layout="nchw")
    assert [node.op_type for node in onnx.load(tmp_path / "nchw.onnx").graph.node] == ["Conv"]


def test_dims_are_named_as_the_source_has_them(tmp_path: Path) -> None:
    source = write(tmp_path / "nchw.onnx", NCHW)
    infconv.convert(source, output=tmp_path / "a.onnx", layout="nhwc", input={"image": "n,3,8,6"}, dim={"n": 2})
    dims = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value or d.dim_param for d in dims][1:] == [8, 6, 3]


def test_an_image_that_tells_no_layout_is_noted(tmp_path: Path) -> None:
    text = "m (float[1, 3, 8, 6] x) => (float[1, 3, 8, 6] y) { y = Relu (x) }"
    onnx.save(onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text), tmp_path / "m.onnx")
    result = infconv.convert(tmp_path / "m.onnx", output=tmp_path / "o.onnx", layout="nhwc")
    assert any("keeps its layout" in note for note in result.artifacts[0].notes)
