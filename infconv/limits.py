"""Run a pipeline within the time and the memory that it may use."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infconv import isolate
from infconv.errors import ResourceError, UnsupportedError
from infconv.pipeline import execute
from infconv.publish import session

if TYPE_CHECKING:
    from infconv.observe import Observer
    from infconv.passes import Workers
    from infconv.result import Result
    from infconv.spec import PipelineSpec


def execute_limited(
    spec: PipelineSpec,
    observers: Sequence[Observer] = (),
    *,
    update_baseline: bool = False,
    workers: Workers | None = None,
) -> Result:
    """Run `spec` as `execute` does; with a time-out or a memory limit in a child, which leaves nothing when it ends.

    `workers` take on parts of long steps where there is no limit. Raises ResourceError at a limit.
    """
    if spec.timeout is None and spec.memory_limit is None:
        return execute(spec, observers, update_baseline=update_baseline, workers=workers)
    if not isolate.CAN_FORK:
        raise UnsupportedError("--timeout and --memory-limit work on Linux only.", "Leave them out.")
    with session() as folder:

        def run() -> Result:
            tempfile.tempdir = str(folder)  # in the child: what it leaves when it is killed goes with the session
            return execute(spec, observers, update_baseline=update_baseline)

        try:
            return isolate.call(run, what="The conversion", timeout=spec.timeout, memory_limit=spec.memory_limit)
        except isolate.TimedOut:
            raise ResourceError(
                f"The conversion did not finish within {spec.timeout:g} s.", "Raise the limit with --timeout."
            ) from None
