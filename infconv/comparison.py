"""Two models of any kind on the same inputs: how outputs differ, and where inside they first do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.agreement import View, compare_decisions
from infconv.align import Layer, align, first_divergence, unmatched_before
from infconv.bodies import observe
from infconv.compare import TOLERANCES, OutputError, Tolerance, compare_outputs
from infconv.errors import UnsupportedError
from infconv.reference import Sample, random_node
from infconv.result import SampleCheck
from infconv.run_artifact import Runnable, open_runnable
from infconv.spec import SourceEntry

if TYPE_CHECKING:
    from infconv.run_artifact import Outputs


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """The inner values of `b` that stand for one of `a`, on one sample."""

    label: str
    layers: Sequence[Layer]
    first: Layer | None
    """Where they first compute something else; None: nowhere."""
    values: int
    """Inner values of `b`; those that stand for none of `a` have no layer."""
    unknown: Sequence[str] = ()
    """Values without a counterpart that `first` is computed from: the cause may lie there."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the outputs of model `b` differ from those of `a`, on each set of inputs."""

    a: str
    b: str
    passed: bool
    samples: Sequence[SampleCheck]
    layers: LayerCheck | None = None
    """When asked for: inside, on the first sample that differs, or the first."""
    notes: Sequence[str] = ()


def compare_models(
    a: SourceEntry,
    b: SourceEntry,
    *,
    inputs: str | None,
    tolerance: Tolerance | None = None,
    view: View | None = None,
    layers: bool = False,
    seed: int = 0,
) -> Comparison:
    """Run `a` and `b` on the same inputs and compare; `a` is the reference, and says what inputs there are.

    Raises SourceError when one of them cannot be read or run, UnsupportedError for what cannot be run here.
    """
    tolerance = tolerance or TOLERANCES["fp32"]
    with (
        tempfile.TemporaryDirectory(prefix="infconv-") as folder,
        open_runnable(a, Path(folder) / "a") as first,
        open_runnable(b, Path(folder) / "b") as second,
    ):
        samples = _samples(first, second, inputs, seed)
        feeds = [sample.inputs for sample in samples]
        notes: list[str] = []
        checks: list[SampleCheck] = []
        for sample, mine, theirs in zip(samples, first.run(feeds), second.run(feeds), strict=True):
            mine, theirs = _same_names(first, second, mine, theirs, notes)  # noqa: PLW2901
            checks.append(SampleCheck(sample.label, _judge(mine, theirs, tolerance, view)))
        inside = _look_inside(first, second, samples, checks, tolerance) if layers else None
        passed = all(output.ok for check in checks for output in check.outputs)
        notes += [*first.notes, *second.notes, *(() if passed else _randomness(first, second))]
    return Comparison(a.path, b.path, passed, checks, inside, list(dict.fromkeys(notes)))


def _randomness(*models: Runnable) -> list[str]:
    """Return a note for each model of which two runs differ by themselves."""
    notes: list[str] = []
    for model in models:
        try:
            drawn = random_node(model.graph())
        except UnsupportedError:  # there is no graph to look into
            continue
        if drawn:
            notes.append(f"'{model.path}' draws random numbers ({drawn}): two runs of it differ by themselves.")
    return notes


def _samples(first: Runnable, second: Runnable, inputs: str | None, seed: int) -> list[Sample]:
    """Return the user's inputs, or seeded ones: from the first of the two that can tell what its inputs are."""
    knows = next((r for r in (first, second) if type(r).samples is not Runnable.samples), first)
    return knows.samples(seed) if inputs is None else knows.load_samples(inputs)


def _judge(mine: Outputs, theirs: Outputs, tolerance: Tolerance, view: View | None) -> list[OutputError]:
    if view is None:
        return compare_outputs(mine, theirs, tolerance)
    return compare_decisions(mine, theirs, tolerance, view)


def _same_names(
    first: Runnable, second: Runnable, of_a: Outputs, of_b: Outputs, notes: list[str]
) -> tuple[Outputs, Outputs]:
    """Return outputs by the same names. Two models of different origin may share none: then their order counts."""
    if first.aliases or second.aliases:
        return _one_name_each(first, second, of_a, of_b)
    if len(of_a) == len(of_b) and not set(of_a) & set(of_b):
        notes.append(f"No output has the same name ({', '.join(of_a)}; {', '.join(of_b)}): compared by their order.")
        return of_a, dict(zip(of_a, of_b.values(), strict=True))
    return of_a, of_b


def _one_name_each(
    first: Runnable, second: Runnable, of_a: Mapping[str, Any], of_b: Mapping[str, Any]
) -> tuple[Outputs, Outputs]:
    """Return the outputs with one name each: an OpenVINO IR knows an output by several, of which the other has one."""
    shared = [name for name in of_a if name in of_b]
    lone = [n for outputs, r in ((of_a, first), (of_b, second)) if not r.aliases for n in outputs]
    keep = {*shared, *lone}
    return {n: v for n, v in of_a.items() if n in keep}, {n: v for n, v in of_b.items() if n in keep}


def _look_inside(
    first: Runnable, second: Runnable, samples: Sequence[Sample], checks: Sequence[SampleCheck], tolerance: Tolerance
) -> LayerCheck:
    """Align the graphs on the first sample whose outputs differ, or else the first."""
    wrong = (i for i, check in enumerate(checks) if not all(output.ok for output in check.outputs))
    sample = samples[next(wrong, 0)]
    a, b = observe(first.graph(), sample.inputs), observe(second.graph(), sample.inputs)
    found = align(a.model, b.model, a.values, b.values, tolerance)
    values = sum(1 for node in b.model.graph for value in node.outputs if value.name)
    first_wrong = first_divergence(found, b.model)
    unknown = () if first_wrong is None else unmatched_before(found, first_wrong, b.model)
    return LayerCheck(sample.label, found, first_wrong, values, unknown)
