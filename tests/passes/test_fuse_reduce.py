"""Reductions merged with what is around them."""

from __future__ import annotations

import numpy as np
import pytest

from infconv.passes.fuse_reduce import FuseReduce
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseReduce()
POSITIVE = {"X": np.random.default_rng(0).uniform(0.1, 2, (2, 3, 4)).astype(np.float32)}
CONSTANTS = "<int64[1] a = {1}, int64[1] last = {2}, float two = {2.0}, int64[2] flat = {0, 4}>"


def model(body: str, result: str = "[N, 1, 4]") -> str:
    return f"m (float[N, 3, 4] X) => (float{result} Y) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("q = Mul (X, X) Y = ReduceSum (q, a)", "Y = ReduceSumSquare <keepdims = 1> (X, a)"),
        ("q = Pow (X, two) Y = ReduceSum (q, a)", "Y = ReduceSumSquare <keepdims = 1> (X, a)"),
        ("q = Mul (X, X) s = ReduceSum (q, a) Y = Sqrt (s)", "Y = ReduceL2 <keepdims = 1> (X, a)"),
        ("s = ReduceSumSquare (X, a) Y = Sqrt (s)", "Y = ReduceL2 <keepdims = 1> (X, a)"),
        ("q = Abs (X) Y = ReduceSum (q, a)", "Y = ReduceL1 <keepdims = 1> (X, a)"),
        ("s = ReduceSum (X, a) Y = Log (s)", "Y = ReduceLogSum <keepdims = 1> (X, a)"),
        ("e = Exp (X) s = ReduceSum (e, a) Y = Log (s)", "Y = ReduceLogSumExp <keepdims = 1> (X, a)"),
        ("e = Exp (X) Y = ReduceLogSum (e, a)", "Y = ReduceLogSumExp <keepdims = 1> (X, a)"),
    ],
)
def test_what_is_reduced(before: str, after: str) -> None:
    check_rewrite(FUSE, model(before), model(after), 1, inputs=POSITIVE)


@pytest.mark.parametrize(
    ("body", "result", "keep"),
    [
        ("r = ReduceMax (X, a) Y = Squeeze (r, a)", "[N, 4]", 0),
        ("r = ReduceMean (X, a) Y = Reshape (r, flat)", "[N, 4]", 0),
        ("r = ReduceMean (X, a) Y = Flatten (r)", "[N, 4]", 0),
        ("r = ReduceSum <keepdims = 0> (X, a) Y = Unsqueeze (r, a)", "[N, 1, 4]", 1),
    ],
)
def test_the_reduced_axes_taken_away_or_brought_back(body: str, result: str, keep: int) -> None:
    operator = body.split()[2]
    after = f"Y = {operator} <keepdims = {keep}> (X, a)"
    check_rewrite(FUSE, model(body, result), model(after, result), 1)


def test_before_opset_13_axes_are_attributes() -> None:
    header = '<ir_version: 6, opset_import: ["" : 11]> m (float[N, 3] X) => (float[N, 1] Y)'
    check_rewrite(
        FUSE,
        f"{header} {{ q = Mul (X, X) Y = ReduceSum <axes = [1]> (q) }}",
        f"{header} {{ Y = ReduceSumSquare <axes = [1], keepdims = 1> (X) }}",
        1,
    )


def test_a_reshape_of_more_than_that_stays() -> None:
    text = "m (float[N, 3, 4] X) => (float[N, 2, 2] Y) <int64[1] a = {1}, int64[3] s = {0, 2, 2}>"
    text += "{ r = ReduceMax (X, a) Y = Reshape (r, s) }"
    check_refusal(FUSE, text, "the result has more than the axes [1] added or taken away")


def test_openvino_computes_some_reductions_of_opset_13_wrongly() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> m (float[N, 3] X) => (float[N, 1] Y) <int64[1] a = {1}>'
    text += "{ q = Abs (X) Y = ReduceSum (q, a) }"
    check_refusal(FUSE, text, "the rule needs opset 18, the model has 17")


def test_double_stays() -> None:
    text = "m (double[N, 3] X) => (double[N, 1] Y) <int64[1] a = {1}> { q = Mul (X, X) Y = ReduceSum (q, a) }"
    check_refusal(FUSE, text, "x is double")


def test_what_is_said_about_reductions_without_axes() -> None:
    """As tf2onnx writes it, in vain where there are axes."""
    check_rewrite(
        FUSE,
        model("q = Mul (X, X) Y = ReduceSum <noop_with_empty_axes = 1> (q, a)"),
        model("Y = ReduceSumSquare <keepdims = 1> (X, a)"),
        2,
    )


def test_the_mean_of_a_sequences_features_in_a_normalization() -> None:
    """tf2onnx writes it as pooling, under which no runtime looks for a normalization."""
    check_rewrite(
        FUSE,
        model("m = GlobalAveragePool (X) Y = Sub (X, m)", "[N, 3, 4]"),
        model("m = ReduceMean <keepdims = 1> (X, last) Y = Sub (X, m)", "[N, 3, 4]"),
        1,
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (model("Y = GlobalAveragePool (X)", "[N, 3, 1]"), "not those of a normalization"),
        (model("m = GlobalAveragePool (X) Y = Flatten (m)", "[N, 3]"), "not those of a normalization"),
        (
            "m (float[N, 3, 4, 5] X) => (float[N, 3, 4, 5] Y) { m = GlobalAveragePool (X) Y = Sub (X, m) }",
            "'X' is not known to be of rank 3",
        ),
    ],
)
def test_pooling_that_stays(text: str, reason: str) -> None:
    check_refusal(FUSE, text, reason)
