"""Slices side by side."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from infconv.passes.merge_slices import MergeSlices
from tests.helpers import apply, check_rewrite, parse

MERGE = MergeSlices()
CONSTANTS = """<int64[1] zero = {0}, int64[1] four = {4}, int64[1] six = {6}, int64[1] far = {9223372036854775807},
    int64[1] axis = {-1}, int64[1] back = {-2}>"""


def test_slices_that_are_all_parts() -> None:
    head = "m (float[n, 6] x) => (float[n, 4] y, float[n, 2] z)"
    check_rewrite(
        MERGE,
        f"{head} {CONSTANTS} {{ b = Slice (x, four, far, axis) z = Neg (b) y = Slice (x, zero, back, axis) }}",
        f"{head} <int64[2] sizes = {{4, 2}}> {{ y, b = Split <axis = 1> (x, sizes) z = Neg (b) }}",
        2,
    )


def test_before_opset_13_sizes_are_an_attribute() -> None:
    header = '<ir_version: 7, opset_import: ["" : 9]>'
    check_rewrite(
        MERGE,
        header
        + """m (float[3] x) => (float[1] y, float[2] z)
        { y = Slice <starts = [0], ends = [1]> (x) z = Slice <starts = [1], ends = [9]> (x) }""",
        header + "m (float[3] x) => (float[1] y, float[2] z) { y, z = Split <split = [1, 2], axis = 0> (x) }",
        2,
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Slice (x, zero, four, axis)",
        "y = Slice (x, zero, four, axis) z = Slice (x, zero, far, axis)",
        "y = Slice (x, zero, far, axis, back) z = Slice (x, zero, four, axis)",
        "y = Slice (x, four, six, axis) z = Slice (x, four, far, axis)",
    ],
)
def test_slices_with_gaps_overlaps_or_steps_stay(nodes: str) -> None:
    outputs = ", ".join(f"float[n, {name}] {name}" for name in "yz" if f"{name} =" in nodes)
    model = parse(f"m (float[n, 6] x) => ({outputs}) {CONSTANTS} {{ {nodes} }}")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert apply(MERGE, model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_size_that_is_not_known() -> None:
    model = parse(
        f"""m (float[2, n] x) => (float[2, a] y, float[2, b] z) {CONSTANTS}
        {{ y = Slice (x, zero, four, axis) z = Slice (x, four, far, axis) }}"""
    )
    assert apply(MERGE, model) == 0


def test_slices_of_a_slice_that_was_replaced() -> None:
    """The halves of a half: the second group's source is a value that the first replacement took away."""
    head = "m (float[2, 8] x) => (float[2, 2] a, float[2, 2] b, float[2, 4] c)"
    slices = """<int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] eight = {8},
        int64[1] axis = {1}>
        { h = Slice(x, zero, four, axis)
          c = Slice(x, four, eight, axis)
          a = Slice(h, zero, two, axis)
          b = Slice(h, two, four, axis) }"""
    splits = """<int64[2] fours = {4, 4}, int64[2] twos = {2, 2}>
        { h, c = Split<axis = 1>(x, fours)
          a, b = Split<axis = 1>(h, twos) }"""
    check_rewrite(MERGE, f"{head} {slices}", f"{head} {splits}", 4)
