"""From a conversion that fails to the step, the rewrite or node, and the smallest model that still shows it.

A step that is a table of rewrites is run again with fewer and fewer of them; for every other step the first inner value
that differs names the node. Then the model is cut down at values whose contents were recorded (infconv/reduce.py).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infconv import repro
from infconv.align import Layer, align, blamed, first_divergence, record
from infconv.bodies import observe
from infconv.calibrated import PRECISIONS
from infconv.convert._delivery import check_delivered
from infconv.errors import InfconvError
from infconv.observe import Observer, Observers
from infconv.opening import load_source, open_calibration
from infconv.planning import Job, plan
from infconv.reduce import Cutter, reduce
from infconv.reference import Reference, Sample, make_reference
from infconv.replay import Culprit, ExportReplay, StepReplay, find_rewrite
from infconv.runner import StepBroke, run_steps
from infconv.spec import PipelineSpec, SourceEntry, TargetEntry, VerifyEntry
from infconv.steps import as_items
from infconv.verify import Fault, StepGuard, find_fault, lowers_precision, tolerance_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import Source
    from infconv.passes import Pass
    from infconv.quantize._calibration import Calibration

_STEP_SECONDS = 60.0
"""How long a step may take when the user does not say: one that hangs is run several times."""


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What is to blame, and the folder that shows it."""

    culprit: str = ""
    """The step's name, `export to <target>`, or `export from the source`; empty: nothing differs."""
    fault: Fault | None = None
    rewrite: Culprit | None = None
    """The one rewrite of the step, where the step is a table of rewrites."""
    node: str = ""
    """The first node, after the step, that computes something else than before; else what is left of the model."""
    nodes: int = 0
    """Nodes of the model in the folder, those in bodies included."""
    nodes_before: int = 0
    """Nodes of the model before the step, likewise; of two models those of the second."""
    repro: repro.Repro | None = None


@dataclasses.dataclass(frozen=True)
class _Case:
    """A stage that fails: what it starts from, and how to do it again."""

    spec: PipelineSpec
    job: Job
    stage: StepReplay | ExportReplay
    model: ir.Model
    sample: Sample
    fault: Fault

    @property
    def step(self) -> Pass | None:
        return self.stage.step if isinstance(self.stage, StepReplay) else None


def bisect(spec: PipelineSpec, folder: Path, observers: Sequence[Observer] = ()) -> Bisection:
    """Find what makes the conversion `spec` fail, and write `folder`. An empty Bisection: nothing differs.

    Raises the InfconvErrors of a conversion that fails before its first step, UsageError for a folder in use, and
    VerificationError when nothing differs but the artifact does not have the precision that was asked for.
    """
    from infconv.convert import open_source

    watch = Observers(observers)
    repro.check_folder(folder)
    jobs = plan(spec)
    with tempfile.TemporaryDirectory(prefix="infconv-") as workdir:
        with watch.stage("open the source"):
            source = open_source(spec, Path(workdir))
        with source, watch.stage("run the source on samples"):
            model = load_source(spec, source)
            reference = make_reference(
                source, model, spec.source.dim_ranges(), spec.sample, spec.seed, spec.verify.edge_cases
            )
            calibration, calibrated = open_calibration(spec, source, reference, watch)
        for job in jobs:
            own = calibrated if calibrated and job.entry.precision in PRECISIONS else reference
            found = _bisect_job(spec, job, own, source, calibration, folder, watch)
            if found.culprit:
                return found
    return Bisection()


def _bisect_job(
    spec: PipelineSpec,
    job: Job,
    reference: Reference,
    source: Source,
    calibration: Calibration | None,
    folder: Path,
    watch: Observers,
) -> Bisection:
    from infconv.passes import Context

    model = load_source(spec, source)
    start = tolerance_for("fp32", spec.verify, reference.depth, reference.precision)
    if not reference.of_this_model:
        fault = find_fault(model, reference.samples, start)
        if fault is not None:
            return _of_source(model, reference, fault, folder)
    final = tolerance_for(job.entry.precision, spec.verify, reference.depth, reference.precision)
    samples = [sample.inputs for sample in reference.samples]
    context = Context(target=job.exporter.target, samples=samples, tolerance=final)
    context.calibration = calibration
    guard = StepGuard(job, spec.verify, reference, halt=True)
    guard.timeout, guard.memory_limit = spec.verify.step_timeout or _STEP_SECONDS, spec.memory_limit
    try:
        model, _ = run_steps(job.steps, model, context, watch, guard)
    except StepBroke as broke:
        sample = _failing(reference, broke.fault)
        stage = StepReplay(broke.step, context, guard.tolerance(broke.step), guard.timeout, spec.memory_limit)
        with watch.stage(f"find what {broke.step.step_name()} does wrong"):
            return _of_stage(_Case(spec, job, stage, broke.model, sample, broke.fault), folder)
    with watch.stage(f"export to {job.exporter.target} and compare"):
        stage = ExportReplay(job, final)
        outcome = stage.run(model, reference.samples, prove=True)
        fault = outcome.fault
        if fault is None:
            if outcome.delivered is not None:  # the other reason for which a conversion fails at its end
                check_delivered(outcome.delivered, job.entry.precision, job.exporter.target, context.notes)
            return Bisection()
        return _of_stage(_Case(spec, job, stage, model, _failing(reference, fault), fault), folder)


def _failing(reference: Reference, fault: Fault) -> Sample:
    return next((s for s in reference.samples if s.label == fault.sample), reference.samples[0])


def _of_source(model: ir.Model, reference: Reference, fault: Fault, folder: Path) -> Bisection:
    """The framework's exporter is to blame: nothing of it can be replayed, so the whole model is the reproducer."""
    sample = _failing(reference, fault)
    command = ["infconv", "compare", Path("expected.npz"), Path("model.onnx"), "--inputs", Path("inputs.npz")]
    arrays = {"inputs.npz": sample.inputs, "expected.npz": sample.outputs}
    repro.write(folder, {"model.onnx": model}, arrays, None, command)
    written = repro.attempt(folder, command, repro.Expected((5,), ""))
    count = size(model)
    return Bisection("export from the source", fault, nodes=count, nodes_before=count, repro=written)


# --- a step, or the export to the target -----------------------------------------------------------------------------


def _of_stage(case: _Case, folder: Path) -> Bisection:
    culprit, layer, node = None, None, ""
    if isinstance(case.stage, StepReplay):
        culprit = find_rewrite(case.stage, case.model, case.sample, case.fault)
        layer, node = _divergence(case, case.stage)
    part = _smallest(case, layer)
    model, sample = part or (case.model, case.sample)
    written = _write(case, model, sample, folder)
    if part and not written.reproduced:
        model, sample = case.model, case.sample
        written = _write(case, model, sample, folder)
    return Bisection(
        culprit=case.step.step_name() if case.step else f"export to {case.job.exporter.target}",
        fault=case.fault,
        rewrite=culprit,
        node=node or _names(model),
        nodes=size(model),
        nodes_before=size(case.model),
        repro=written,
    )


def size(model: ir.Model) -> int:
    """Return the number of nodes, those in bodies included."""
    return sum(1 for _ in model.graph.all_nodes())


def _names(model: ir.Model) -> str:
    """Return the first nodes of what is left."""
    names = [f"{node.op_type} '{node.name or node.outputs[0].name}'" for node in model.graph]
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _divergence(case: _Case, stage: StepReplay) -> tuple[Layer | None, str]:
    """Return the first inner value that differs after the step, and what computes it; None where nothing runs then."""
    after = stage.run(case.model, [case.sample]).model
    if after is None or case.fault.kind != "differs":
        return None, ""
    try:
        before, behind = observe(case.model, case.sample.inputs), observe(after, case.sample.inputs)
    except InfconvError:
        return None, ""
    layers = align(before.model, behind.model, before.values, behind.values, stage.tolerance)
    layer = first_divergence(layers, behind.model)
    return layer, "" if layer is None else blamed(layers, layer, behind.model)


def _smallest(case: _Case, layer: Layer | None) -> tuple[ir.Model, Sample] | None:
    """Return the smallest part of the model before the step on which the step fails in the same way.

    A part of a body that is written out is smaller than one with the body; but some steps fail inside bodies alone.
    """

    def fails(model: ir.Model, sample: Sample) -> bool:
        fault = case.stage.fault(model, [sample])
        return fault is not None and fault.kind == case.fault.kind

    try:
        seen = observe(case.model, case.sample.inputs)
        cutters = [Cutter(seen.model, seen.values)]
        if seen.model is not case.model:
            cutters.append(Cutter(case.model, record(case.model, case.sample.inputs)))
    except InfconvError:
        return None
    for cutter in cutters:
        starts = [cutter.behind([layer.a])] if layer else []
        starts += [cutter.behind([case.fault.output])] if case.fault.output else []
        found = reduce(cutter, fails, [*starts, cutter.nodes])
        if found is not None:
            return found
    return None


def _write(case: _Case, model: ir.Model, sample: Sample, folder: Path) -> repro.Repro:
    """Write the folder and run its command; where ONNX as the target does not show the fault, with the job's own."""
    expected = repro.EXPECTED[case.fault.kind]
    command = ["infconv", "run", Path("pipeline.yaml")]
    target = case.job.exporter.target
    plain = target if case.step is None or case.step.emits else "onnx"
    written = None
    for name in dict.fromkeys((plain, target)):
        spec = _pipeline(case, name)
        repro.write(folder, {"model.onnx": model}, {"inputs.npz": sample.inputs}, spec, command, case.step)
        written = repro.attempt(folder, command, expected)
        if written.reproduced:
            break
    assert written is not None
    return written


def _pipeline(case: _Case, target: str) -> PipelineSpec:
    """Return the pipeline that does the one stage, and verifies."""
    step, verify = case.step, case.spec.verify
    lowered = step is None or lowers_precision(step)
    entry = TargetEntry(
        target=target,
        precision=case.job.entry.precision if lowered else "fp32",
        output="out/artifact" + (case.job.exporter.suffix if target == case.job.exporter.target else ".onnx"),
        options=case.job.entry.options if target == case.job.exporter.target else {},
    )
    limit = case.stage.timeout if isinstance(case.stage, StepReplay) else _STEP_SECONDS
    return PipelineSpec(
        source=SourceEntry(path="model.onnx"),
        sample="inputs.npz",
        steps=as_items([step] if step else []),
        targets=[entry],
        verify=VerifyEntry(when="end", rtol=verify.rtol, atol=verify.atol, min_sqnr=verify.min_sqnr),
        cache=False,  # what is to be seen happen must happen
        timeout=limit if case.fault.kind == "timeout" else None,
        memory_limit=case.spec.memory_limit if case.fault.kind == "memory" else None,
    )
