"""The graphs between a job's steps, as the cache has them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infconv.cache._codec import decode, encode
from infconv.result import StepResult

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.cache._keys import StepKeys
    from infconv.passes import Context
    from infconv.planning import Job
    from infconv.shelf import Shelf
    from infconv.spec import PipelineSpec


class Graphs:
    """The graphs after the first steps of a job, after more of them, and so on."""

    def __init__(
        self, shelf: Shelf, keys: StepKeys, job: Job, model: ir.Model, context: Context, spec: PipelineSpec
    ) -> None:
        from infconv.cache._graphs import weights_of

        self._shelf, self._keys, self._job, self._context, self._spec = shelf, keys, job, context, spec
        self._weights = weights_of(model)
        self._since = time.perf_counter()
        self._before: list[StepResult] = []

    def find(self, *, whole: bool) -> tuple[int, ir.Model, list[StepResult]] | None:
        """Return after how many steps a graph is there, the graph, and what the steps did; the latest one.

        With `whole` only the graph after all of them.
        """
        from infconv.cache._graphs import load_graph

        count = self._keys.longest(self._shelf.cache, whole=whole)
        entry = self._shelf.cache.get(self._keys.key(count)) if count else None
        if entry is None:
            return None
        self._context.notes[:] = entry.data["notes"]
        self._context.documents.update(entry.data["documents"])
        self._before = cast("list[StepResult]", decode(entry.data["results"], {}))
        self._since = time.perf_counter()
        return count, load_graph(entry.folder, entry.data["places"], self._weights), self._before

    def keep(self, count: int, model: ir.Model, results: Sequence[StepResult]) -> None:
        """Store the graph after the first `count` steps when it took long enough to make it."""
        from infconv.cache._graphs import save_graph

        seconds = time.perf_counter() - self._since
        if count > self._keys.most or seconds < self._shelf.worth_seconds or not lasting(results, self._spec):
            return
        if not self._shelf.still(self._keys, count, self._job):
            return

        def fill(stage: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
            data = {
                "places": save_graph(model, self._weights, stage),
                "results": encode([*self._before, *results], {}),
                "notes": list(self._context.notes),
                "documents": dict(self._context.documents),
            }
            return data, {}

        about = f"{self._spec.source.label()} {self._job.exporter.target} {self._job.entry.precision}, {count} steps"
        self._shelf.cache.put(self._keys.key(count), "steps", about, fill)
        self._since = time.perf_counter()


def lasting(results: Sequence[StepResult], spec: PipelineSpec) -> bool:
    """Whether the steps would do the same again: one that ran into a limit might not have, on an idle machine."""
    limited = spec.verify.step_timeout is not None or spec.memory_limit is not None
    return not (limited and any(result.status == "dropped" for result in results))
