"""Compare outputs by what they decide: the classes that score highest, or the set of objects that are detected."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from infconv.compare import OutputError, Tolerance, compare_outputs, compare_values
from infconv.errors import UsageError

_IOU = 0.9
"""Two boxes are the same object when they overlap at least this much (intersection over union)."""
_THRESHOLD = 0.05
"""Detections with a lower score are no detections."""
_MARGIN = 0.01
"""A detection that only one side has is forgiven when its score is no further than this from the threshold."""


@dataclasses.dataclass(frozen=True)
class View:
    """How outputs are looked at: `topk:K`, or `detections[:THRESHOLD]`."""

    kind: str
    k: int = 1
    threshold: float = _THRESHOLD


def parse_view(text: str) -> View:
    """Parse `topk:5`, `detections`, `detections:0.3`. Raises UsageError."""
    match = re.fullmatch(r"topk:([1-9]\d*)|detections(?::(0?\.\d+))?", text.strip())
    if match is None:
        raise UsageError(f"--as '{text}' is not topk:K or detections[:SCORE].", "Example: --as topk:5")
    if match[1]:
        return View("topk", k=int(match[1]))
    return View("detections", threshold=float(match[2] or _THRESHOLD))


def compare_decisions(
    reference: Mapping[str, Any], actual: Mapping[str, Any], tolerance: Tolerance, view: View
) -> list[OutputError]:
    """Compare as `view` says; outputs that it does not apply to are compared by their values.

    A share of `tolerance.mismatch` of the rows, or of the detections, may differ. Raises UsageError when there are no
    scores, or no boxes, to look at.
    """
    if view.kind == "detections":
        return _compare_detections(reference, actual, tolerance, view)
    errors: list[OutputError] = []
    found = False
    for error in compare_outputs(reference, actual, tolerance):
        scores = reference.get(error.name)
        others = actual.get(error.name)
        if _is_scores(scores, view.k) and isinstance(others, np.ndarray) and others.shape == scores.shape:
            found = True
            errors.append(_top_k(error, scores, others, tolerance, view.k))
        else:
            errors.append(error)
    if not found:
        raise UsageError(f"--as topk:{view.k}: no float output has more than {view.k} values in its last dimension.")
    return errors


def _is_scores(value: Any, k: int) -> TypeGuard[np.ndarray]:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0 and value.shape[-1] > k


def _top_k(error: OutputError, reference: np.ndarray, actual: np.ndarray, tolerance: Tolerance, k: int) -> OutputError:
    """Judge rows along the last axis: of the `k` highest of `actual`, each must be among those of the reference.

    One that is not is forgiven where its value in the reference is within the tolerance of the k-th highest: a tie.
    """
    rows, others = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (reference, actual))
    kth = np.sort(rows, axis=-1)[:, -k]
    chosen = np.argsort(-others, axis=-1, kind="stable")[:, :k]
    scale = np.max(np.abs(rows), axis=-1)
    allowed = tolerance.atol + tolerance.rtol * np.abs(kth) + tolerance.scaled * scale
    agrees = (np.take_along_axis(rows, chosen, -1) >= (kth - allowed)[:, None]).all(axis=-1)
    agrees &= np.isfinite(others).all(axis=-1) | ~np.isfinite(rows).all(axis=-1)
    return _by_share(error, int(np.count_nonzero(agrees)), len(rows), tolerance, f"top {k} rows")


def _by_share(error: OutputError, agreed: int, count: int, tolerance: Tolerance, what: str) -> OutputError:
    share = agreed / count if count else 1.0
    ok = count - agreed <= tolerance.mismatch * count
    reason = "" if ok else f"{agreed} of {count} {what} agree"
    return dataclasses.replace(error, ok=ok, reason=reason, agreement=share)


# --- detections -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Found:
    """The detections of one image."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def _compare_detections(
    reference: Mapping[str, Any], actual: Mapping[str, Any], tolerance: Tolerance, view: View
) -> list[OutputError]:
    names = _roles(reference)
    missing = [name for name in names.values() if name not in actual]
    if missing:
        return compare_outputs(reference, actual, tolerance)
    images = _images(reference, names), _images(actual, names)
    boxes = names["boxes"]
    if len(images[0]) != len(images[1]):
        return [OutputError(boxes, False, f"{len(images[1])} images, the source has {len(images[0])}")]
    matched = total = 0
    for mine, theirs in zip(*images, strict=True):
        pairs, lone = _match(mine, theirs, tolerance, view.threshold)
        matched, total = matched + pairs, total + pairs + lone
    judged = _by_share(OutputError(boxes, True, size=total), matched, total, tolerance, "detections")
    rest = [name for name in reference if name not in names.values()]
    others = [
        compare_values(n, reference[n], actual[n], tolerance) for n in rest if n in actual and _is_plain(reference[n])
    ]
    return [judged, *others]


def _is_plain(value: Any) -> bool:
    """Whether an output is compared by its values beside the detections: counts of detections are not."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _roles(outputs: Mapping[str, Any]) -> dict[str, str]:
    """Return which outputs hold boxes, scores and labels; one with five or six columns holds all. Raises UsageError."""
    arrays = {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}
    for name, value in arrays.items():
        if value.dtype.kind == "f" and value.ndim >= 2 and value.shape[-1] in {5, 6}:
            return {"boxes": name}
    boxes = next((n for n, v in arrays.items() if v.dtype.kind == "f" and v.ndim >= 2 and v.shape[-1] == 4), None)
    if boxes is None:
        raise UsageError(
            f"--as detections: no output has boxes; there are {', '.join(outputs)}.",
            "Boxes have 4 columns (x1, y1, x2, y2), or 5 or 6 with the score and the label.",
        )
    found = {"boxes": boxes}
    beside = {n: v for n, v in arrays.items() if n != boxes and v.shape == arrays[boxes].shape[:-1]}
    for role, kinds, words in (("labels", "iuf", ("label", "class")), ("scores", "f", ())):
        fitting = [n for n, v in beside.items() if v.dtype.kind in kinds and n not in found.values()]
        named = [n for n in fitting if any(word in n.lower() for word in words)]
        typed = [n for n in fitting if role == "scores" or beside[n].dtype.kind in "iu"]
        if named or typed:
            found[role] = (named or typed)[0]
    return found


def _images(outputs: Mapping[str, Any], names: Mapping[str, str]) -> list[_Found]:
    """Return the detections of each image; an output without a batch dimension is one image."""
    table = np.asarray(outputs[names["boxes"]]).astype(np.float64)
    columns = table.shape[-1]
    table = table.reshape(-1, *table.shape[-2:])

    def beside(role: str, column: int, default: float) -> np.ndarray:
        if role in names:
            return np.asarray(outputs[names[role]]).astype(np.float64).reshape(table.shape[:2])
        return table[..., column] if columns > column else np.full(table.shape[:2], default)

    scores, labels = beside("scores", 4, 1.0), beside("labels", 5, 0.0)
    return [_Found(_corners(b[:, :4]), s, c) for b, s, c in zip(table, scores, labels, strict=True)]


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Return boxes as x1, y1, x2, y2; where some end before they begin they are taken for centre, width, height."""
    if (boxes[:, 2:] >= boxes[:, :2]).all():
        return boxes
    half = np.abs(boxes[:, 2:]) / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _match(a: _Found, b: _Found, tolerance: Tolerance, threshold: float) -> tuple[int, int]:
    """Return how many detections have a partner, and how many on either side have none; the surest choose first."""
    free = [i for i in range(len(b.scores)) if b.scores[i] >= threshold - _MARGIN]
    pairs, lone = 0, 0
    for i in sorted(range(len(a.scores)), key=lambda i: -a.scores[i]):
        if a.scores[i] < threshold:
            continue
        allowed = tolerance.atol + (tolerance.rtol + tolerance.scaled) * abs(a.scores[i]) + _MARGIN
        near = [j for j in free if b.labels[j] == a.labels[i] and abs(b.scores[j] - a.scores[i]) <= allowed]
        best = max(near, key=lambda j: _iou(a.boxes[i], b.boxes[j]), default=None)
        if best is not None and _iou(a.boxes[i], b.boxes[best]) >= _IOU:
            free.remove(best)
            pairs += 1
        elif a.scores[i] >= threshold + _MARGIN:
            lone += 1
    return pairs, lone + sum(1 for j in free if b.scores[j] >= threshold + _MARGIN)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return intersection over union of two boxes; equal boxes without area overlap fully."""
    if np.array_equal(a, b):
        return 1.0
    sides = np.maximum(0.0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    shared = float(sides[0] * sides[1])
    areas = [float(np.prod(np.maximum(0.0, box[2:] - box[:2]))) for box in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0
