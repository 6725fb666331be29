"""Swish taken apart."""

from __future__ import annotations

import pytest

from infconv.passes.lower_swish import LowerSwish
from tests.helpers import check_rewrite

LOWER = LowerSwish()


@pytest.mark.parametrize("opset", [24, 25])
@pytest.mark.parametrize(
    ("swish", "after"),
    [
        ("Swish (X)", "s = Sigmoid (X) Y = Mul (X, s)"),
        ("Swish <alpha = 1.702> (X)", "m = Mul (X, a) s = Sigmoid (m) Y = Mul (X, s)"),
    ],
)
def test_x_times_sigmoid(opset: int, swish: str, after: str) -> None:
    model = f'<ir_version: 11, opset_import: ["" : {opset}]> m (float[N] X) => (float[N] Y) <float a = {{1.702}}>'
    # ONNX Runtime 1.32 cannot run Swish of opset 25: that is what the pass is for.
    check_rewrite(LOWER, f"{model} {{ Y = {swish} }}", f"{model} {{ {after} }}", 1, compare=opset == 24)
