"""The opset is raised where the target gains from it."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import infconv
from infconv.passes import Context
from infconv.passes.fuse_gelu import FuseGelu
from infconv.passes.raise_opset import RaiseOpset
from tests.helpers import check_same_outputs, parse

HEAD = '<ir_version: 8, opset_import: ["" : %d]> m (float[n, 4] x) => (float[n, 4] y) '
GELU = "<float k = {1.4142135}, float one = {1}, float half = {0.5}> "
GELU += "{ a = Div (x, k) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half) }"
MISH = "{ s = Softplus (x) t = Tanh (s) y = Mul (x, t) }"
RUNTIME = Context(target="onnxruntime")


@pytest.mark.parametrize(("text", "opset"), [(GELU, 20), (MISH, 18)])
def test_the_opset_becomes_the_lowest_that_has_the_operator(text: str, opset: int) -> None:
    model = parse(HEAD % 15 + text)
    before = ir.to_proto(model)
    assert RaiseOpset().run(model, RUNTIME) == 1
    assert model.opset_imports[""] == opset
    assert RaiseOpset().run(model, RUNTIME) == 0
    if text is GELU:
        assert FuseGelu().run(model, RUNTIME) == 1
    check_same_outputs(before, ir.to_proto(model), None, "fp32")


@pytest.mark.parametrize(
    ("text", "step", "target"),
    [
        (GELU, RaiseOpset(), "onnx"),
        (GELU, RaiseOpset(to=19), "onnxruntime"),
        (GELU.replace("1.4142135", "1.5"), RaiseOpset(), "onnxruntime"),
        ("{ y = Relu (x) }", RaiseOpset(), "onnxruntime"),
    ],
)
def test_it_stays_where_nothing_is_gained(text: str, step: RaiseOpset, target: str) -> None:
    model = parse(HEAD % 15 + text)
    assert step.run(model, Context(target=target)) == 0
    assert model.opset_imports[""] == 15


@pytest.mark.parametrize(
    ("target", "asked", "opset", "first"),
    [
        ("onnx", None, 15, "Div"),
        ("onnxruntime", None, 20, "Gelu"),
        ("onnxruntime", 17, 17, "Div"),
        ("onnx", 22, 22, "Gelu"),
    ],
)
def test_the_users_opset_comes_first(target: str, asked: int | None, opset: int, first: str, tmp_path: Path) -> None:
    """Also for the fusions: a higher one is there before them."""
    onnx.save(ir.to_proto(parse(HEAD % 15 + GELU)), tmp_path / "source.onnx")
    infconv.convert(tmp_path / "source.onnx", output=tmp_path / "o.onnx", target=target, opset=asked)
    made = onnx.load(tmp_path / "o.onnx")
    assert made.opset_import[0].version == opset
    assert made.graph.node[0].op_type == first
