"""Reports: what each kind promises to its reader, and that no text of a model or a user breaks out of its place."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from infconv.compare import OutputError
from infconv.errors import GateError, ResourceError, SourceError, UsageError
from infconv.report import Report, ci, render, write_reports
from infconv.result import (
    Artifact,
    Failure,
    Figures,
    GateCheck,
    Latency,
    Result,
    SampleCheck,
    StepResult,
    Verification,
)

NASTY = "<script>alert('x')</script> | `a` & \"b\" ]]> \x07 %\n::error::x"


def artifact(name: str = "net", words: str = "differs") -> Artifact:
    output = OutputError("y", ok=True, max_abs=1e-6, sqnr_db=120.0)
    return Artifact(
        target="onnxruntime",
        precision="fp16",
        path=f"out/{name}.onnx",
        files=[f"out/{name}.onnx"],
        manifest=f"out/{name}.onnx.infconv.json",
        bytes=2_000_000,
        nodes_before=120,
        nodes_after=60,
        source_bytes=4_000_000,
        compute={"float16": 10},
        compute_evidence="read back",
        verification=Verification(True, "torch", "onnxruntime", samples=[SampleCheck("batch=2", [output])]),
        steps=[
            StepResult("fuse-gelu", "applied", 3, 0.01, nodes=60),
            StepResult("fold-shapes", "dropped", 0, 0.02, words, 60),
        ],
        notes=[words],
        source=name,
    )


def failed_run(words: str = "differs") -> Result:
    """Return a run with everything: a good artifact, a gate that was kept, one not, one skipped, and a failure."""
    made = artifact(words=words)
    return Result(
        [made],
        seconds=2.5,
        error=GateError(words),
        failures=[Failure("net", "openvino", "fp32", "out/net.xml", "verification", words, "hint")],
        gates=[
            GateCheck("size_mb", made.path, "passed", "it is 2 MB", 2.0, 3.0),
            GateCheck("latency_ms", made.path, "failed", words, 14.0, 12.0),
            GateCheck("regression.latency_ms", made.path, "skipped", words),
        ],
        figures=[Figures(made.path, 60, 2_000_000, Latency(14.0, 13.9, 14.2, "onnxruntime 1"))],
        notes=[words],
    )


KINDS = (".html", ".json", ".md", ".xml", ".sarif")


# --- JUnit -----------------------------------------------------------------------------------------------------------


def test_junit_has_a_case_for_each_artifact_and_gate() -> None:
    root = ET.fromstring(render(Report("p.yaml", failed_run()), ".xml"))
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases == {
        "out/net.onnx": ["system-out"],
        "out/net.onnx: gate size_mb": [],
        "out/net.onnx: gate latency_ms": ["failure"],
        "out/net.onnx: gate regression.latency_ms": ["skipped"],
        "out/net.xml": ["failure"],
    }
    for element in (root, *root.iter("testsuite")):
        counts = [element.get(name) for name in ("tests", "failures", "errors", "skipped")]
        assert counts == ["5", "2", "0", "1"]


def test_a_run_that_could_not_start_is_one_error() -> None:
    root = ET.fromstring(render(Report("p.yaml", Result(error=SourceError("gone", "look"))), ".xml"))
    (case,) = root.iter("testcase")
    assert (case.get("name"), case[0].tag, case[0].get("type")) == ("p.yaml", "error", "source")


# --- SARIF -----------------------------------------------------------------------------------------------------------

# What sarif-schema-2.1.0.json requires of the parts that are used here, and the values that it allows.
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LOCATION = {
    "type": "object",
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "properties": {"uri": {"type": "string", "pattern": r"^[^\s<>\"\\^`{|}]*$"}},
                },
                "region": {"type": "object", "properties": {"startLine": {"type": "integer", "minimum": 1}}},
            },
        }
    },
}
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "properties": {"shortDescription": TEXT},
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["executionSuccessful"],
                            "properties": {"exitCode": {"type": "integer"}},
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message"],
                            "properties": {
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": TEXT,
                                "locations": {"type": "array", "items": LOCATION},
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("name", ["p.yaml", "sub folder/p.yaml", "/elsewhere/p.yaml", "module:make"])
def test_sarif_is_valid_and_has_a_result_for_each_problem(name: str) -> None:
    document = json.loads(render(Report(name, failed_run()), ".sarif"))
    assert [error.message for error in Draft7Validator(SARIF).iter_errors(document)] == []
    (run,) = document["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    found = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert found == [
        ("verification", "error"),
        ("gate", "error"),
        ("gate-skipped", "note"),
        ("dropped-step", "warning"),
    ]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    assert run["invocations"] == [{"executionSuccessful": False, "exitCode": 6}]


def test_sarif_of_a_good_run_has_no_results() -> None:
    made = dataclasses.replace(artifact(), steps=[])
    (run,) = json.loads(render(Report("p.yaml", Result([made])), ".sarif"))["runs"]
    assert (run["results"], run["invocations"][0]["executionSuccessful"]) == ([], True)


# --- HTML and Markdown -----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser makes of a page: its tags, and addresses of anything outside of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href", "action"}]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_html_shows_everything_and_needs_nothing_else() -> None:
    page = Page(render(Report("p.yaml", failed_run()), ".html"))
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 3
    for words in ("fuse-gelu", "fold-shapes", "120 → 60", "2.0 MB", "14 ms (13.9 to 14.2)", "batch=2", "out/net.xml"):
        assert words in page.words, words


def test_markdown_has_a_row_for_each_artifact_and_gate() -> None:
    text = render(Report("p.yaml", failed_run()), ".md")
    assert text.startswith("## ❌ infconv: p.yaml\n\n1 of 2 artifacts made, 1 of 2 gates failed, 2.5 s.")
    assert "| **net → onnxruntime fp16**<br>out/net.onnx | 120 → 60 | 2.0 MB | 14 ms (13.9 to 14.2) |" in text
    assert "| ❌ | `latency_ms` | out/net.onnx | differs |" in text
    assert "- **out/net.xml**: differs hint" in text


# --- all kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", KINDS)
def test_texts_do_not_break_out_of_their_place(suffix: str) -> None:
    text = render(Report(NASTY, failed_run(NASTY)), suffix)
    if suffix == ".xml":
        assert "script" not in {element.tag for element in ET.fromstring(text).iter()}
    elif suffix == ".html":
        assert "script" not in Page(text).tags
        assert "<script>alert('x')</script>" in Page(text).words
    elif suffix == ".md":
        assert "<script>" not in text.replace("\\<script\\>", "")
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 5, 6}, "dropped steps, gates, artifacts"
    else:
        json.loads(text)


@pytest.mark.parametrize("result", [Result(), Result(error=SourceError("gone")), Result([artifact()])])
@pytest.mark.parametrize("suffix", KINDS)
def test_every_outcome_can_be_reported(suffix: str, result: Result) -> None:
    assert render(Report("p.yaml", result), suffix)


def test_reports_are_written_whole_and_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    paths = [str(tmp_path / "new" / f"report{suffix}") for suffix in KINDS]
    write_reports(paths, Report("p.yaml", failed_run()))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(f"report{suffix}" for suffix in KINDS)
    with pytest.raises(UsageError, match="no known suffix"):
        write_reports(["a.pdf"], Report("p.yaml", Result()))


def test_a_report_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "way.md").mkdir()
    with pytest.raises(ResourceError, match="way.md"):
        write_reports([str(tmp_path / "way.md"), str(tmp_path / "a.md")], Report("p.yaml", Result()))
    assert (tmp_path / "a.md").exists()


# --- GitHub ----------------------------------------------------------------------------------------------------------


def test_annotations_are_for_github_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert ci.workflow_commands(Report("p.yaml", failed_run())) == []


def test_annotations_name_the_file_and_stay_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").touch()
    lines = ci.workflow_commands(Report("p.yaml", failed_run(NASTY)))
    assert [line.split("::")[1].split(" ")[0] for line in lines] == ["error", "error", "warning"]
    assert lines[1].startswith("::error file=p.yaml,title=infconv gate latency_ms::out/net.onnx: <script>")
    assert all("\n" not in line and "%25%0A" in line for line in lines)


def test_the_summary_is_appended_where_it_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    ci.append_summary(Report("p.yaml", failed_run()))
    assert file.read_text().startswith("before\n## ❌ infconv: p.yaml")
