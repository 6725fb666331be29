"""The Paddle half of the worker: opens a saved model, exports it to ONNX, and runs the original.

Runs in the framework's interpreter, loaded by `_worker.py`; needs paddle, paddle2onnx and onnx. Operations:

- `export` {source, format, workdir, inputs, opset, options, python_path}: writes `model.onnx` (and `model.onnx.data`)
  to workdir and tells producer, versions, notes, attempts, value_limits and dims. `source` is the program's file; its
  parameters are the .pdiparams beside it, if there is one.
- `run` {inputs, outputs}: runs the model that `export` opened on the arrays of the .npz `inputs`, and writes the .npz
  `outputs`, both by ONNX name.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# The reference is computed on the CPU, whatever else the machine has.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import paddle  # pyright: ignore[reportMissingImports]

from ._worker import Handler, Request, WorkerError, load_handlers
from ._worker_paddle_custom import put_back, take_out
from ._worker_paddle_export import ExportError, in_child, to_onnx
from ._worker_paddle_finish import finish
from ._worker_paddle_program import Program
from ._worker_paddle_run import Original, share_a_batch
from ._worker_paddle_weights import check_parameters, read_records

OPTIONS = ("handlers",)
"""What `options` may hold: a module whose `handlers` map operators that paddle2onnx lacks."""


def operations() -> dict[str, Handler]:
    """Return the handlers of one worker."""
    session = Session()
    return {"export": session.export, "run": session.run}


class Session:
    """The model that stays open between requests."""

    def __init__(self) -> None:
        self._original: Original | None = None
        self._outputs: list[str] = []

    def export(self, request: Request) -> dict[str, object]:
        """Open the source and write its ONNX form."""
        _check_options(request["options"])
        sys.path[:0] = [folder for folder in request["python_path"] if folder not in sys.path]
        folder = Path(request["workdir"]) / "paddle"
        folder.mkdir(exist_ok=True)
        try:
            return self._export(request, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _export(self, request: Request, folder: Path) -> dict[str, object]:
        notes: list[str] = []
        path, parameters = request["source"], _parameters_of(request["source"])
        if parameters:
            read_records(parameters)
        if request["format"] == "program":
            path, parameters = _translated(path, parameters, folder)
        program = Program.read(path)
        if request["format"] == "pir":
            program.refuse_aliases()
        if parameters:
            check_parameters(program.parameters(), parameters)
        self._original = original = _original(request, program, folder, notes)
        order = {name: index for index, name in enumerate(original.input_names)}
        inputs = sorted(program.inputs(), key=lambda tensor: order[tensor.name])
        self._outputs = _distinct(original.output_names, set(order))
        program.name_outputs(self._outputs)
        outputs = program.outputs()
        custom = take_out(program, load_handlers(request["options"]), notes)
        program.prepare()
        model, attempts = to_onnx(program, request, parameters, folder)
        put_back(model, custom)
        free = [tensor for tensor in inputs if tensor.dims[:1] == (-1,)]
        batch = len(free) == 1 or (len(free) > 1 and share_a_batch(original, inputs))
        finish(model, inputs, outputs, request["inputs"], batch=batch, workdir=Path(request["workdir"]))
        return {
            "producer": f"paddle {paddle.__version__}",
            "versions": _versions(),
            "notes": notes,
            "attempts": attempts,
            "value_limits": {},
            "dims": {},
        }

    def run(self, request: Request) -> dict[str, object]:
        """Run the original model on an .npz."""
        if self._original is None:
            raise WorkerError("bug", "No model is open.")
        with np.load(request["inputs"], allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
        outputs = self._original.run(given)
        with Path(request["outputs"]).open("wb") as stream:
            np.savez(stream, allow_pickle=False, **dict(zip(self._outputs, outputs, strict=True)))
        return {"outputs": self._outputs}


def _distinct(names: list[str], taken: set[str]) -> list[str]:
    """Return `names`, with a number behind those that an input or an earlier output has: Paddle 2 works in place."""
    found: list[str] = []
    for name in names:
        tries = (name, *(f"{name}.{number}" for number in range(1, len(names) + 1)))
        found.append(next(each for each in tries if each not in taken))
        taken.add(found[-1])
    return found


def _original(request: Request, program: Program, folder: Path, notes: list[str]) -> Original:
    """Load the model as it was saved, or in the words of this Paddle when a newer one wrote it."""
    path = request["source"]
    try:
        return Original(path, _parameters_of(path))
    except WorkerError:
        if request["format"] == "program" or not program.narrow_scales():
            raise
    notes.append("A newer Paddle saved this model: the scales of its interpolations were read as float32.")
    program.write(folder / "original.json")
    return Original(str(folder / "original.json"), _parameters_of(path))


def _parameters_of(program: str) -> str | None:
    path = Path(program).with_suffix(".pdiparams")
    return str(path) if path.is_file() else None


def _translated(path: str, parameters: str | None, folder: Path) -> tuple[str, str | None]:
    """Write a Paddle 2 model as a Paddle 3 one, which is what paddle2onnx reads; return its two files."""
    prefix = str(folder / "translated")

    def translate() -> None:
        paddle.enable_static()
        executor = paddle.static.Executor(paddle.CPUPlace())
        with paddle.pir_utils.OldIrGuard():
            old, _, _ = paddle.static.load_inference_model(
                str(Path(path).parent),
                executor,
                model_filename=Path(path).name,
                params_filename=parameters and Path(parameters).name,
            )
        program = paddle.pir.translate_to_pir(old.desc)
        _load_values(program, executor)
        feeds, fetches = [], []
        for op in program.global_block().ops:
            if op.name() in ("pd_op.feed", "pd_op.data"):
                feeds += op.results()
            elif op.name() in ("pd_op.fetch", "builtin.shadow_output"):
                fetches += op.operands_source()
        with paddle.pir_utils.IrGuard():
            paddle.static.save_inference_model(prefix, feeds, fetches, executor, program=program)

    try:
        in_child(translate, folder / "translation.log")
    except ExportError as error:
        raise WorkerError(
            "source",
            f"Paddle {paddle.__version__} cannot read '{path}' as a Paddle 2 model: {error}.",
            "It may be damaged. If Paddle 2 loads it, load it there and save it again with paddle.jit.save.",
        ) from error
    return f"{prefix}.json", _parameters_of(f"{prefix}.json")


def _load_values(program: Any, executor: Any) -> None:
    """Tell the executor that the parameters, which the old program loaded, are the new one's too."""
    from paddle.base.executor import global_scope  # pyright: ignore[reportMissingImports]
    from paddle.base.libpaddle.pir import create_loaded_parameter  # pyright: ignore[reportMissingImports]

    stored = ("builtin.parameter", "pd_op.data")
    found = [v for v in program.list_vars() if v.persistable and v.get_defining_op().name() in stored]
    if found:
        create_loaded_parameter(found, global_scope(), executor._default_executor)


def _check_options(options: dict[str, object]) -> None:
    for name in options:
        if name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise WorkerError("usage", f"The paddle frontend has no option '{name}'.", f"Known: {known}.")


def _versions() -> dict[str, str]:
    names = ("paddlepaddle", "paddle2onnx", "onnx", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
