"""What the user sees: progress on stderr, results on stdout. The only importer of rich."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from infconv.errors import InfconvError
    from infconv.result import Artifact, Result, StepResult, Verification


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def print_error(error: InfconvError) -> None:
    """Print the fact and the remedy on stderr."""
    red, dim, reset = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if _colours(sys.stderr) else ("", "", "")
    sys.stderr.write(f"{red}error:{reset} {error.message}\n")
    if error.hint:
        sys.stderr.write(f"{dim}{error.hint}{reset}\n")


def _colours(stream: Any) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ


def _console() -> Console:
    from rich.console import Console

    # Without a terminal rich assumes 80 columns and cuts paths; a log has no width.
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows as a table; `right` names the right-aligned columns."""
    table = _table(title, columns, right)
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def print_mapping(pairs: Mapping[str, Any]) -> None:
    """Print `key  value` lines, aligned."""
    width = max(map(len, pairs), default=0)
    for key, value in pairs.items():
        sys.stdout.write(f"{key:<{width}}  {value}\n")


# --- progress --------------------------------------------------------------------------------------------------


class Progress:
    """Shows what is being done and for how long: one live line on a terminal, nothing elsewhere unless verbose."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._live = sys.stderr.isatty() and not verbose
        self._start = time.perf_counter()

    def stage(self, name: str) -> None:
        """Show the stage."""
        self._say(name)

    def before(self, step: str) -> None:
        """Show the step."""
        self._say(step)

    def after(self, result: StepResult) -> None:
        """With -v, print what the step did."""
        if self._verbose:
            sys.stderr.write(f"          {result.changes} changes, {result.seconds:.2f} s {result.reason}\n")
        elif result.status == "dropped":
            self._clear()
            sys.stderr.write(f"dropped {result.name}: {result.reason}\n")

    def _say(self, text: str) -> None:
        elapsed = time.perf_counter() - self._start
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{elapsed:6.1f} s  {text} …")
            sys.stderr.flush()
        elif self._verbose:
            sys.stderr.write(f"{elapsed:6.1f} s  {text}\n")

    def _clear(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def close(self) -> None:
        """Remove the live line."""
        self._clear()


# --- the summary of a conversion -------------------------------------------------------------------------------


def print_result(result: Result) -> None:
    """Print a row for each artifact, its worst output error, and what the user should know."""
    if not result.artifacts:
        return
    columns = ["artifact", "target", "precision", "nodes", "size", "verified", "worst error", "compute"]
    rows = [_row(artifact) for artifact in result.artifacts]
    print_table("", columns, rows, right=("nodes", "size"))
    for artifact in result.artifacts:
        for step in artifact.steps:
            if step.status == "dropped":
                sys.stdout.write(f"dropped {step.name} ({artifact.target} {artifact.precision}): {step.reason}\n")
    for metric in [m for a in result.artifacts if (m := a.verification.metric)]:
        sys.stdout.write(f"metric {metric.metric}: {metric.before:.6g} → {metric.after:.6g}\n")
    kept = sum(gate.status == "passed" for gate in result.gates)
    if result.gates:
        sys.stdout.write(f"gates: {kept} of {len(result.gates)} kept\n")
    for gate in result.gates:
        if gate.status == "skipped":
            sys.stdout.write(f"gate {gate.gate} of {gate.artifact} skipped: {gate.message}\n")
    told = [*(n for a in result.artifacts for n in (*a.notes, a.verification.note) if n), *result.notes]
    for note in dict.fromkeys(told):
        sys.stdout.write(f"note: {note}\n")


def _row(artifact: Artifact) -> list[str]:
    compute = ", ".join(f"{count} {kind}{_share(artifact, kind)}" for kind, count in artifact.compute.items()) or "-"
    return [
        artifact.path,
        artifact.target,
        artifact.precision,
        f"{artifact.nodes_before} → {artifact.nodes_after}",
        size(artifact.bytes),
        _verdict(artifact.verification),
        _worst(artifact.verification),
        compute,
    ]


def _share(artifact: Artifact, kind: str) -> str:
    """Return the share of the multiplications that run in this type, where there are several."""
    if len(artifact.compute) < 2 or kind not in artifact.compute_share:
        return ""
    return f" ({100 * artifact.compute_share[kind]:.3g} %)"


def _verdict(verification: Verification) -> str:
    if verification.passed is None:
        return "not verified"
    return f"{len(verification.samples)} samples" + ("" if verification.artifact_executed else " (a stand-in)")


def _worst(verification: Verification) -> str:
    worst = verification.worst()
    if worst is None or worst.max_abs is None:
        return "-"
    if worst.sqnr_db is None:
        return f"0 ({worst.name})"
    return f"{worst.max_abs:.2g} abs, {worst.sqnr_db:.0f} dB ({worst.name})"


def size(count: float) -> str:
    """Return bytes for people: `97.8 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
