"""RMSNormalization taken apart."""

from __future__ import annotations

from infconv.passes.fuse_rms_norm import FuseRmsNorm
from infconv.passes.lower_rms_norm import LowerRmsNorm
from tests.helpers import apply, check_refusal, check_rewrite, parse

LOWER = LowerRmsNorm()
HEADER = '<ir_version: 11, opset_import: ["" : 23]> '
BEFORE = "m (float[N, 3] X) => (float[N, 3] Y) <float[3] s = {1.0, 2.0, 3.0}, float eps = {0.001}, int64[1] a = {-1}>"


def test_mean_square_quotient_and_scale() -> None:
    check_rewrite(
        LOWER,
        f"{HEADER}{BEFORE} {{ Y = RMSNormalization <epsilon = 0.001> (X, s) }}",
        f"{HEADER}{BEFORE} {{ q = Mul (X, X) v = ReduceMean <keepdims = 1> (q, a) ve = Add (v, eps) r = Sqrt (ve)"
        " n = Div (X, r) Y = Mul (n, s) }",
        1,
    )


def test_fuse_rms_norm_undoes_it() -> None:
    lowered = parse(f"{HEADER}{BEFORE} {{ Y = RMSNormalization <epsilon = 0.001> (X, s) }}")
    assert apply(LOWER, lowered) == 1
    assert apply(FuseRmsNorm(), lowered) == 2
    assert [node.op_type for node in lowered.graph] == ["RMSNormalization"]


def test_an_axis_of_an_unknown_rank_stays() -> None:
    text = f"{HEADER}m (float[N, 3] X, float[3] s, int64[2] t) => (float[N, 3] Y)"
    text += "{ a = Reshape (X, t) Y = RMSNormalization <axis = 1> (a, s) }"
    check_refusal(LOWER, text, "the rank of 'a' is not known", infer=False)
