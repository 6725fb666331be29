"""One HTML page without anything outside of it. It is built as a tree, so that every text is escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from infconv import __version__
from infconv.report import Report
from infconv.report._words import headline, latency, notes_of, size, title_of, verdict, worst_first
from infconv.result import Artifact, Result

Child: TypeAlias = "ET.Element | str"
_STYLE = """
:root { --ink: #1c2430; --faint: #667085; --line: #dfe3ea; --good: #1a7f4b; --bad: #c02b2b; --bar: #3f6fd8;
  --page: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --faint: #98a2b3; --line: #353c48; --good: #4cc38a;
  --bad: #ff7a70; --bar: #7fa3f2; --page: #14181f } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 72rem; padding: 0 1.5rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem } h3 { font-size: 1rem }
p { margin: .4rem 0 } .faint { color: var(--faint) } .good { color: var(--good) } .bad { color: var(--bad) }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--faint); font-weight: 500; white-space: nowrap } .number { text-align: right; white-space: nowrap }
details { border-top: 1px solid var(--line); padding: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
code { overflow-wrap: anywhere } svg { max-width: 100% } rect { fill: var(--bar) }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
"""
_BAR, _LABEL, _WIDTH = 26, 330, 980


def to_html(report: Report) -> str:
    """Return the page: the outcome, artifacts, failures, gates, plots, then each artifact's steps and outputs."""
    result = report.result
    kind = "bad" if result.error else "good"
    body = _node(
        "body",
        _node("h1", _node("span", "✘ " if result.error else "✔ ", class_=kind), f"infconv: {report.name}"),
        _node("p", f"{headline(result)}, {result.seconds:.1f} s, infconv {__version__}", class_="faint"),
        *_failures(report),
        *_artifacts(result),
        *_gates(result),
        *_plots(result),
        *_details(result),
        *_notes(result),
    )
    head = _node("head", _meta(charset="utf-8"), _meta(name="viewport", content="width=device-width"))
    head.append(_node("title", f"infconv: {report.name}"))
    head.append(_node("style", _STYLE))
    page = _node("html", head, body, lang="en")
    return "<!doctype html>\n" + ET.tostring(page, encoding="unicode", method="html") + "\n"


def _node(tag: str, *children: Child, **attributes: str) -> ET.Element:
    """Return an element; texts among the children are texts, whatever they look like."""
    element = ET.Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    last: ET.Element | None = None
    for child in children:
        if isinstance(child, ET.Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return element


def _meta(**attributes: str) -> ET.Element:
    return _node("meta", **attributes)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Child]], numbers: Sequence[str] = ()) -> ET.Element:
    kinds = ["number" if column in numbers else "text" for column in columns]
    head = _node("tr", *(_node("th", column, class_=kind) for column, kind in zip(columns, kinds, strict=True)))
    lines = [_node("tr", *(_node("td", c, class_=k) for c, k in zip(row, kinds, strict=True))) for row in rows]
    return _node("div", _node("table", _node("thead", head), _node("tbody", *lines)), class_="wide")


def _failures(report: Report) -> Iterator[ET.Element]:
    result = report.result
    told = [(failure.path, failure.message, failure.hint) for failure in result.failures]
    if result.error is not None and not told and result.error.code != "gate":
        told = [(report.name, result.error.message, result.error.hint)]
    if told:
        yield _node("h2", "Failures")
        yield _table(("artifact", "what happened", "what to do"), [[_node("code", p), m, h] for p, m, h in told])


def _artifacts(result: Result) -> Iterator[ET.Element]:
    if not result.artifacts:
        return
    yield _node("h2", "Artifacts")
    columns = ("artifact", "file", "nodes", "size", "latency", "verification")
    rows = [
        [
            title_of(a),
            _node("code", a.path),
            f"{a.nodes_before:,} → {a.nodes_after:,}",
            size(a.bytes),
            latency(result, a) or "-",
            _node("span", verdict(a.verification), class_="good" if a.verification.passed else "faint"),
        ]
        for a in result.artifacts
    ]
    yield _table(columns, rows, ("nodes", "size", "latency"))


def _gates(result: Result) -> Iterator[ET.Element]:
    if not result.gates:
        return
    kinds = {"passed": "good", "failed": "bad", "skipped": "faint"}
    yield _node("h2", "Gates")
    rows: list[list[Child]] = [
        [_node("span", g.status, class_=kinds[g.status]), _node("code", g.gate), _node("code", g.artifact), g.message]
        for g in worst_first(result.gates)
    ]
    yield _table(("", "gate", "artifact", "outcome"), rows)


def _plots(result: Result) -> Iterator[ET.Element]:
    if not result.artifacts:
        return
    yield _node("h2", "Size")
    sources = {f"{a.source} (weights of the source)": a.source_bytes for a in result.artifacts}
    sizes = [*sources.items(), *((title_of(a), a.bytes) for a in result.artifacts)]
    yield _bars([(label, count, size(count)) for label, count in sizes])
    yield _node("h2", "Nodes")
    before = {f"{a.source} (before)": a.nodes_before for a in result.artifacts}
    nodes = [*before.items(), *((title_of(a), a.nodes_after) for a in result.artifacts)]
    yield _bars([(label, count, f"{count:,}") for label, count in nodes])
    titles = {a.path: title_of(a) for a in result.artifacts}
    timed = [(titles[f.artifact], f.latency.median) for f in result.figures if f.latency and f.artifact in titles]
    if timed:
        yield _node("h2", "Latency")
        yield _bars([(label, median, f"{median:.3g} ms") for label, median in timed])


def _bars(rows: Sequence[tuple[str, float, str]]) -> ET.Element:
    """Return a bar for each (label, value, text)."""
    most = max((value for _, value, _ in rows), default=0) or 1
    longest = _WIDTH - _LABEL - 110
    parts: list[ET.Element] = []
    for number, (label, value, text) in enumerate(rows):
        top, length = number * _BAR, max(1.0, longest * value / most)
        shown = label if len(label) <= 48 else f"{label[:47]}…"
        parts += [
            _node("text", shown, x="0", y=f"{top + 17}"),
            _node(
                "rect",
                x=f"{_LABEL}",
                y=f"{top + 5}",
                width=f"{length:.1f}",
                height=f"{_BAR - 10}",
                rx="2",
                fill="#3f6fd8",
            ),
            _node("text", text, x=f"{_LABEL + length + 8:.1f}", y=f"{top + 17}"),
        ]
    height = f"{len(rows) * _BAR}"
    return _node("svg", *parts, width=f"{_WIDTH}", height=height, viewBox=f"0 0 {_WIDTH} {height}", role="img")


def _details(result: Result) -> Iterator[ET.Element]:
    if result.artifacts:
        yield _node("h2", "Steps and outputs")
    for artifact in result.artifacts:
        parts = [*_steps(artifact), *_outputs(artifact)]
        yield _node("details", _node("summary", title_of(artifact)), *parts)


def _steps(artifact: Artifact) -> Iterator[ET.Element]:
    yield _node("h3", "Steps")
    kinds = {"applied": "good", "dropped": "bad"}
    columns = ("step", "status", "changes", "nodes after", "seconds", "reason")
    rows: list[list[Child]] = [
        [
            _node("code", step.name),
            _node("span", step.status, class_=kinds[step.status]),
            f"{step.changes:,}",
            f"{step.nodes:,}",
            f"{step.seconds:.3f}",
            step.reason,
        ]
        for step in artifact.steps
        if step.status != "unchanged"
    ]
    yield _table(columns, rows, ("changes", "nodes after", "seconds"))
    idle = dict.fromkeys(step.name for step in artifact.steps if step.status == "unchanged")
    if idle:
        yield _node("p", f"Nothing to do for {', '.join(idle)}.", class_="faint")


def _outputs(artifact: Artifact) -> Iterator[ET.Element]:
    verification = artifact.verification
    yield _node("h3", "Verification")
    if verification.passed is None:
        yield _node("p", verification.note or "not verified")
        return
    yield _node("p", f"{verification.reference} beside {verification.executed}", class_="faint")
    columns = ("sample", "output", "largest difference", "signal to noise", "")
    rows: list[list[Child]] = [
        [
            sample.label,
            _node("code", output.name),
            "-" if output.max_abs is None else f"{output.max_abs:.3g}",
            "exact" if output.sqnr_db is None else f"{output.sqnr_db:.1f} dB",
            _node("span", "agrees" if output.ok else output.reason, class_="good" if output.ok else "bad"),
        ]
        for sample in verification.samples
        for output in sample.outputs
    ]
    yield _table(columns, rows, ("largest difference", "signal to noise"))
    if verification.metric is not None:
        metric = verification.metric
        yield _node("p", f"{metric.metric}: {metric.before:.6g} in the source, {metric.after:.6g} in the artifact")


def _notes(result: Result) -> Iterator[ET.Element]:
    notes = notes_of(result)
    if notes:
        yield _node("h2", "Notes")
        yield _node("ul", *(_node("li", note) for note in notes))
