"""QuickGelu of ONNX Runtime."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_quick_gelu import FuseQuickGelu
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseQuickGelu()
HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> '


def model(body: str) -> str:
    return f"{HEADER}m (float[N] X) => (float[N] Y) <float a = {{1.702}}> {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "alpha"),
    [
        ("m = Mul (a, X) s = Sigmoid (m) Y = Mul (X, s)", 1.702),
        ("s = Sigmoid (X) Y = Mul (s, X)", 1.0),
    ],
)
def test_x_times_sigmoid(body: str, alpha: float) -> None:
    check_rewrite(FUSE, model(body), model(f"Y = com.microsoft.QuickGelu <alpha = {alpha}> (X)"), 1)


def test_the_operator_set_is_imported() -> None:
    text = model("s = Sigmoid (X) Y = Mul (s, X)").replace(', "com.microsoft" : 1', "")
    made = check_rewrite(FUSE, text, model("Y = com.microsoft.QuickGelu <alpha = 1.0> (X)"), 1)
    assert made.opset_imports["com.microsoft"] == 1


def test_sigmoid_of_something_else_stays() -> None:
    check_refusal(FUSE, model("t = Tanh (X) s = Sigmoid (t) Y = Mul (X, s)"), "'t' comes from Tanh 't'")
