"""BiasGelu and FastGelu of ONNX Runtime."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_bias_gelu import FuseBiasGelu
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseBiasGelu()
HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> '


def model(body: str) -> str:
    constants = "<float[3] b = {1.0, 2.0, 3.0}, float[2, 1] rows = {1.0, 2.0}>"
    return f"{HEADER}m (float[N, 2, 3] X) => (float[N, 2, 3] Y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    ("gelu", "fused"),
    [
        ("Gelu (a)", "BiasGelu"),
        ("com.microsoft.Gelu (a)", "BiasGelu"),
        ('Gelu <approximate = "tanh"> (a)', "FastGelu"),
        ("com.microsoft.FastGelu (a)", "FastGelu"),
    ],
)
def test_the_bias_joins(gelu: str, fused: str) -> None:
    check_rewrite(FUSE, model(f"a = Add (b, X) Y = {gelu}"), model(f"Y = com.microsoft.{fused} (X, b)"), 1)


def test_a_bias_along_another_axis_stays() -> None:
    reason = "'rows' is not known to be one number for each feature of 'X'"
    check_refusal(FUSE, model("a = Add (X, rows) Y = Gelu (a)"), reason)


def test_a_residual_stays() -> None:
    text = "m (float[N] X, float[N] Z) => (float[N] Y) { a = Add (X, Z) Y = Gelu (a) }"
    check_refusal(FUSE, HEADER + text, "'Z' is not a constant")
