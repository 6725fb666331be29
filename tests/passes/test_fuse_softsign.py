"""Softsign from its parts."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_softsign import FuseSoftsign
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseSoftsign()


def model(body: str, kind: str = "float") -> str:
    return f"m ({kind}[N] X) => ({kind}[N] Y) <{kind} one = {{1}}, {kind} two = {{2}}> {{ {body} }}"


@pytest.mark.parametrize("total", ["Add (a, one)", "Add (one, a)"])
def test_x_over_1_plus_its_magnitude(total: str) -> None:
    check_rewrite(FUSE, model(f"a = Abs (X) b = {total} Y = Div (X, b)"), model("Y = Softsign (X)"), 1)


def test_another_number_than_1_stays() -> None:
    check_refusal(FUSE, model("a = Abs (X) b = Add (a, two) Y = Div (X, b)"), "'two' (2) is not 1")


@pytest.mark.parametrize(("kind", "name"), [("int64", "INT64"), ("double", "DOUBLE")])
def test_other_types_stay(kind: str, name: str) -> None:
    text = model("a = Abs (X) b = Add (a, one) Y = Div (X, b)", kind)
    check_refusal(FUSE, text, f"x is of type {name}")
