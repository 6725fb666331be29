"""Outputs are compared in float64; every kind of difference is told."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from infconv.compare import TOLERANCES, Tolerance, compare_outputs, compare_values

FP32 = TOLERANCES["fp32"]
X = np.linspace(-1, 1, 101, dtype=np.float32)


def test_equal_outputs_have_no_error() -> None:
    error = compare_values("y", X, X.copy(), FP32)
    assert error.ok
    assert error.max_abs == 0
    assert error.sqnr_db is None


def test_rounding_is_allowed_and_measured() -> None:
    error = compare_values("y", X, X * np.float32(1 + 1e-6), FP32)
    assert error.ok
    assert error.sqnr_db is not None
    assert 115 < error.sqnr_db < 125


def test_the_first_wrong_element_is_named() -> None:
    wrong = X.copy()
    wrong[7] += 0.01
    error = compare_values("y", X, wrong, FP32)
    assert not error.ok
    assert error.first == (7,)
    assert error.mismatched == 1
    assert "off by up to 0.01" in error.reason


@pytest.mark.parametrize(("reference", "actual"), [(1.0, np.nan), (np.nan, 1.0), (1.0, np.inf), (np.inf, -np.inf)])
def test_nan_and_infinity_are_never_close(reference: float, actual: float) -> None:
    error = compare_values("y", np.array([0.0, reference]), np.array([0.0, actual]), TOLERANCES["int8"])
    assert not error.ok


def test_the_same_nan_and_infinity_are_equal() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert compare_values("y", values, values.copy(), FP32).ok


def test_shapes_must_agree() -> None:
    assert "shape" in compare_values("y", X, X.reshape(1, -1), FP32).reason


def test_integers_are_compared_exactly() -> None:
    assert not compare_values("y", np.array([2**40]), np.array([2**40 + 1]), FP32).ok


def test_an_argmax_may_flip_in_low_precision() -> None:
    reference, actual = np.zeros(100, np.int64), np.zeros(100, np.int64)
    actual[0] = 3
    assert not compare_values("y", reference, actual, FP32).ok
    assert compare_values("y", reference, actual, TOLERANCES["fp16"]).ok


def test_a_noise_floor_replaces_the_tolerance() -> None:
    noisy = X + np.float32(0.01)
    assert compare_values("y", X, noisy, Tolerance(0, 0, 0, min_sqnr=30)).ok
    assert "below 40 dB" in compare_values("y", X, noisy, Tolerance(0, 0, 0, min_sqnr=40)).reason


def test_sequences_maps_strings_and_bfloat16() -> None:
    assert compare_values("y", [X, X], [X, X], FP32).ok
    assert "length" in compare_values("y", [X, X], [X], FP32).reason
    assert compare_values("y", [{1: 0.5}], [{1: 0.5}], FP32).ok
    assert "keys" in compare_values("y", [{1: 0.5}], [{2: 0.5}], FP32).reason
    assert not compare_values("y", np.array(["a", "b"]), np.array(["a", "c"]), FP32).ok
    assert compare_values("y", X.astype(ml_dtypes.bfloat16), X, TOLERANCES["bf16"]).ok


def test_missing_and_additional_outputs_are_errors() -> None:
    errors = compare_outputs({"a": X, "b": X}, {"a": X, "c": X}, FP32)
    assert [(e.name, e.ok) for e in errors] == [("a", True), ("b", False), ("c", False)]


def test_the_documented_table_is_the_one_in_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "verification.md").read_text()
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in page.splitlines()) if len(cells) == 8}
    for precision, tolerance in TOLERANCES.items():
        rtol, atol, scaled, mismatch, sqnr = (cell.strip() for cell in rows[precision][2:7])
        for text, value in ((rtol, tolerance.rtol), (atol, tolerance.atol), (scaled, tolerance.scaled)):
            assert (0.0 if text == "-" else float(text)) == value
        assert (0.0 if mismatch == "equal" else float(mismatch.split()[0]) / 100) == tolerance.mismatch
        assert (None if sqnr == "-" else float(sqnr.split()[2])) == tolerance.min_sqnr


def test_a_given_tolerance_replaces_the_scaled_term() -> None:
    strict = FP32.override(rtol=None, atol=1e-9, min_sqnr=None)
    assert strict.scaled == 0
    assert strict.rtol == FP32.rtol
