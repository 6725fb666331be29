"""What a user may say about gates: the `gates:` key of a pipeline file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from infconv.entries import Entry


class LatencyGate(Entry):
    """How long one inference may take, on inputs of the usual size."""

    max: float | None = Field(default=None, gt=0)
    """Milliseconds, for the median; without it the latency is measured for the baseline only."""
    runtime: Literal["onnxruntime", "openvino"] | None = None
    """Measure only artifacts that this runtime runs; by default all, and an engine is refused: it runs on its GPU."""
    runs: int = Field(default=50, ge=5)
    """Inferences that count."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the runtime; by default its own choice."""


class MaxGate(Entry):
    """The largest value allowed."""

    max: float = Field(ge=0)
    """The limit, in the unit that the gate's name says."""


class ErrorGate(Entry):
    """How far outputs may be from the source's: tighter than the tolerance of verification."""

    max_abs: float | None = Field(default=None, ge=0)
    """Largest absolute difference of any output."""
    min_sqnr: float | None = None
    """Least signal-to-noise ratio of any output, in dB."""

    @model_validator(mode="after")
    def _something(self) -> ErrorGate:
        if self.max_abs is None and self.min_sqnr is None:
            raise ValueError("give max_abs or min_sqnr")
        return self


class AccuracyGate(Entry):
    """What `verify.metric` must give for the artifact itself."""

    min: float | None = None
    """The least value allowed."""
    max: float | None = None
    """The largest value allowed, of a metric that is better when it is smaller."""

    @model_validator(mode="after")
    def _something(self) -> AccuracyGate:
        if self.min is None and self.max is None:
            raise ValueError("give min or max")
        return self


class TargetGates(Entry):
    """Limits that an artifact must keep."""

    latency_ms: LatencyGate | None = None
    """Median time of one inference, measured here on the CPU."""
    memory_mb: MaxGate | None = None
    """Largest resident memory of the process that runs it, in MB of 1024 x 1024 bytes, beyond what it had before."""
    size_mb: MaxGate | None = None
    """Size of its files, in MB of 1,000,000 bytes."""
    nodes: MaxGate | None = None
    """Nodes in the graph that was exported."""
    error: ErrorGate | None = None
    """Agreement with the source's outputs."""
    accuracy: AccuracyGate | None = None
    """Value of verify.metric."""


class GatesEntry(TargetGates):
    """Limits that every artifact must keep; exit 6 otherwise."""

    baseline: str | None = None
    """A JSON file of earlier figures; written when it is absent, or with --update-baseline."""
    max_regression: float = Field(default=0.05, ge=0)
    """By which share size, nodes and latency may be worse than in the baseline."""
