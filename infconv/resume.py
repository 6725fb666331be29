"""Run the steps of a job from the latest graph that an earlier run left, and leave graphs for later ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from infconv.observe import Observers
from infconv.result import StepResult
from infconv.runner import Guard, StepFailed, run_steps
from infconv.steps import Repeat

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.kept_graphs import Graphs
    from infconv.passes import Context, Pass


def run_or_resume(
    steps: Sequence[Pass | Repeat],
    load: Callable[[], ir.Model],
    model: ir.Model,
    context: Context,
    watch: Observers,
    guard: Guard | None = None,
    graphs: Graphs | None = None,
) -> tuple[ir.Model, list[StepResult]]:
    """Do as `run_steps` does with `model`, which `load` returns anew; `graphs` has what is known already.

    With a guard only the graph after all steps is taken: the guard remembers what it accepted before.
    """
    if graphs is None:
        return run_steps(steps, model, context, watch, guard)
    found = graphs.find(whole=guard is not None)
    if found is None:
        keep = graphs.keep if guard is None else None
        model, results = run_steps(steps, model, context, watch, guard, checkpoint=keep)
        if guard is not None:
            graphs.keep(len(steps), model, results)
        return model, results
    count, model, before = found
    for result in before:
        watch.before(result.name)
        watch.after(result)
    try:
        model, results = run_steps(
            steps[count:], model, context, watch, guard, checkpoint=lambda n, m, r: graphs.keep(count + n, m, r)
        )
    except StepFailed:  # a bug: its reproducer starts from the source, and counts all steps
        context.notes.clear()
        return run_steps(steps, load(), context, watch, guard)
    return model, [*before, *results]
