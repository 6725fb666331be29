"""Running a finished engine on this machine's GPU, where there is one."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.convert import _tensorrt
from infconv.convert._tensorrt_inspect import read_plan
from infconv.convert._tensorrt_process import ask, raise_refusal
from infconv.errors import DependencyError, UnsupportedError

if TYPE_CHECKING:
    from infconv.convert._tensorrt import Runtime
    from infconv.convert._tensorrt_session import Session


def source_beside(engine: Path) -> Path:
    """Return where the ONNX file that `engine` was built from lies when it was kept."""
    return engine.with_name(f"{engine.name}.onnx")


def runtime_for(engine: Path) -> Runtime:
    """Return the installed TensorRT that reads this engine file, when its GPU is here.

    Raises UnsupportedError (no GPU, or another one), SourceError (no engine), DependencyError (no TensorRT).
    """
    plan = read_plan(engine)
    gpu = _tensorrt.local_gpu()
    if gpu is None or not _tensorrt.runs_here(plan):
        wanted = f" ({', '.join(plan.targets)})" if plan is not None and plan.targets else ""
        found = "this machine has none" if gpu is None else f"this machine's is {gpu}"
        raise UnsupportedError(
            f"'{engine}' is a TensorRT engine, which only runs on the GPU that it is for{wanted}; {found}.",
            _remedy(engine),
        )
    with engine.open("rb") as file:
        return _tensorrt.runtime("rtx" if file.read(1) == b"v" else "classic")


def open_session(engine: Path) -> tuple[str, Session]:
    """Open the engine in *this* process, which TensorRT may end; return (what runs it, the session).

    Raises what `run_engine` raises.
    """
    import importlib

    from infconv.convert._tensorrt_session import NotRun, Session
    from infconv.convert._tensorrt_worker import NO_BINDINGS, make_logger

    installed = runtime_for(engine)
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise DependencyError(*NO_BINDINGS) from error
    trt = importlib.import_module(installed.module)
    log = make_logger(trt, -1)
    try:
        return f"{installed} on {_tensorrt.local_gpu()}", Session(trt, cuda, log, str(engine))
    except NotRun as error:
        raise UnsupportedError(" ".join([error.message, *log.errors[-1:]]), error.hint) from error


def _remedy(engine: Path) -> str:
    kept = source_beside(engine)
    if kept.is_file():
        return f"Use the exact ONNX that it was built from, '{kept}', or a machine with such a GPU."
    return (
        "Use a machine with such a GPU, or the exact ONNX that the engine was built from: convert again with "
        f"--option keep_onnx=true, which leaves it beside the engine as '{kept.name}'."
    )


def run_engine(engine: Path, samples: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Run the engine file on each sample, in the TensorRT worker; return (what ran it, the outputs by name).

    Raises what `runtime_for` raises, UsageError (an input is missing, or outside the engine's range), ResourceError
    (GPU memory), and DependencyError without cuda-bindings.
    """
    installed = runtime_for(engine)
    with tempfile.TemporaryDirectory(prefix="infconv-tensorrt-") as folder:
        given, found = Path(folder, "samples.pickle"), Path(folder, "outputs.pickle")
        given.write_bytes(pickle.dumps([dict(sample) for sample in samples], protocol=5))
        request = {"command": "run", "engine": str(engine), "samples": str(given), "outputs": str(found)}
        raise_refusal(ask(request, installed.module, str(installed), None))
        outputs = pickle.loads(found.read_bytes())  # the worker's own, in a folder of this process
    return f"{installed} on {_tensorrt.local_gpu()}", outputs
