"""Asking the TensorRT worker: its answer, its log records, and what its death means."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infconv.errors import DependencyError, InfconvError, ResourceError, SourceError, UnsupportedError, UsageError

logger = logging.getLogger("infconv.tensorrt")

NAMED = 3
"""How many refused nodes an error spells out; of the rest it gives the operators."""

WORKER = Path(__file__).with_name("_tensorrt_worker.py")
# TensorRT's severities 0 to 4. What stops a build is raised with its reason, so its error records are no second
# message; its warnings are mostly advice for writing C++ ("Make sure input ids has Int64 binding").
LEVELS = (logging.INFO, logging.INFO, logging.INFO, logging.DEBUG, logging.DEBUG)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An ONNX node that TensorRT does not accept."""

    node: str
    """The node's name; `-> tensor` when it has none; a model input's or output's name when its type is refused."""
    op: str
    reason: str

    def __str__(self) -> str:
        text = f"{self.op} '{self.node}': {self.reason}" if self.op else self.reason
        return text if text.endswith((".", "!", "?")) else f"{text}."


def ask(request: Mapping[str, Any], module: str, label: str, timeout: float | None) -> dict[str, Any]:
    """Run the worker with the TensorRT `module` on `request` and return its answer; `label` names TensorRT in errors.

    Raises ResourceError (`timeout` seconds passed, killed for memory), UnsupportedError (crashed), DependencyError
    (import failed).
    """
    # Errors always: when the worker dies, its last words are in them.
    threshold = max([1, *(severity for severity, level in enumerate(LEVELS) if logger.isEnabledFor(level))])
    with tempfile.TemporaryDirectory(prefix="infconv-tensorrt-") as folder:
        answer = Path(folder, "answer.json")
        message = {**request, "module": module, "log_threshold": threshold, "answer": str(answer)}
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(WORKER)],  # -P: the script's own folder is no place to import from
                input=json.dumps(message),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"{label} took longer than {timeout:g} s.", "Allow more time.") from error
        records = log_records(done.stdout)
        if done.returncode != 0 or not answer.is_file():
            raise _death(done.returncode, records, label)
        return json.loads(answer.read_text(encoding="utf-8"))


def log_records(output: str) -> list[str]:
    """Send the worker's records to logging; what C++ printed by itself goes to debug. Return all as text."""
    records = [_record(line) for line in output.splitlines()]
    for level, text in records:
        logger.log(level, "%s", text)
    return [text for _, text in records]


def _record(line: str) -> tuple[int, str]:
    """Return the logging level and text of one line of the worker's output."""
    if line.startswith("["):
        try:
            severity, text = json.loads(line)
            return LEVELS[int(severity)], str(text)
        except (ValueError, TypeError, IndexError):  # C++ output that only looks like a record
            return logging.DEBUG, line
    return logging.DEBUG, line


def raise_refusal(answer: Mapping[str, Any]) -> None:
    """Raise the error that `answer` carries, naming up to NAMED nodes; return when it carries none."""
    error: Mapping[str, Any] | None = answer.get("error")
    if error is None:
        return
    refused = [Refusal(**refusal) for refusal in error["refusals"]]
    text = " ".join([error["message"], *(str(refusal) for refusal in refused[:NAMED])])
    if rest := refused[NAMED:]:
        operators = sorted({refusal.op for refusal in rest})
        text += f" And {len(rest)} more ({', '.join(operators)})."
    if error["kind"] == "build" and any(word in text.lower() for word in ("workspace", "out of memory", "outofmemory")):
        raise ResourceError(text, "Give a larger workspace_bytes, or build for smaller maximum shapes.")
    classes: dict[str, type[InfconvError]] = {
        "usage": UsageError,
        "source": SourceError,
        "disk": ResourceError,
        "memory": ResourceError,
        "dependency": DependencyError,
    }
    raise classes.get(error["kind"], UnsupportedError)(text, error["hint"])


def _death(code: int, records: Sequence[str], label: str) -> InfconvError:
    """Return the error for a worker that ended without an answer."""
    last = f" Last message: {records[-1]}" if records else ""
    if code == -9:  # SIGKILL, a name that Windows does not have
        return ResourceError(f"{label} was killed, most likely for memory.", "Use a machine with more memory.")
    if code < 0:
        return UnsupportedError(
            f"{label} crashed on this model ({signal.Signals(-code).name}).{last}",
            "This is a fault of TensorRT. Attention of opset 23 is a known cause: lower it to MatMul and Softmax.",
        )
    if any("ModuleNotFoundError" in record or "ImportError" in record for record in records):
        return DependencyError(f"{label} cannot be imported.{last}", "Install it again.")
    return InfconvError(f"The TensorRT worker failed (exit code {code}).{last}")
