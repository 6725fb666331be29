"""What several kinds of report say in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from infconv.result import Artifact, GateCheck, Result, Verification


def headline(result: Result) -> str:
    """Return one sentence about the outcome: `2 of 3 artifacts made, 1 of 4 gates failed`."""
    asked = len(result.artifacts) + len(result.failures)
    parts = [f"{len(result.artifacts)} of {asked} artifacts made"] if asked else ["nothing was made"]
    checked = [gate for gate in result.gates if gate.status != "skipped"]
    failed = [gate for gate in checked if gate.status == "failed"]
    if failed:
        parts.append(f"{len(failed)} of {len(checked)} gates failed")
    elif checked:
        parts.append(f"{len(checked)} gates kept")
    return ", ".join(parts)


def title_of(artifact: Artifact) -> str:
    """Return `source → target precision`."""
    return f"{artifact.source} → {artifact.target} {artifact.precision}"


def verdict(verification: Verification) -> str:
    """Return what verification found, in a few words."""
    if verification.passed is None:
        return "not verified"
    worst = verification.worst()
    words = f"verified on {len(verification.samples)} samples"
    if worst is not None and worst.max_abs is not None:
        words += f", largest difference {worst.max_abs:.2g}"
    return words if verification.artifact_executed else f"{words} (of a stand-in)"


def size(count: float) -> str:
    """Return bytes for people: `97.8 MB`, `1.1 kB`."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


def worst_first(gates: Sequence[GateCheck]) -> list[GateCheck]:
    """Return the gates that failed, then those that were skipped, then the rest."""
    return sorted(gates, key=lambda gate: ("failed", "skipped", "passed").index(gate.status))


def latency(result: Result, artifact: Artifact) -> str:
    """Return the artifact's latency if it was measured: `12.3 ms (12.1 to 12.6)`."""
    found = next((f.latency for f in result.figures if f.artifact == artifact.path), None)
    return f"{found.median:.3g} ms ({found.low:.3g} to {found.high:.3g})" if found else ""


def notes_of(result: Result) -> list[str]:
    """Return what the user should know, each once."""
    notes = [note for a in result.artifacts for note in (*a.notes, a.verification.note) if note]
    return list(dict.fromkeys([*result.notes, *notes]))
