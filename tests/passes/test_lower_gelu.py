"""GELU taken apart."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_gelu import FuseGelu
from infconv.passes.lower_gelu import LowerGelu
from tests.helpers import apply, check_refusal, check_rewrite, parse

LOWER = LowerGelu()
HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> '
CONSTANTS = """
<float half = {0.5}, float one = {1.0}, float r = {0.70710677}, float c = {0.03567741}, float k = {0.7978846},
 float a = {1.702}, float[3] b = {1.0, 2.0, 3.0}>
"""
EXACT = "d = Mul ({0}, r) e = Erf (d) h = Mul ({0}, half) f = Add (e, one) Y = Mul (h, f)"
TANH = "q = Mul ({0}, {0}) q1 = Mul (q, c) q2 = Add (q1, k) u = Mul ({0}, q2) h = Mul ({0}, half) t = Tanh (u)"
TANH += " f = Add (t, one) Y = Mul (h, f)"


def model(body: str) -> str:
    return f"{HEADER}m (float[N, 3] X) => (float[N, 3] Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    ("gelu", "after"),
    [
        ("Gelu (X)", EXACT.format("X")),
        ('Gelu <approximate = "tanh"> (X)', TANH.format("X")),
        ("com.microsoft.Gelu (X)", EXACT.format("X")),
        ("com.microsoft.FastGelu (X)", TANH.format("X")),
        ("com.microsoft.BiasGelu (X, b)", "s = Add (X, b) " + EXACT.format("s")),
        ("com.microsoft.FastGelu (X, b)", "s = Add (X, b) " + TANH.format("s")),
        ("com.microsoft.QuickGelu (X)", "m = Mul (X, a) s = Sigmoid (m) Y = Mul (X, s)"),
        ("com.microsoft.QuickGelu <alpha = 1.0> (X)", "s = Sigmoid (X) Y = Mul (X, s)"),
    ],
)
def test_each_kind(gelu: str, after: str) -> None:
    # ONNX Runtime's FastGelu is an approximation of its own
    check_rewrite(LOWER, model(f"Y = {gelu}"), model(after), 1)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_fuse_gelu_undoes_it(approximate: str) -> None:
    lowered = parse(f'm (float[N] X) => (float[N] Y) {{ Y = Gelu <approximate = "{approximate}"> (X) }}')
    assert apply(LOWER, lowered) == 1
    assert apply(FuseGelu(), lowered) == 1


def test_an_unknown_type_stays() -> None:
    text = "m (float[N] X) => (float[N] Y) { a = Relu (X) Y = Gelu (a) }"
    check_refusal(LOWER, text, "the type of 'a' is not known", infer=False)
