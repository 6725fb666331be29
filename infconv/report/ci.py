"""What continuous-integration services understand: GitHub's annotations and its summary file."""

from __future__ import annotations

import os
from pathlib import Path

from infconv.errors import ResourceError
from infconv.report import Report

_LONGEST_SUMMARY = 1 << 20
"""Bytes that GitHub takes for a step."""


def workflow_commands(report: Report) -> list[str]:
    """Return a workflow command for each failure, failed gate and dropped step; none outside of GitHub Actions.

    The format is that of github.com/actions/toolkit, packages/core/src/command.ts.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return []
    result = report.result
    told = [("error", f"{f.target} {f.precision}", f"{f.path}: {f.message} {f.hint}") for f in result.failures]
    if result.error is not None and not told and result.error.code != "gate":
        told.append(("error", result.error.code, f"{result.error.message} {result.error.hint}"))
    gates = [gate for gate in result.gates if gate.status == "failed"]
    told += [("error", f"gate {gate.gate}", f"{gate.artifact}: {gate.message}") for gate in gates]
    for artifact in result.artifacts:
        dropped = [step for step in artifact.steps if step.status == "dropped"]
        told += [("warning", f"dropped {step.name}", f"{artifact.path}: {step.reason}") for step in dropped]
    return [_command(level, title, text.strip(), report.name) for level, title, text in told]


def _command(level: str, title: str, text: str, name: str) -> str:
    file = f"file={_property(os.path.relpath(name))}," if Path(name).is_file() else ""
    return f"::{level} {file}title={_property('infconv ' + title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def append_summary(report: Report) -> None:
    """Append the Markdown summary to the file that $GITHUB_STEP_SUMMARY names, if it does. Raises ResourceError."""
    from infconv.report.markdown import to_markdown

    named = os.environ.get("GITHUB_STEP_SUMMARY")
    if not named:
        return
    text = to_markdown(report)
    try:
        with Path(named).open("a", encoding="utf-8") as stream:
            stream.write(text if len(text.encode()) <= _LONGEST_SUMMARY else text[: _LONGEST_SUMMARY // 4])
    except OSError as error:
        raise ResourceError(f"Cannot write the summary '{named}': {error.strerror}.") from error
