"""Mish taken apart."""

from __future__ import annotations

from infconv.passes.fuse_mish import FuseMish
from infconv.passes.lower_mish import LowerMish
from tests.helpers import apply, check_rewrite, parse

LOWER = LowerMish()
BEFORE = "m (float[N] X) => (float[N] Y) { Y = Mish (X) }"


def test_x_times_tanh_of_softplus() -> None:
    check_rewrite(LOWER, BEFORE, "m (float[N] X) => (float[N] Y) { s = Softplus (X) t = Tanh (s) Y = Mul (X, t) }", 1)


def test_fuse_mish_undoes_it() -> None:
    lowered = parse(BEFORE)
    assert apply(LOWER, lowered) == 1
    assert apply(FuseMish(), lowered) == 1
