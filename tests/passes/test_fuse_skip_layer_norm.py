"""SkipLayerNormalization of ONNX Runtime."""

from __future__ import annotations

from infconv.passes.fuse_skip_layer_norm import FuseSkipLayerNorm
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseSkipLayerNorm()
SHAPE = "float[N, 2, 3]"
CONSTANTS = "<float[3] s = {1.0, 2.0, 3.0}, float[3] t = {4.0, 5.0, 6.0}, float[3] b = {0.5, 0.25, 0.125}>"


def model(body: str, opset: int = 20, outputs: str = f"{SHAPE} Y", skip: str = SHAPE) -> str:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    return f"{header} m ({SHAPE} X, {skip} Z) => ({outputs}) {CONSTANTS} {{ {body} }}"


def test_the_sum_joins() -> None:
    check_rewrite(
        FUSE,
        model("a = Add (X, Z) Y = LayerNormalization <epsilon = 0.001> (a, s, t)"),
        model("Y = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (X, Z, s, t)"),
        1,
    )


def test_the_bias_of_the_layer_before_joins_too() -> None:
    check_rewrite(
        FUSE,
        model("c = Add (X, b) a = Add (c, Z) Y = LayerNormalization <epsilon = 0.001> (a, s, t)"),
        model("Y = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (X, Z, s, t, b)"),
        1,
    )


def test_the_sum_stays_available() -> None:
    both = f"{SHAPE} Y, {SHAPE} V"
    check_rewrite(
        FUSE,
        model("a = Add (X, Z) Y = LayerNormalization <epsilon = 0.001> (a, s) V = Relu (a)", outputs=both),
        model(
            "Y, m, i, a = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (X, Z, s) V = Relu (a)", outputs=both
        ),
        1,
    )


def test_rms_norm() -> None:
    check_rewrite(
        FUSE,
        model("a = Add (X, Z) Y = RMSNormalization <epsilon = 0.001> (a, s)", 23),
        model("Y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.001> (X, Z, s)", 23),
        1,
    )


def test_summands_that_broadcast_stay() -> None:
    text = model("a = Add (X, Z) Y = LayerNormalization (a, s)", skip="float[1, 2, 3]")
    check_refusal(FUSE, text, "'X' and 'Z' are not known to be of the same shape")


def test_a_normalization_over_two_axes_stays() -> None:
    text = model("a = Add (X, Z) Y = LayerNormalization <axis = 1> (a, s)")
    check_refusal(FUSE, text, "the normalization is over more than the last axis, from 1 on")


def test_images_stay() -> None:
    text = model("a = Add (X, Z) Y = LayerNormalization (a, s)").replace("[N, 2, 3]", "[N, 2, 2, 3]")
    check_refusal(FUSE, text, "is not known to be of rank 2 or 3")
