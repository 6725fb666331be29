"""HardSwish taken apart."""

from __future__ import annotations

from infconv.passes.fuse_hard_swish import FuseHardSwish
from infconv.passes.lower_hard_swish import LowerHardSwish
from tests.helpers import apply, check_rewrite, parse

LOWER = LowerHardSwish()
BEFORE = "m (float[N] X) => (float[N] Y) { Y = HardSwish (X) }"


def test_x_times_hard_sigmoid() -> None:
    after = "m (float[N] X) => (float[N] Y) { h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (X) Y = Mul (X, h) }"
    check_rewrite(LOWER, BEFORE, after, 1)


def test_fuse_hard_swish_undoes_it() -> None:
    lowered = parse(BEFORE)
    assert apply(LOWER, lowered) == 1
    assert apply(FuseHardSwish(), lowered) == 1


def test_a_function_of_that_name_stays() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20, "own" : 1]> m (float[N] X) => (float[N] Y) { Y = own.HardSwish (X) }
    <domain: "own", opset_import: ["" : 20]> HardSwish (x) => (y) { y = Relu (x) }
    """
    model = parse(text)
    assert apply(LOWER, model) == 0
