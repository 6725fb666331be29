"""JUnit XML: a test case for each artifact and for each gate, in a suite for each source."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from infconv.report import Report
from infconv.report._words import verdict
from infconv.result import Artifact, Failure, GateCheck

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow."""


def to_junit(report: Report) -> str:
    """Return the document; an artifact that differs, or a gate, is a failure, what stops the work an error."""
    result = report.result
    root = ET.Element("testsuites", name="infconv", time=f"{result.seconds:.3f}")
    sources = dict.fromkeys([*(a.source for a in result.artifacts), *(f.source for f in result.failures)])
    for source in sources:
        _suite(root, source, list(_cases(report, source)))
    if result.error is not None and not sources:
        case = _case("run", report.name, 0.0)
        _add(case, "error", result.error.code, str(result.error))
        _suite(root, report.name, [case])
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, name: str, cases: list[ET.Element]) -> None:
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite = ET.SubElement(root, "testsuite", name=_legal(name), tests=str(len(cases)))
    for attribute, kind in counts.items():
        suite.set(attribute, str(sum(case.find(kind) is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
    suite.extend(cases)


def _cases(report: Report, source: str) -> Iterator[ET.Element]:
    result = report.result
    for artifact in (a for a in result.artifacts if a.source == source):
        yield _made(artifact)
        for gate in (g for g in result.gates if g.artifact == artifact.path):
            yield _gate(gate, artifact)
    for failure in (f for f in result.failures if f.source == source):
        yield _failed(failure)


def _made(artifact: Artifact) -> ET.Element:
    case = _case(f"{artifact.source}.{artifact.target}.{artifact.precision}", artifact.path, _seconds(artifact))
    dropped = [f"dropped {step.name}: {step.reason}" for step in artifact.steps if step.status == "dropped"]
    ET.SubElement(case, "system-out").text = _legal("\n".join([verdict(artifact.verification), *dropped]))
    return case


def _gate(gate: GateCheck, artifact: Artifact) -> ET.Element:
    place = f"{artifact.source}.{artifact.target}.{artifact.precision}"
    case = _case(place, f"{artifact.path}: gate {gate.gate}", 0.0)
    if gate.status == "failed":
        _add(case, "failure", "gate", gate.message)
    elif gate.status == "skipped":
        ET.SubElement(case, "skipped", message=_legal(gate.message))
    return case


def _failed(failure: Failure) -> ET.Element:
    case = _case(f"{failure.source}.{failure.target}.{failure.precision}", failure.path, 0.0)
    kind = "failure" if failure.code == "verification" else "error"
    _add(case, kind, failure.code, f"{failure.message}\n{failure.hint}".strip())
    return case


def _case(place: str, name: str, seconds: float) -> ET.Element:
    return ET.Element("testcase", classname=_legal(place), name=_legal(name), time=f"{seconds:.3f}")


def _add(case: ET.Element, kind: str, code: str, text: str) -> None:
    element = ET.SubElement(case, kind, message=_legal(text.splitlines()[0]), type=code)
    element.text = _legal(text)


def _seconds(artifact: Artifact) -> float:
    return sum(step.seconds for step in artifact.steps)


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
