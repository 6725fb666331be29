"""Compare outputs, in float64, and say by how much they differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """An element passes when |actual - reference| <= atol + rtol * |reference| + scaled * max|reference|.

    `scaled` allows for rounding in sums: an element near zero that is the sum of large terms keeps their error.
    """

    rtol: float
    atol: float
    scaled: float
    mismatch: float = 0.0
    """Share of elements of an integer or boolean output that may differ (an argmax of near ties)."""
    min_sqnr: float | None = None
    """When given, decides alone for float outputs: the least signal-to-quantization-noise ratio in dB."""

    def at_depth(self, depth: int) -> Tolerance:
        """Return this tolerance for a model of `depth` compute operators in a row.

        Roundings add up about as a random walk: from DEEP operators on, every term grows with the square root.
        """
        factor = math.sqrt(max(1.0, depth / DEEP))
        return dataclasses.replace(self, rtol=self.rtol * factor, atol=self.atol * factor, scaled=self.scaled * factor)

    def override(self, rtol: float | None, atol: float | None, min_sqnr: float | None) -> Tolerance:
        """Return this tolerance with the values that the user gave; a given one replaces the scaled term too."""
        if rtol is None and atol is None and min_sqnr is None:
            return self
        return dataclasses.replace(
            self,
            rtol=self.rtol if rtol is None else rtol,
            atol=self.atol if atol is None else atol,
            scaled=self.scaled if rtol is None and atol is None else 0.0,
            min_sqnr=self.min_sqnr if min_sqnr is None else min_sqnr,
        )


DEEP = 100
"""Compute operators (MatMul, Conv, …) in a row up to which the tolerances hold as they are."""

TOLERANCES: dict[str, Tolerance] = {
    # Reordered float32 sums: a few ulp a layer, some tens of layers.
    "fp32": Tolerance(rtol=1e-4, atol=1e-6, scaled=1e-4),
    # float16 has 11 bits: 5e-4 a rounding; errors add up over depth about as its square root.
    "fp16": Tolerance(rtol=1e-2, atol=1e-4, scaled=1e-2, mismatch=0.02),
    # bfloat16 has 8 bits: 4e-3 a rounding.
    "bf16": Tolerance(rtol=5e-2, atol=1e-3, scaled=5e-2, mismatch=0.05),
    # Quantised models are judged by their noise as a whole: single elements move by whole steps.
    "int8": Tolerance(rtol=0.0, atol=0.0, scaled=0.0, mismatch=0.1, min_sqnr=15.0),
    "int4": Tolerance(rtol=0.0, atol=0.0, scaled=0.0, mismatch=0.2, min_sqnr=10.0),
}


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How one output differs from its reference. Figures are None where they have no meaning (strings, shapes)."""

    name: str
    ok: bool
    reason: str = ""
    """Why it is not ok; empty otherwise."""
    max_abs: float | None = None
    max_rel: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    """10 log10(sum r^2 / sum (a - r)^2); None when the outputs are equal."""
    mismatched: int = 0
    size: int = 0
    first: tuple[int, ...] | None = None
    """Index of the first element beyond tolerance."""
    not_finite: int = 0
    """Elements that are NaN or infinite on one side only, or differ in which of these they are."""
    agreement: float | None = None
    """Share of rows (top-k) or detections that agree, where outputs are compared by what they decide."""


def compare_outputs(reference: Mapping[str, Any], actual: Mapping[str, Any], tolerance: Tolerance) -> list[OutputError]:
    """Compare by name, in the reference's order. A missing or additional output is an error of its own."""
    errors = [
        compare_values(name, value, actual[name], tolerance)
        if name in actual
        else OutputError(name, False, "the output is missing")
        for name, value in reference.items()
    ]
    errors += [OutputError(name, False, "the source has no such output") for name in actual if name not in reference]
    return errors


def compare_values(name: str, reference: Any, actual: Any, tolerance: Tolerance) -> OutputError:
    """Compare two values: tensors, or sequences and maps of them (the worst element is returned)."""
    pairs = list(_leaves(name, reference, actual))
    if not pairs:
        return OutputError(name, True)
    errors = [p if isinstance(p, OutputError) else _compare_tensors(*p, tolerance) for p in pairs]
    worst = min(errors, key=lambda e: (e.ok, -(e.max_abs or 0.0)))
    return dataclasses.replace(worst, name=name)


def _leaves(name: str, reference: Any, actual: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray] | OutputError]:
    if reference is None or actual is None:
        if reference is not actual:
            yield OutputError(name, False, "one of the two is an empty optional")
    elif isinstance(reference, list | tuple):
        items = cast(Sequence[Any], reference)
        others = cast(Sequence[Any], actual) if isinstance(actual, list | tuple) else None
        if others is None or len(others) != len(items):
            yield OutputError(name, False, "the sequences differ in length")
        else:
            for i, (r, a) in enumerate(zip(items, others, strict=True)):
                yield from _leaves(f"{name}[{i}]", r, a)
    elif isinstance(reference, Mapping):
        mapping = cast(Mapping[Any, Any], reference)
        other = cast(Mapping[Any, Any], actual) if isinstance(actual, Mapping) else {}
        if set(mapping) != set(other):
            yield OutputError(name, False, "the maps differ in their keys")
        else:
            for key in mapping:
                yield from _leaves(f"{name}[{key}]", mapping[key], other[key])
    else:
        yield name, np.asarray(reference), np.asarray(actual)


def _compare_tensors(name: str, reference: np.ndarray, actual: np.ndarray, tolerance: Tolerance) -> OutputError:
    if reference.shape != actual.shape:
        return OutputError(name, False, f"its shape is {list(actual.shape)}, the source's {list(reference.shape)}")
    if reference.size == 0:
        return OutputError(name, True)
    if reference.dtype.kind in "OUST" or actual.dtype.kind in "OUST":
        return _compare_exactly(name, reference.astype(str), actual.astype(str), tolerance)
    if reference.dtype.kind in "iub":
        return _compare_exactly(name, reference, actual, tolerance)
    if reference.dtype.kind == "c":
        reference, actual = _as_real(reference), _as_real(actual)
    return _compare_floats(name, reference.astype(np.float64), actual.astype(np.float64), tolerance)


def _as_real(values: np.ndarray) -> np.ndarray:
    return np.stack([np.real(values), np.imag(values)], axis=-1)


def _compare_exactly(name: str, reference: np.ndarray, actual: np.ndarray, tolerance: Tolerance) -> OutputError:
    """Integers, booleans and strings are equal or not; a share may differ when the precision is reduced."""
    wrong = reference != actual
    count = int(np.count_nonzero(wrong))
    max_abs = None
    if count and reference.dtype.kind in "iu":
        max_abs = float(np.max(np.abs(reference.astype(np.float64) - actual.astype(np.float64))))
    ok = count <= tolerance.mismatch * reference.size
    reason = "" if ok else f"{count} of {reference.size} values differ"
    return OutputError(
        name, ok, reason, max_abs=max_abs, mismatched=count, size=reference.size, first=_first_index(wrong)
    )


def _compare_floats(name: str, reference: np.ndarray, actual: np.ndarray, tolerance: Tolerance) -> OutputError:
    same = (reference == actual) | (np.isnan(reference) & np.isnan(actual))
    both_finite = np.isfinite(reference) & np.isfinite(actual)
    r, a = reference[both_finite], actual[both_finite]
    scale = float(np.max(np.abs(r))) if r.size else 0.0
    with np.errstate(invalid="ignore"):  # inf - inf, which is dealt with next
        difference = np.where(both_finite, np.abs(actual - reference), np.inf)
    difference[same] = 0.0
    allowed = tolerance.atol + tolerance.rtol * np.abs(np.where(both_finite, reference, 0.0)) + tolerance.scaled * scale
    wrong = difference > allowed
    finite_difference = difference[both_finite]
    noise, signal = float(np.sum(finite_difference**2)), float(np.sum(r**2))
    sqnr = _decibel(signal, noise)
    not_finite = int(np.count_nonzero(~both_finite & ~same))
    reason = _float_reason(wrong, difference, not_finite, sqnr, tolerance)
    return OutputError(
        name,
        not reason,
        reason,
        max_abs=float(np.max(difference)),
        max_rel=float(np.max(finite_difference / np.maximum(np.abs(r), 1e-12))) if r.size else 0.0,
        mean_abs=float(np.mean(finite_difference)) if r.size else 0.0,
        cosine=_cosine(r, a),
        sqnr_db=sqnr,
        mismatched=int(np.count_nonzero(wrong)),
        size=reference.size,
        first=_first_index(wrong),
        not_finite=not_finite,
    )


def _float_reason(
    wrong: np.ndarray, difference: np.ndarray, not_finite: int, sqnr: float | None, tolerance: Tolerance
) -> str:
    if not_finite:
        return f"{not_finite} of {wrong.size} values are NaN or infinite where the source's are not (or the reverse)"
    if tolerance.min_sqnr is not None:
        if sqnr is not None and sqnr < tolerance.min_sqnr:
            return f"its signal-to-noise ratio is {sqnr:.1f} dB, below {tolerance.min_sqnr:g} dB"
        return ""
    count = int(np.count_nonzero(wrong))
    if not count:
        return ""
    index = _first_index(wrong)
    return f"{count} of {wrong.size} values are off by up to {float(np.max(difference)):.3g} (first at {index})"


def _first_index(wrong: np.ndarray) -> tuple[int, ...] | None:
    if not wrong.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


def _decibel(signal: float, noise: float) -> float | None:
    if noise == 0.0:
        return None
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.dot(a.ravel(), b.ravel())) / norms if norms else None
