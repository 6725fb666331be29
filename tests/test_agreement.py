"""Outputs compared by what they decide: the highest scores, the set of detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infconv import agreement
from infconv.agreement import compare_decisions, parse_view
from infconv.compare import DEEP, TOLERANCES
from infconv.errors import UsageError

FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]
SCORES = np.array([[9.0, 5.0, 1.0, 0.0], [0.0, 1.0, 5.0, 9.0]], np.float32)


def decide(reference: dict, actual: dict, view: str, tolerance=FP32):
    return compare_decisions(reference, actual, tolerance, parse_view(view))


def test_the_order_below_the_first_k_does_not_matter() -> None:
    other = SCORES + np.array([[0, 0, -0.5, 0.9], [0, 0, 0, 0]], np.float32)
    (error,) = decide({"y": SCORES}, {"y": other}, "topk:2")
    assert error.ok
    assert error.agreement == 1.0
    assert error.max_abs == pytest.approx(0.9)


def test_another_winner_is_a_difference() -> None:
    other = SCORES.copy()
    other[1] = [9, 1, 5, 0]
    (error,) = decide({"y": SCORES}, {"y": other}, "topk:1")
    assert not error.ok
    assert "1 of 2 top 1 rows agree" in error.reason
    assert error.agreement == 0.5


def test_ties_within_the_tolerance_are_forgiven() -> None:
    near = np.array([[1.0, 1.0 + 1e-6, 0.0]], np.float32)
    flipped = np.array([[1.0 + 1e-6, 1.0, 0.0]], np.float32)
    assert decide({"y": near}, {"y": flipped}, "topk:1")[0].ok


def test_nan_never_wins() -> None:
    assert not decide({"y": SCORES}, {"y": np.full_like(SCORES, np.nan)}, "topk:1")[0].ok


def test_without_scores_it_says_so() -> None:
    with pytest.raises(UsageError, match="more than 5 values"):
        decide({"y": SCORES}, {"y": SCORES}, "topk:5")
    with pytest.raises(UsageError, match="no output has boxes"):
        decide({"y": SCORES[:, :3]}, {"y": SCORES[:, :3]}, "detections")
    with pytest.raises(UsageError, match="topk:K"):
        parse_view("top:1")


BOXES = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 6, 6]]], np.float32)
FOUND = {"boxes": BOXES, "scores": np.array([[0.9, 0.8, 0.01]], np.float32), "labels": np.array([[1, 2, 3]])}


def reordered(order: list[int], **changed: np.ndarray) -> dict:
    return {name: value[:, order] for name, value in {**FOUND, **changed}.items()}


def test_detections_are_a_set() -> None:
    assert decide(FOUND, reordered([2, 1, 0]), "detections")[0].ok


def test_the_number_of_detections_may_differ_below_the_threshold_only() -> None:
    assert decide(FOUND, reordered([1, 0]), "detections")[0].ok
    (error,) = decide(FOUND, reordered([1]), "detections")
    assert not error.ok
    assert "1 of 2 detections agree" in error.reason


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.array([[1, 1, 3]])},
        {"scores": np.array([[0.9, 0.6, 0.01]], np.float32)},
        {"boxes": BOXES + np.array([0, 0, 4, 4], np.float32)},
    ],
    ids=["label", "score", "box"],
)
def test_a_detection_is_its_box_its_score_and_its_label(changed: dict) -> None:
    assert not decide(FOUND, reordered([0, 1, 2], **changed), "detections")[0].ok


def test_one_table_of_detections_with_another_length() -> None:
    table = np.concatenate([BOXES[0], FOUND["scores"][0][:, None], FOUND["labels"][0][:, None]], axis=1)
    assert decide({"d": table.astype("f4")}, {"d": table[[1, 0]].astype("f4")}, "detections")[0].ok


def test_the_documented_limits_are_those_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "verification.md").read_text()
    words = " ".join(page.split())
    assert f"at least {agreement._IOU:g} and a score within the tolerance plus {agreement._MARGIN:g}" in words
    assert f"Scores below {agreement._THRESHOLD:g} " in words
    assert f"up to {DEEP} compute operators" in words
