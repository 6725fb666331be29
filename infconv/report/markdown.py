"""A summary in Markdown, as continuous-integration services show it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from infconv.report import Report
from infconv.report._words import headline, latency, notes_of, size, title_of, verdict, worst_first
from infconv.result import StepResult

_SPECIAL = re.compile(r"([\\`*_\[\]|<>#~&])")
_SIGNS = {"passed": "✅", "failed": "❌", "skipped": "⏭️"}


def to_markdown(report: Report) -> str:
    """Return the summary: the outcome, a row for each artifact and gate, what failed and what to know."""
    result = report.result
    sign = _SIGNS["failed" if result.error else "passed"]
    lines = [f"## {sign} infconv: {_plain(report.name)}", "", f"{headline(result)}, {result.seconds:.1f} s.", ""]
    if result.artifacts:
        columns = ("artifact", "nodes", "size", "latency", "verification")
        rows = [
            (
                f"**{_plain(title_of(a))}**<br>{_plain(a.path)}",
                f"{a.nodes_before} → {a.nodes_after}",
                size(a.bytes),
                latency(result, a) or "-",
                _plain(verdict(a.verification)),
            )
            for a in result.artifacts
        ]
        lines += _table(columns, rows)
    if result.gates:
        rows = [
            (_SIGNS[g.status], f"`{g.gate}`", _plain(g.artifact), _plain(g.message)) for g in worst_first(result.gates)
        ]
        lines += ["### Gates", "", *_table(("", "gate", "artifact", "outcome"), rows)]
    lines += _failures(report)
    dropped = [(_plain(a.path), _plain(s.name), _plain(s.reason)) for a in result.artifacts for s in _dropped(a.steps)]
    if dropped:
        lines += ["### Dropped steps", "", *_table(("artifact", "step", "reason"), dropped)]
    lines += [f"- {_plain(note)}" for note in notes_of(result)]
    return "\n".join(lines).rstrip() + "\n"


def _failures(report: Report) -> list[str]:
    result = report.result
    told = [f"**{_plain(f.path)}**: {_plain(f.message)} {_plain(f.hint)}".rstrip() for f in result.failures]
    if result.error is not None and not told and result.error.code != "gate":
        told.append(f"{_plain(result.error.message)} {_plain(result.error.hint)}".rstrip())
    return ["### Failures", "", *[f"- {words}" for words in told], ""] if told else []


def _dropped(steps: Sequence[StepResult]) -> list[StepResult]:
    return [step for step in steps if step.status == "dropped"]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return [*head, *[f"| {' | '.join(row)} |" for row in rows], ""]


def _plain(text: str) -> str:
    """Return `text` on one line, shown as it is: what Markdown or HTML would read as their own is escaped."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
