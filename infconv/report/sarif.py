"""SARIF 2.1.0: a result for each error, failed gate and dropped step (docs.oasis-open.org/sarif/sarif/v2.1.0)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infconv import __version__
from infconv.errors import InfconvError
from infconv.report import Report

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {kind.code: kind.__doc__ or "" for kind in (InfconvError, *InfconvError.__subclasses__())} | {
    "bug": "A bug in infconv.",
    "dropped-step": "A step broke the result and was left out.",
    "gate-skipped": "A gate could not be checked.",
}


def to_sarif(report: Report) -> str:
    """Return the document, with one run."""
    result = report.result
    found = [_result(f.code, "error", f"{f.path}: {f.message} {f.hint}", report.name) for f in result.failures]
    if result.error is not None and not found and result.error.code != "gate":
        found.append(_result(result.error.code, "error", f"{result.error.message} {result.error.hint}", report.name))
    for gate in result.gates:
        if gate.status != "passed":
            rule, level = ("gate", "error") if gate.status == "failed" else ("gate-skipped", "note")
            found.append(_result(rule, level, f"{gate.artifact}: {gate.gate}: {gate.message}", report.name))
    for artifact in result.artifacts:
        for step in artifact.steps:
            if step.status == "dropped":
                words = f"{artifact.path}: {step.name} was dropped: {step.reason}"
                found.append(_result("dropped-step", "warning", words, report.name))
    driver = {
        "name": "infconv",
        "version": __version__,
        "rules": [{"id": code, "shortDescription": {"text": text.splitlines()[0]}} for code, text in _RULES.items()],
    }
    invocation = {"executionSuccessful": result.error is None, "exitCode": result.exit_code}
    run = {"tool": {"driver": driver}, "invocations": [invocation], "results": found}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _result(code: str, level: str, text: str, name: str) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(name)}}}
    location["physicalLocation"]["region"] = {"startLine": 1}
    rule = code if code in _RULES else "bug"
    return {
        "ruleId": rule,
        "ruleIndex": list(_RULES).index(rule),
        "level": level,
        "message": {"text": text.strip()},
        "locations": [location],
    }


def _uri(name: str) -> str:
    """Return a relative reference where it is below the current folder, as code hosts need it; else an absolute one."""
    path = Path(os.path.relpath(name)) if Path(name).is_absolute() else Path(name)
    return quote(path.as_posix()) if ".." not in path.parts else Path(name).absolute().as_uri()
