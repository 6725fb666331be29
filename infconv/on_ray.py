"""Run pipelines on a Ray cluster: the same jobs, each a task, collected in the order of the plan.

A task that its node takes with it is started again elsewhere. That does no harm: an artifact is published in one go,
and the second time has the bytes of the first.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infconv.errors import InfconvError, ResourceError, UsageError, missing_extra
from infconv.isolate import Crashed
from infconv.limits import execute_limited
from infconv.observe import Observers
from infconv.result import Result
from infconv.runs import joined, measures_time
from infconv.urls import is_url
from infconv.workers import RETRIES, OnRay

if TYPE_CHECKING:
    from infconv.spec import PipelineSpec


@dataclasses.dataclass(frozen=True)
class _Task:
    """Some targets of one pipeline."""

    pipeline: int
    spec: PipelineSpec


def execute_on(
    address: str, specs: Sequence[PipelineSpec], watch: Observers, *, update_baseline: bool = False
) -> list[Result | InfconvError]:
    """Return the outcome of each pipeline, made on the cluster at `address`: `ray`, or `ray://host:port`.

    `ray` is the cluster that this machine belongs to (RAY_ADDRESS), or one of its own for the run. Sources and outputs
    are paths that every node sees. Raises UsageError, DependencyError, and ResourceError for no such cluster.
    """
    ray = _connect(address, specs)
    try:
        return run_tasks(ray, specs, watch, update_baseline=update_baseline)
    finally:
        ray.shutdown()


def run_tasks(
    ray: Any, specs: Sequence[PipelineSpec], watch: Observers, *, update_baseline: bool = False
) -> list[Result | InfconvError]:
    """Do as `execute_on`, on the cluster that the module `ray` is connected to."""
    processors = int(ray.cluster_resources().get("CPU", 1))
    tasks = _tasks(specs, processors)
    share = max(1, processors // max(1, len(tasks)))
    remote = ray.remote(_execute)
    started = [
        remote.options(
            num_cpus=1, max_retries=RETRIES, memory=task.spec.memory_limit, name=task.spec.source.label()
        ).remote(task.spec.model_dump(mode="json", exclude_defaults=True), sys.path, share, update_baseline)
        for task in tasks
    ]
    outcomes = _collect(ray, started, tasks, watch)
    return [
        _merged([done for task, done in zip(tasks, outcomes, strict=True) if task.pipeline == number])
        for number in range(len(specs))
    ]


def _connect(address: str, specs: Sequence[PipelineSpec]) -> Any:
    if address != "ray" and not address.startswith("ray://"):
        raise UsageError(f"--on '{address}' is no cluster.", "Write --on ray, or --on ray://host:port.")
    for spec in specs:
        if measures_time(spec):
            raise UsageError(
                "The gate 'latency_ms' does not go with --on: other jobs on a node would disturb it.",
                "Check it in a run of its own, where the artifacts come from the cache.",
            )
    try:
        import ray  # pyright: ignore[reportMissingImports]  (an optional dependency)
        from ray import init  # pyright: ignore[reportMissingImports]  (which a mere folder `ray` does not have)
    except ImportError:
        raise missing_extra("ray", "ray", f"--on {address}") from None
    try:
        init(
            address=address if address != "ray" else os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            logging_level="ERROR",
            ignore_reinit_error=True,
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ResourceError(f"The cluster '{address}' cannot be reached: {words[0]}", "Check the address.") from error
    return ray


def _tasks(specs: Sequence[PipelineSpec], processors: int) -> list[_Task]:
    """Return a task for each pipeline, which opens its source once; for each target where that leaves nodes idle."""
    if len(specs) >= processors:
        return [_Task(number, _alone(spec)) for number, spec in enumerate(specs)]
    return [
        _Task(number, _alone(spec.model_copy(update={"targets": [target]})))
        for number, spec in enumerate(specs)
        for target in spec.targets
    ]


def _alone(spec: PipelineSpec) -> PipelineSpec:
    return spec.model_copy(update={"jobs": 1})


def _execute(data: dict[str, Any], path: list[str], share: int, update_baseline: bool) -> Result | InfconvError:
    """Run in a task, which may start `share` more at a time: an InfconvError is an outcome, and not tried again."""
    from infconv.publish import session
    from infconv.spec import PipelineSpec

    sys.path += [folder for folder in path if folder not in sys.path]
    with session():
        try:
            spec = PipelineSpec.model_validate(data)
            workers = OnRay(share) if share > 1 and _is_divisible(spec) else None
            return execute_limited(spec, update_baseline=update_baseline, workers=workers)
        except InfconvError as error:
            return error


def _is_divisible(spec: PipelineSpec) -> bool:
    """Whether parts of its steps may run elsewhere: not where a step is forked, nor where data was fetched to here."""
    here = is_url(spec.calibration.path) if spec.calibration else False
    return spec.verify.when != "each" and not here


def _collect(ray: Any, started: Sequence[Any], tasks: Sequence[_Task], watch: Observers) -> list[Result | InfconvError]:
    """Return the outcomes in the order of the tasks; a task whose process died every time is an error of its own."""
    waiting = list(started)
    while waiting:
        watch.tell(f"{len(started) - len(waiting)} of {len(started)} tasks are done")
        _, waiting = ray.wait(waiting, num_returns=1)
    outcomes: list[Result | InfconvError] = []
    for reference, task in zip(started, tasks, strict=True):
        try:
            outcomes.append(ray.get(reference))
        except ray.exceptions.OutOfMemoryError:
            outcomes.append(
                ResourceError("A node's memory ran out.", "Set memory_limit: a task then waits for a node that has it.")
            )
        except ray.exceptions.WorkerCrashedError:
            outcomes.append(
                Crashed(f"The process that converted '{task.spec.source.label()}' died {RETRIES + 1} times.")
            )
    return outcomes


def _merged(outcomes: Sequence[Result | InfconvError]) -> Result | InfconvError:
    """Return the outcome of a pipeline from those of its tasks; one that could not be opened is that error."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, InfconvError)]
    if not results:
        return errors[0]
    merged = joined(results)
    return dataclasses.replace(merged, error=merged.error or next(iter(errors), None))
