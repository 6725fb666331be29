"""Check finished artifacts against the limits that the pipeline sets, and against the baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.baseline import Baseline, Past, fingerprint, machine
from infconv.errors import GateError, InfconvError, UsageError
from infconv.gate_options import GatesEntry, LatencyGate, TargetGates
from infconv.given import as_given
from infconv.remote import at_hand
from infconv.result import Artifact, Figures, GateCheck, Latency, Result

if TYPE_CHECKING:
    from infconv.bench import BenchRow, Settings
    from infconv.planning import Job
    from infconv.spec import PipelineSpec, TargetEntry

_RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
_WORDS = {
    "latency_ms": ("the median latency is", "ms"),
    "memory_mb": ("it needs", "MB of memory"),
    "size_mb": ("it is", "MB"),
    "nodes": ("it has", "nodes"),
    "error.max_abs": ("the largest difference is", ""),
    "error.min_sqnr": ("the signal-to-noise ratio is", "dB"),
    "accuracy.min": ("the metric is", ""),
    "accuracy.max": ("the metric is", ""),
}
_MEMORY_RUNS = 5


def gates_of(spec: PipelineSpec, entry: TargetEntry) -> TargetGates:
    """Return the limits of one artifact: its own, each in place of the pipeline's."""
    own = entry.gates or TargetGates()
    shared = spec.gates or TargetGates()
    names = TargetGates.model_fields
    return TargetGates.model_construct(
        **{name: value if (value := getattr(own, name)) is not None else getattr(shared, name) for name in names}
    )


def check_possible(spec: PipelineSpec, job: Job) -> None:
    """Raise UsageError, before anything is made, for a gate that cannot be checked."""
    gates = gates_of(spec, job.entry)
    runtime = _RUNTIMES.get(job.exporter.suffix)
    told = f"'gates.{{}}': a {job.exporter.target} artifact is not measured here: it runs on its GPU."
    if runtime is None and gates.latency_ms is not None and gates.latency_ms.runtime is None:
        raise UsageError(told.format("latency_ms"), "Say which are: latency_ms: {max: 10, runtime: onnxruntime}.")
    if runtime is None and gates.memory_mb is not None:
        raise UsageError(told.format("memory_mb"), "Set this gate under the targets that it is for.")
    if gates.accuracy is not None and spec.verify.metric is None:
        raise UsageError(
            "'gates.accuracy' needs 'verify.metric', which there is none of.", "Name one: module:function."
        )
    if gates.error is not None and spec.verify.when == "off":
        raise UsageError("'gates.error' needs verification, which is off.", "Leave out `verify: {when: off}`.")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A finished artifact, its job, and the inputs that it is measured on."""

    artifact: Artifact
    job: Job
    inputs: Mapping[str, Any]


def check_gates(
    spec: PipelineSpec, subjects: Sequence[Subject], *, update_baseline: bool = False
) -> tuple[list[GateCheck], list[Figures]]:
    """Return every gate with its outcome, and the figures that were measured.

    With `update_baseline` nothing is compared with the baseline, which the figures are going to replace.
    """
    checks: list[GateCheck] = []
    figures: list[Figures] = []
    named = spec.gates.baseline if spec.gates else None
    baseline = Baseline(named) if named else None
    for subject in subjects:
        gates = gates_of(spec, subject.job.entry)
        past = baseline.past(as_given(subject.artifact.path, spec)) if baseline and not update_baseline else None
        found, race = Figures(subject.artifact.path, subject.artifact.nodes_after, subject.artifact.bytes), None
        try:
            found, race = _measure(subject, gates, found, past, spec.seed)
        except InfconvError as error:
            gate = "memory_mb" if gates.latency_ms is None else "latency_ms"
            checks.append(GateCheck(gate, found.artifact, "failed", f"it cannot be measured: {error.message}"))
        figures.append(found)
        checks += _limits(subject.artifact, gates, found)
        if past is not None and spec.gates is not None:
            checks += _regressions(spec.gates, past, found, race, subject.artifact)
        elif baseline is not None and baseline.exists and not update_baseline:
            words = "it is new: the baseline gets its figures"
            checks.append(GateCheck("regression", subject.artifact.path, "skipped", words))
    return checks, figures


# --- figures ---------------------------------------------------------------------------------------------------------


def _measure(
    subject: Subject, gates: TargetGates, figures: Figures, past: Past | None, seed: int
) -> tuple[Figures, BenchRow | None]:
    """Return `figures` with what was measured, and the row of a race against the artifact of then where there was one.

    Raises InfconvError when a runtime cannot run the artifact.
    """
    artifact = subject.artifact
    latency = gates.latency_ms if _is_measured(subject, gates.latency_ms) else None
    if latency is None and gates.memory_mb is None:
        return figures, None
    from infconv.bench import Settings, bench

    runs, threads = (latency.runs, latency.threads) if latency else (_MEMORY_RUNS, None)
    rival = past.copy if past and latency and past.fingerprint != fingerprint(artifact) else None
    settings = Settings(runs=runs, threads=threads, seed=seed)
    with _saved(subject) as inputs:
        row = _race(rival, artifact.path, inputs, settings) if rival else None
        alone = row is None
        row = row or bench([artifact.path], inputs=inputs, settings=settings)[0]
    timed = Latency(row.latency_ms, row.latency_ms_low, row.latency_ms_high, row.runtime) if latency else None
    figures = dataclasses.replace(figures, latency=timed, memory_mb=row.memory_mb)
    return figures, None if alone else row


def _race(rival: str, path: str, inputs: str, settings: Settings) -> BenchRow | None:
    """Return the row of `path` beside `rival`; None when that does not run, on these inputs or at all."""
    from infconv.bench import bench

    try:
        with at_hand(rival) as local:
            return bench([local, path], inputs=inputs, settings=settings)[1]
    except InfconvError:
        return None


def _is_measured(subject: Subject, gate: LatencyGate | None) -> bool:
    runtime = _RUNTIMES.get(Path(subject.artifact.path).suffix)
    return gate is not None and runtime is not None and gate.runtime in {None, runtime}


@contextlib.contextmanager
def _saved(subject: Subject) -> Generator[str]:
    """Yield a .npz of the inputs in the artifact's types."""
    import numpy as np

    from infconv.verify import as_inputs

    with tempfile.TemporaryDirectory(prefix="infconv-") as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, **as_inputs(dict(subject.inputs), subject.job))
        yield str(path)


# --- limits ----------------------------------------------------------------------------------------------------------


def _limits(artifact: Artifact, gates: TargetGates, figures: Figures) -> list[GateCheck]:
    """Return a check for each limit."""
    rows: list[tuple[str, float | None, float | None, bool]] = []  # gate, value, limit, whether the limit is a least
    if gates.latency_ms is not None and figures.latency is not None:
        rows.append(("latency_ms", figures.latency.median, gates.latency_ms.max, False))
    if gates.memory_mb is not None and figures.memory_mb is not None:
        rows.append(("memory_mb", figures.memory_mb, gates.memory_mb.max, False))
    if gates.size_mb is not None:
        rows.append(("size_mb", artifact.bytes / 1e6, gates.size_mb.max, False))
    if gates.nodes is not None:
        rows.append(("nodes", artifact.nodes_after, gates.nodes.max, False))
    outputs = [output for sample in artifact.verification.samples for output in sample.outputs]
    if gates.error is not None:
        differences = [o.max_abs for o in outputs if o.max_abs is not None]
        ratios = [o.sqnr_db for o in outputs if o.sqnr_db is not None]
        rows.append(("error.max_abs", max(differences, default=0.0), gates.error.max_abs, False))
        rows.append(("error.min_sqnr", min(ratios, default=float("inf")), gates.error.min_sqnr, True))
    metric = artifact.verification.metric
    if gates.accuracy is not None and metric is not None:
        rows.append(("accuracy.min", metric.after, gates.accuracy.min, True))
        rows.append(("accuracy.max", metric.after, gates.accuracy.max, False))
    return [_limit(artifact.path, *row, figures) for row in rows if row[2] is not None]


def _limit(path: str, gate: str, value: float | None, limit: float | None, least: bool, figures: Figures) -> GateCheck:
    assert value is not None
    assert limit is not None
    start, unit = _WORDS[gate]
    passed = value >= limit if least else value <= limit
    latency = figures.latency if gate == "latency_ms" else None
    interval = f" ({latency.low:.3g} to {latency.high:.3g})" if latency else ""
    bound = "at least" if least else "at most"
    far = "" if passed else f": {_off(value, limit)} {'too little' if least else 'too much'}"
    message = f"{start} {value:.4g} {unit}".rstrip() + f"{interval}, allowed is {bound} {limit:g}{far}"
    return GateCheck(gate, path, "passed" if passed else "failed", message, value, limit)


def _off(value: float, limit: float) -> str:
    """Return how far the value is from the limit: a share where that says something."""
    return f"{abs(value / limit - 1):.1%}".replace("%", " %") if limit else f"{abs(value - limit):.3g}"


# --- the baseline ----------------------------------------------------------------------------------------------------


def _regressions(
    gates: GatesEntry, past: Past, figures: Figures, race: BenchRow | None, artifact: Artifact
) -> list[GateCheck]:
    most = 1 + gates.max_regression
    old = past.figures
    checks = [
        _regression("size_mb", artifact.path, figures.bytes / max(old.bytes, 1), most, f"{old.bytes / 1e6:.4g} MB"),
        _regression("nodes", artifact.path, figures.nodes / max(old.nodes, 1), most, f"{old.nodes} nodes"),
    ]
    if figures.latency is not None:
        checks.append(_latency_regression(past, figures, race, most, artifact))
    return checks


def _regression(gate: str, path: str, ratio: float, most: float, then: str, interval: str = "") -> GateCheck:
    passed = ratio <= most
    far = "" if passed else f": {_off(ratio, most)} beyond it"
    message = f"{ratio:.4g} times the baseline's {then}{interval}, allowed is {most:g}{far}"
    return GateCheck(f"regression.{gate}", path, "passed" if passed else "failed", message, ratio, most)


def _latency_regression(
    past: Past, figures: Figures, race: BenchRow | None, most: float, artifact: Artifact
) -> GateCheck:
    """Fail only when the whole 95 % interval of the ratio is beyond what is allowed."""
    gate = "latency_ms"
    now, then = figures.latency, past.figures.latency
    assert now is not None
    if past.fingerprint == fingerprint(artifact):
        return GateCheck(f"regression.{gate}", artifact.path, "passed", "the artifact is the baseline's", 1.0, most)
    if race is not None:
        ratio, low, high, how = race.ratio, race.ratio_low, race.ratio_high, "side by side"
    elif then is None:
        return _skipped(artifact, "the baseline has no latency")
    elif past.machine != machine() or then.runtime != now.runtime:
        return _skipped(
            artifact, f"the baseline is of another machine or runtime ({then.runtime}), without the artifact"
        )
    else:
        ratio, low, high, how = now.median / then.median, now.low / then.high, now.high / then.low, "of two runs"
    told = then.median if then else now.median / ratio
    interval = f" ({low:.4g} to {high:.4g} {how})"
    judged = _regression(gate, artifact.path, low, most, "", "")
    words = f"{ratio:.4g} times the baseline's {told:.4g} ms{interval}, allowed is {most:g}"
    if judged.status == "failed":
        words += f": surely {_off(low, most)} beyond it"
    return dataclasses.replace(judged, message=words, value=ratio)


def _skipped(artifact: Artifact, why: str) -> GateCheck:
    return GateCheck("regression.latency_ms", artifact.path, "skipped", why)


# --- the outcome -----------------------------------------------------------------------------------------------------


def gate_error(checks: Sequence[GateCheck]) -> GateError | None:
    """Return the error that tells of every gate that failed; None when none did."""
    failed = [check for check in checks if check.status == "failed"]
    lines = [f"{check.artifact}: {check.gate}: {check.message}." for check in failed]
    hint = "The artifacts are there, and verified. Change the limit, or with --update-baseline the baseline."
    if not failed:
        return None
    return GateError(lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} gates failed:", *lines]), hint)


def _baselines(specs: Sequence[PipelineSpec]) -> list[str]:
    return list(dict.fromkeys(spec.gates.baseline for spec in specs if spec.gates and spec.gates.baseline))


def check_baselines(specs: Sequence[PipelineSpec]) -> None:
    """Raise UsageError for a baseline that cannot be read, before the work and not after it."""
    for path in _baselines(specs):
        Baseline(path).check()


def store_baselines(specs: Sequence[PipelineSpec], result: Result, *, update: bool) -> list[str]:
    """Write what the baselines lack; return a note for each that was written. Failed gates change no baseline."""
    if not update and any(check.status == "failed" for check in result.gates):
        return []
    notes: list[str] = []
    for path in _baselines(specs):
        own = {spec.source.label() for spec in specs if spec.gates and spec.gates.baseline == path}
        artifacts = [artifact for artifact in result.artifacts if artifact.source in own]
        count = Baseline(path).store(artifacts, result.figures, update=update)
        if count:
            notes.append(f"The figures of {count} artifact{'s' * (count > 1)} are the new baseline in '{path}'.")
    return notes
