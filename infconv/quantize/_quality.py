"""Keep the fewest layers float with which the user's own measure of quality stays within its budget."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import onnx_ir as ir

from infconv.model import save
from infconv.passes import Quality

Quantise = Callable[[frozenset[str]], ir.Model]
"""Returns the quantised model with the layers of these names float."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which layers stay float for the metric."""

    floats: frozenset[str]
    sensitivity: Mapping[str, float]
    """Layer -> the outputs' signal-to-noise ratio in dB when it alone is quantised; empty when nobody asked."""
    facts: Mapping[str, float]
    """For the plan: metric and drop of the model with these layers float, and the trials that it took."""
    notes: tuple[str, ...] = ()


class QualitySearch:
    """Measures the quantised model with the user's metric, in ONNX Runtime, with more and more layers float.

    Layers are ranked by what they cost the outputs when quantised alone, which is measured without the metric. Of the
    most sensitive ones the smallest number that meets the budget is found by halving; then, the least sensitive first
    and in groups that halve, those are quantised again that need not be float. When the time is up the best set found
    so far is taken.
    """

    def __init__(
        self, quality: Quality, quantise: Quantise, seconds: float, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._quality, self._quantise, self._tell = quality, quantise, tell
        self._deadline = time.monotonic() + seconds
        self._measured: dict[frozenset[str], float] = {}
        """Float layers -> the metric."""

    def run(self, rank: Callable[[], Mapping[str, float]]) -> Kept:
        """Return the layers to keep. `rank` is asked for the layers' sensitivity only when it is needed.

        Raises UsageError when the metric fails.
        """
        kept: frozenset[str] = frozenset()
        if self._meets(kept):
            return Kept(kept, {}, self._facts(kept))
        self._tell("ranking the layers by their sensitivity")
        sensitivity = rank()
        order = sorted(sensitivity, key=lambda name: sensitivity[name])
        kept = self._without_needless(order[: self._fewest(order)])
        return Kept(kept, sensitivity, self._facts(kept), (self._note(kept),))

    def _meets(self, floats: frozenset[str]) -> bool:
        return self._quality.drop(self._measure(floats)) <= self._quality.max_drop

    def _measure(self, floats: frozenset[str]) -> float:
        if floats not in self._measured:
            found = self._measured[floats] = self._run(floats)
            self._tell(f"{self._quality.name} is {found:.6g}; sensitive layers in float: {len(floats)}")
        return self._measured[floats]

    def _run(self, floats: frozenset[str]) -> float:
        from infconv.convert._onnxruntime import open_session, run_session

        with tempfile.TemporaryDirectory(prefix="infconv-quality-") as folder:
            path = save(self._quantise(floats), Path(folder) / "model.onnx")[0]
            return self._quality.measure(partial(run_session, open_session(str(path), optimize=True)))

    def _fewest(self, order: Sequence[str]) -> int:
        """Return how many layers, from the start of `order`, have to be float; all of them surely are enough."""
        fewest, most = 1, len(order)
        while fewest < most and not self._late():
            middle = (fewest + most) // 2
            fewest, most = (fewest, middle) if self._meets(frozenset(order[:middle])) else (middle + 1, most)
        return most

    def _without_needless(self, kept: Sequence[str]) -> frozenset[str]:
        """Return those of `kept` that must stay float; tried from the least sensitive on."""
        left = list(kept)
        size = len(left) // 2
        while size and not self._late():
            for start in range(len(left) - size, -1, -size):
                rest = left[:start] + left[start + size :]
                if rest and not self._late() and self._meets(frozenset(rest)):
                    left = rest
            size //= 2
        return frozenset(left)

    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _facts(self, floats: frozenset[str]) -> dict[str, float]:
        trials = len(self._measured)
        if floats not in self._measured:
            return {"metric_trials": trials}
        metric = self._measured[floats]
        return {
            "metric": round(metric, 6),
            "metric_drop": round(self._quality.drop(metric), 6),
            "metric_trials": trials,
        }

    def _note(self, kept: frozenset[str]) -> str:
        first, last = self._measured[frozenset()], self._measured.get(kept)
        layers = "1 sensitive layer stays" if len(kept) == 1 else f"{len(kept)} sensitive layers stay"
        after = "" if last is None else f", with which it is {last:.6g}"
        late = " The time was up before fewer could be tried." if self._late() else ""
        return (
            f"{self._quality.name} is {self._quality.before:.6g} in float and {first:.6g} with every layer in INT8: "
            f"{layers} float{after} ({len(self._measured)} trials).{late}"
        )
