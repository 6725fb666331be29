"""FLOPs and peak activation memory, as `infconv inspect` tells them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from infconv.convert._base import DimRange
from infconv.footprint import footprint
from infconv.model import from_proto


def parse(text: str):
    return from_proto(onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text))


def test_flops_are_two_for_each_multiplication() -> None:
    model = parse("m (float[batch, 8] x, float[8, 4] w) => (float[batch, 4] y) { y = MatMul (x, w) }")
    cost = footprint(model, {"batch": DimRange(3, 3, 3)})
    assert cost.sizes == {"batch": 3}
    assert cost.flops == 2 * 3 * 8 * 4
    assert cost.shares == {"float32": 1}


def test_a_value_lives_until_its_last_use() -> None:
    # 4 kB each: at `b`, x is still needed by `c`, and a is dropped after `b`.
    text = "m (float[1024] x) => (float[1024] c) { a = Exp (x) b = Neg (a) c = Add (b, x) }"
    cost = footprint(parse(text), {})
    assert cost.peak_bytes == 3 * 4096
    assert footprint(parse(text.replace("c = Add (b, x)", "c = Exp (b)")), {}).peak_bytes == 2 * 4096


def test_derived_sizes_follow_the_inputs() -> None:
    text = """m (float[batch, 4, 4] x, float[4, 4] w) => (float[n, 4] y) <int64[2] s = {-1, 4}> {
        r = Reshape (x, s) y = MatMul (r, w) }"""
    assert footprint(parse(text), {"batch": DimRange(5, 5, 5)}).flops == 2 * 20 * 4 * 4


def test_branches_count_at_their_node() -> None:
    text = """m (float[256] x, bool c) => (float[256] y) { y = If (c) <
        then_branch = t () => (float[256] a) { p = Exp (x) q = Neg (p) a = Add (p, q) },
        else_branch = e () => (float[256] a) { a = Exp (x) } > }"""
    # x and c, y, and within the branch p, q and a
    assert footprint(parse(text), {}).peak_bytes == 5 * 1024 + 1


def test_what_is_not_known_is_told() -> None:
    cost = footprint(parse("m (float[4] x) => (int64[k, j] y) { y = NonZero (x) }"), {})
    assert cost.unknown == 1


def test_inspect_shows_them(mlp: Path, infconv) -> None:
    done = infconv("inspect", str(mlp), "--dim", "batch=2", "--json")
    cost = json.loads(done.out)["footprint"]
    assert cost["flops"] == 2 * 2 * (8 * 16 + 16 * 4)
    assert "FLOPs" in infconv("inspect", str(mlp)).out
    assert infconv("inspect", str(mlp), "--dim", "bacth=2").code == 2
