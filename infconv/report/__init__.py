"""Reports of a run: HTML, JSON, Markdown, JUnit XML and SARIF, by the suffix of the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from infconv import texts
from infconv.errors import DependencyError, ResourceError, UsageError

if TYPE_CHECKING:
    from infconv.result import Result


@dataclasses.dataclass(frozen=True)
class Report:
    """What reports are made from."""

    name: str
    """What was run: a pipeline file, or a source."""
    result: Result


def render(report: Report, suffix: str) -> str:
    """Return the text of the kind of report that `suffix` stands for."""
    return _renderer(suffix)(report)


def write_reports(paths: Sequence[str], report: Report) -> None:
    """Write the report to each path, complete or not at all. Raises ResourceError for the first that cannot be."""
    from infconv import remote

    failed: list[ResourceError] = []
    for path in dict.fromkeys(paths):
        text = render(report, texts.report_kind(texts.report(path)))
        try:
            remote.write_text(path, text)
        except (UsageError, ResourceError, DependencyError, OSError) as error:
            why = getattr(error, "message", str(error))
            failed.append(ResourceError(f"The report '{path}' cannot be written: {why}", "Choose another --report."))
    if failed:
        raise failed[0]


def _renderer(suffix: str) -> Callable[[Report], str]:
    if suffix == ".html":
        from infconv.report.html import to_html

        return to_html
    if suffix == ".md":
        from infconv.report.markdown import to_markdown

        return to_markdown
    if suffix == ".xml":
        from infconv.report.junit import to_junit

        return to_junit
    if suffix == ".sarif":
        from infconv.report.sarif import to_sarif

        return to_sarif
    return _to_json


def _to_json(report: Report) -> str:
    return json.dumps(report.result.as_json(), indent=1, ensure_ascii=False) + "\n"
