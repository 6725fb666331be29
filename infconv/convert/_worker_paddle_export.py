"""paddle2onnx in a process of its own, which it may abort, and what its log says then.

The exporter is given the program without the parameters: these are attached to its result as external data, so that a
model of any size takes no memory, and the parameters keep their names. Where an operator needs the values of its
parameters (a quantized one), the exporter is run again with them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ._worker import OUT_OF_MEMORY, Request, WorkerError
from ._worker_paddle_program import STRUCTURE, Op, Program, op_name
from ._worker_paddle_weights import attach, free_names

OPSET, NEWEST_OPSET = 17, 21
"""What is written by default, and the newest that paddle2onnx 2.1 writes: a newer one aborts it."""
LARGEST_BYTES = (2 << 30) - (64 << 20)
"""Of parameters that the exporter itself can write: protobuf's limit, with room for the graph."""
DATA = "model.onnx.data"

_PR_SET_PDEATHSIG = 1
_UNSUPPORTED = "Due to the unsupported operators"
_STARTED = re.compile(r"Start export (?:pd_op|custom_op)\.(\w+), op_id")
_FINISHED = re.compile(r"Finish export (?:pd_op|custom_op)\.(\w+), op_id")
_ERROR = re.compile(r"\[ERROR\]\[Paddle2ONNX\]\s*(.+)")


class ExportError(Exception):
    """The exporter ended without a model; `log` is what it printed."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def to_onnx(program: Program, request: Request, parameters: str | None, folder: Path) -> tuple[Any, list[Any]]:
    """Return the onnx.ModelProto of `program` with its parameters (in `folder`/DATA), and the attempts.

    Raises WorkerError: unsupported with the operator and its layer, resource.
    """
    program.write(folder / "program.json")
    opset = min(request["opset"] or OPSET, NEWEST_OPSET)
    attempts: list[Any] = []
    size = Path(parameters).stat().st_size if parameters else 0
    error: ExportError | None = None
    for road in ("program", "program-with-parameters"):
        if road != "program" and (not parameters or size > LARGEST_BYTES):
            continue
        started = time.monotonic()
        try:
            model = _export(folder, opset, parameters if road != "program" else None)
            if road == "program" and parameters:
                attach(model, program.parameters(), parameters, Path(request["workdir"]), DATA)
            _refuse_incomplete(model)
        except ExportError as found:
            error = found
            attempts.append(_attempt(road, started, error))
        else:
            attempts.append(_attempt(road, started, None))
            return model, attempts
        if _UNSUPPORTED in error.log:
            break
    assert error is not None
    raise _explained(error, program, folder)


def _attempt(road: str, started: float, error: ExportError | None) -> dict[str, Any]:
    seconds = round(time.monotonic() - started, 3)
    return {"road": road, "ok": error is None, "seconds": seconds, "error": str(error) if error else None}


def _export(folder: Path, opset: int, parameters: str | None, program: str = "program.json") -> Any:
    """Return what paddle2onnx makes of the program file. Raises ExportError, WorkerError (resource)."""
    target = folder / "exported.onnx"
    target.unlink(missing_ok=True)

    def export() -> None:
        from paddle2onnx import paddle2onnx_cpp2py_export as exporter  # pyright: ignore[reportMissingImports]

        # program, parameters, opset, upgrade it where needed, verbose (the log then names the operator), checker,
        # experimental operators, optimizer (infconv's passes do that), custom operators, backend, two files, fp16
        words = (str(folder / program), parameters or "", opset, True, True, False, True, False, {}, "onnxruntime")
        target.write_bytes(exporter.export(*words, "", "", False))

    in_child(export, folder / "paddle2onnx.log")
    if not target.is_file() or not target.stat().st_size:
        raise ExportError("paddle2onnx wrote an empty file", _read(folder / "paddle2onnx.log"))
    return onnx.load(str(target))


def in_child(function: Callable[[], None], log: Path) -> None:
    """Run `function` in a forked child that may abort; what it prints goes to `log`.

    Raises ExportError when it fails, WorkerError (resource) when memory ran out.
    """
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(function, log)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return
    words = _read(log)
    if status == -signal.SIGKILL or OUT_OF_MEMORY.search(words):
        raise WorkerError("resource", "Memory ran out in paddle2onnx.", "Raise --memory-limit, or free memory.")
    raise ExportError(_fact(words, status), words)


def _be_child(function: Callable[[], None], log: Path) -> None:
    code = 1
    try:
        faulthandler.disable()
        if sys.platform.startswith("linux"):  # end with the worker, which a time-out kills
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        function()
        code = 0
    except BaseException:  # whatever it is, the log tells it to the parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _fact(log: str, status: int) -> str:
    found = _ERROR.search(log)
    if found:
        return found.group(1).strip().rstrip(".")
    if status < 0:
        return f"it crashed ({signal.Signals(-status).name})"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else f"it ended with exit code {status}"


def _refuse_incomplete(model: Any) -> None:
    """Raise ExportError for a model that the exporter called done and that is not."""
    missing = sorted(free_names(model.graph))
    if missing:
        raise ExportError(f"its result reads '{missing[0]}', which nothing computes", "")


# --- what went wrong, in the user's terms ------------------------------------------------------------------------


def _explained(error: ExportError, program: Program, folder: Path) -> WorkerError:
    if _UNSUPPORTED in error.log:
        return _unsupported(_unknown_operators(program, folder), program)
    op = _last_started(error.log, program)
    if op is None:
        return WorkerError("unsupported", f"paddle2onnx cannot convert this model: {error}.", _remedy("the operator"))
    fact = f"paddle2onnx cannot convert operator '{op_name(op)}'{_place(op, program)}: {error}."
    return WorkerError("unsupported", fact, _remedy(f"'{op_name(op)}'"))


def _unsupported(ops: list[Op], program: Program) -> WorkerError:
    named = [f"'{op_name(op)}'{_place(op, program)}" for op in ops]
    if not named:
        return WorkerError("unsupported", "paddle2onnx lacks an operator of this model.", _remedy("the operator"))
    few = ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")
    return WorkerError(
        "unsupported",
        f"paddle2onnx has no conversion for operator{'s' if len(named) > 1 else ''} {few}.",
        _remedy(f"'{op_name(ops[0])}'"),
    )


def _remedy(name: str) -> str:
    return (
        f"Compute {name} from other operators in the model, map it yourself (--source-option handlers=MODULE, see "
        "docs/custom-operators.md), or try another paddle2onnx (--python)."
    )


def _place(op: Op, program: Program) -> str:
    layer = program.layer_of(op)
    return f" ({layer})" if layer else ""


def _unknown_operators(program: Program, folder: Path) -> list[Op]:
    """Return the first operator of each kind that paddle2onnx does not know: it says only that there is one."""
    unknown: list[Op] = []
    first: dict[str, Op] = {}
    for op in program.all_ops():
        first.setdefault(op["#"], op)
    for name, op in first.items():
        if "." not in name or name.startswith(STRUCTURE) or op.get("regions"):
            continue
        asked = program.alone(op)
        if asked is None:
            continue
        asked.write(folder / "asked.json")
        try:
            _export(folder, OPSET, None, "asked.json")
        except ExportError as error:
            if _UNSUPPORTED in error.log:
                unknown.append(op)
    return unknown


def _last_started(log: str, program: Program) -> Op | None:
    """Return the operator that the exporter was at when it ended."""
    started = _STARTED.findall(log)
    if not started or len(started) == len(_FINISHED.findall(log)):
        return None
    same = [op for op in program.all_ops() if op_name(op) == started[-1]]
    return same[min(started.count(started[-1]), len(same)) - 1] if same else None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
