"""Defects of other optimisers, as they were found on models of ../shared: used as steps they are caught and dropped."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx
import onnx.parser
import pytest

import infconv

WITH_DEFECTS = "0.1.98"
"""The OnnxSlim that has all of these. What another one does may be right, but must not be wrong."""


DEFECTS = {
    "takes Clip(x, -, max) and Clip(x, min, -) for the same": (
        """<ir_version: 7, opset_import: ["": 11]> m (float[4] x) => (float[4] y) <float c = {0.5}> {
            most = Clip (x, "", c)
            least = Clip (x, c, "")
            y = Sub (most, least)
        }""",
        "values are off by",
    ),
    "gives out a Dropout's data where its mask was asked for": (
        """<ir_version: 5, opset_import: ["": 10]> m (float[4] x) => (float[4] y, bool[4] z) {
            a, mask = Dropout <ratio: float = 0> (x)
            y = Identity (a)
            z = Identity (mask)
        }""",
        "output 'z'",
    ),
    "makes a double of a Constant's value_float": (
        """<ir_version: 8, opset_import: ["": 13]> m (float[4] x) => (float[4] y) {
            c = Constant <value_float: float = 1.5> ()
            y = Add (x, c)
        }""",
        "bound to different types",
    ),
    "makes initializers of Constants in IR version 3": (
        """<ir_version: 3, opset_import: ["": 8]> m (float[4] x) => (float[4] y) {
            c = Constant <value = float {2}> ()
            y = Mul (x, c)
        }""",
        "in initializer but not in graph input",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_onnxslim_is_caught(defect: str, tmp_path: Path) -> None:
    text, words = DEFECTS[defect]
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "m.onnx")
    result = infconv.convert(
        tmp_path / "m.onnx", steps=["onnxslim"], output=tmp_path / "o.onnx", verify="each", cache=False
    )
    (step,) = result.steps
    if version("onnxslim") == WITH_DEFECTS:
        assert step.status == "dropped"
        assert words in step.reason
    assert infconv.compare(tmp_path / "m.onnx", tmp_path / "o.onnx").passed
