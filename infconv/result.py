"""What a conversion returns: the typed objects behind `--json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from infconv.compare import OutputError
from infconv.errors import InfconvError
from infconv.plain import plain
from infconv.step_result import StepResult


@dataclasses.dataclass(frozen=True)
class SampleCheck:
    """The comparison on one sample."""

    label: str
    outputs: Sequence[OutputError]


@dataclasses.dataclass(frozen=True)
class MetricCheck:
    """The user's own measure, of the source and of the artifact."""

    metric: str
    """`module:function`."""
    before: float
    after: float
    drop: float
    """By how much the artifact is worse; negative: better."""
    max_drop: float | None = None


@dataclasses.dataclass(frozen=True)
class Verification:
    """How an artifact compares with the source framework."""

    passed: bool | None
    """None: not verified (`--verify off`)."""
    reference: str = ""
    """What computed the reference."""
    executed: str = ""
    """What ran the artifact."""
    artifact_executed: bool = True
    """False: the artifact itself could not be run here; `note` says what was."""
    note: str = ""
    samples: Sequence[SampleCheck] = ()
    metric: MetricCheck | None = None

    def worst(self) -> OutputError | None:
        """Return the worst output over all samples: a failed one, else the one with the largest error."""
        errors = [o for s in self.samples for o in s.outputs]
        return min(errors, key=lambda e: (e.ok, -(e.max_abs or 0.0))) if errors else None


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished artifact."""

    target: str
    precision: str
    path: str
    """The file that users open."""
    files: Sequence[str]
    manifest: str
    bytes: int
    nodes_before: int
    nodes_after: int
    source_bytes: int
    """Bytes of weights in the exported source."""
    compute: Mapping[str, int]
    """Type -> compute operators that run in it, as read back from the artifact."""
    compute_evidence: str
    verification: Verification
    steps: Sequence[StepResult]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    compute_share: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Type -> share of the multiplications that run in it, 0 to 1, as read back; empty where it is not known."""
    documents: Sequence[str] = ()
    """Files that steps left beside the artifact, such as the precision plan."""
    source: str = ""
    """What its source is called."""
    cached: bool = False
    """Taken from the cache, with the verification of the same bytes."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An artifact that was asked for and could not be made."""

    source: str
    target: str
    precision: str
    path: str
    """Where it would have gone."""
    code: str
    """The class of failure, e.g. `verification`."""
    message: str
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class GateCheck:
    """One limit, and whether an artifact keeps it."""

    gate: str
    """`latency_ms`, `size_mb`, `nodes`, …; `regression.latency_ms` and so on against the baseline."""
    artifact: str
    """The artifact's path."""
    status: Literal["passed", "failed", "skipped"]
    message: str
    """The value, the limit and how far it is off, or why it was skipped."""
    value: float | None = None
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Latency:
    """The time of one inference, in milliseconds."""

    median: float
    low: float
    high: float
    """The 95 % interval of the median."""
    runtime: str
    """What ran it, with its version."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of an artifact for its gates."""

    artifact: str
    """The artifact's path."""
    nodes: int
    bytes: int
    latency: Latency | None = None
    memory_mb: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    artifacts: Sequence[Artifact] = ()
    seconds: float = 0.0
    error: InfconvError | None = None
    """The first error."""
    failures: Sequence[Failure] = ()
    gates: Sequence[GateCheck] = ()
    figures: Sequence[Figures] = ()
    notes: Sequence[str] = ()
    """What concerns the run as a whole."""

    @property
    def exit_code(self) -> int:
        """Return 0, or the error's."""
        return self.error.exit_code if self.error else 0

    @property
    def steps(self) -> list[StepResult]:
        """Return the steps of every artifact, in order."""
        return [step for artifact in self.artifacts for step in artifact.steps]

    @property
    def verification(self) -> dict[str, Verification]:
        """Return artifact path -> verification."""
        return {artifact.path: artifact.verification for artifact in self.artifacts}

    def as_json(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        error = self.error and {"code": self.error.code, "message": self.error.message, "hint": self.error.hint}
        return {
            "status": "failed" if self.error else "ok",
            "exit_code": self.exit_code,
            "error": error,
            "artifacts": [plain(artifact) for artifact in self.artifacts],
            "steps": [plain(step) for step in self.steps],
            "verification": {path: plain(v) for path, v in self.verification.items()},
            "failures": [plain(failure) for failure in self.failures],
            "gates": [plain(gate) for gate in self.gates],
            "figures": [plain(figures) for figures in self.figures],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }
