"""FusedMatMul of ONNX Runtime."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_matmul_scale import FuseMatmulScale
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseMatmulScale()
HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> '


def model(body: str, inputs: str = "float[N, 2, 3] X, float[N, 3, 2] Z") -> str:
    constants = "<float c = {0.5}, float two = {2.0}, float[2] several = {1.0, 2.0}>"
    return f"{HEADER}m ({inputs}) => (float[N, 2, 2] Y) {constants} {{ {body} }}"


@pytest.mark.parametrize("scale", ["Mul (m, c)", "Mul (c, m)", "Div (m, two)"])
def test_a_factor_joins(scale: str) -> None:
    before = model(f"m = MatMul (X, Z) Y = {scale}")
    check_rewrite(FUSE, before, model("Y = com.microsoft.FusedMatMul <alpha = 0.5> (X, Z)"), 1)


def test_transposes_of_the_last_two_axes_join() -> None:
    inputs = "float[N, 3, 2] X, float[N, 2, 3] Z"
    check_rewrite(
        FUSE,
        model(
            "x = Transpose <perm = [0, 2, 1]> (X) z = Transpose <perm = [0, 2, 1]> (Z)"
            " m = MatMul (x, z) Y = Mul (m, c)",
            inputs,
        ),
        model("Y = com.microsoft.FusedMatMul <alpha = 0.5, transA = 1, transB = 1> (X, Z)", inputs),
        3,
    )


def test_another_transpose_stays() -> None:
    text = model("x = Transpose <perm = [1, 0, 2]> (X) Y = MatMul (x, Z)", "float[2, N, 3] X, float[N, 3, 2] Z")
    check_refusal(FUSE, text, "perm=(1, 0, 2) is not known to swap the last two axes only")


def test_several_factors_stay() -> None:
    check_refusal(FUSE, model("m = MatMul (X, Z) Y = Mul (m, several)"), "'several' is not one number")
