"""The roads from PyTorch to ONNX, tried in order until one gives a valid model.

- `dynamo`: torch.export without strict mode, then the ONNX exporter on the exported program.
- `dynamo-strict`: the same with strict mode, which traces Python byte code.
- `torchscript`: the TorchScript exporter on a trace of the module, or on TorchScript itself.
- `torchscript-script`: the TorchScript exporter on the module compiled by torch.jit.script, which keeps control flow.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ._worker import Request, WorkerError, first_line, ran_out_of_memory
from ._worker_torch_capture import DimError, capture, keep_tensor_outputs, loosen_views
from ._worker_torch_check import check
from ._worker_torch_finish import finish
from ._worker_torch_inputs import parameters_of
from ._worker_torch_subject import Subject

Road = Callable[[Subject, Request], Any]

TORCHSCRIPT_OPSET = 20
"""The newest opset that the TorchScript exporter writes."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_DATA_DEPENDENT = re.compile("data-dependent", re.IGNORECASE)
_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)>")
_LONGEST_LINE = 300


class RoadError(Exception):
    """A road ended without a usable model."""


def export(subject: Subject, request: Request) -> list[dict[str, object]]:
    """Write model.onnx to the request's workdir and return the attempts.

    Raises WorkerError: usage when the dynamic dimensions asked for contradict the model, unsupported when every road
    fails.
    """
    attempts: list[dict[str, object]] = []
    refused: DimError | None = None
    for name, road in _mapped(subject) if request["handlers"] else _roads(subject, attempts):
        started = time.monotonic()
        error: BaseException | None = None
        try:
            _try(name, road, subject, request, doubted=refused is not None)
        except DimError as found:
            error = refused = found
            if found.final:
                raise
        except Exception as found:  # torch and the model's own code raise whatever they meet
            if ran_out_of_memory(found):
                raise
            error = found
        attempts.append(
            {
                "road": name,
                "ok": error is None,
                "seconds": round(time.monotonic() - started, 3),
                "error": one_line(error) if error else None,
            }
        )
        if error is None:
            return attempts
        del error
        gc.collect()
    raise refused or _all_failed(request["source"], attempts)


def _try(name: str, road: Road, subject: Subject, request: Request, *, doubted: bool) -> None:
    torch.manual_seed(request["seed"])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations of the exporter that were written for its authors
        model = road(subject, request)
    path = finish(model, subject, request["workdir"])
    del model
    problem = check(path, subject, request["seed"], traced=name.startswith("torchscript"), doubted=doubted)
    if problem:
        raise RoadError(problem)


def _roads(subject: Subject, attempts: list[dict[str, object]]) -> Iterator[tuple[str, Road]]:
    """Yield the roads that can take the subject, the best first in the light of the `attempts` so far."""
    if subject.program is not None:
        yield "dynamo", _program
        return
    assert subject.flat is not None
    module = subject.flat.module
    if isinstance(module, torch.jit.ScriptModule):
        yield "torchscript", _traced
        return
    # torch.export unrolls nn.RNN and fixes the length of LSTM and GRU; the TorchScript exporter writes the operators.
    recurrent = any(isinstance(each, torch.nn.RNNBase) for each in module.modules())
    if recurrent:
        yield "torchscript", _traced
    yield "dynamo", _dynamo
    yield "dynamo-strict", _dynamo_strict
    branches = any(_DATA_DEPENDENT.search(str(each["error"])) for each in attempts)
    if branches:  # a trace would keep the branch that the example takes
        yield "torchscript-script", _scripted
    if not recurrent:
        yield "torchscript", _traced
    if not branches:
        yield "torchscript-script", _scripted


def _mapped(subject: Subject) -> list[tuple[str, Road]]:
    """Return the roads that ask the user's handlers: the TorchScript exporter knows nothing of them."""
    if subject.program is not None:
        return [("dynamo", _program)]
    assert subject.flat is not None
    if isinstance(subject.flat.module, torch.jit.ScriptModule):
        raise WorkerError(
            "usage",
            "Source option handlers maps operators of torch.export, and this is TorchScript.",
            "Convert the module itself (my_module:build_model), or what torch.export.save wrote.",
        )
    return [("dynamo", _dynamo), ("dynamo-strict", _dynamo_strict)]


def _dynamo(subject: Subject, request: Request) -> Any:
    return _to_onnx(capture(subject, strict=False), request)


def _dynamo_strict(subject: Subject, request: Request) -> Any:
    return _to_onnx(capture(subject, strict=True), request)


def _program(subject: Subject, request: Request) -> Any:
    assert subject.program is not None
    return _to_onnx(subject.program, request)


def _to_onnx(program: torch.export.ExportedProgram, request: Request) -> Any:
    """Return the onnx_ir.Model of `program`."""
    keep_tensor_outputs(program)
    loosen_views(program)
    options: dict[str, Any] = {"opset_version": request["opset"]} if request["opset"] else {}
    if request["handlers"]:
        options["custom_translation_table"] = request["handlers"]
    # Its own optimizer stays off by default: infconv's passes do that work, each one verified.
    optimize = request["options"].get("optimize", False)
    try:
        exported = torch.onnx.export(program, dynamo=True, optimize=optimize, verbose=False, **options)
    except Exception as error:  # the exporter raises whatever it meets
        raise _unsupported(error, program) or error from error
    assert exported is not None
    return exported.model


def _unsupported(error: Exception, program: torch.export.ExportedProgram) -> RoadError | None:
    """Return the error that names the operator without a conversion and its module, None for another failure."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = _NO_FUNCTION.search(str(cause))
    if not found:
        return None
    name = f"{found.group(1)}.{found.group(2)}"
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    node = next((each for graph in graphs for each in graph.nodes if str(each.target) == name), None)
    stack = list(node.meta.get("nn_module_stack", {}).values()) if node is not None else []
    path = str(stack[-1][0]).rpartition("module.")[2] if stack else ""
    place = f" (in module {path})" if path and path != "module" else ""
    return RoadError(f"operator '{found.group(1).replace('.', '::', 1)}'{place} has no conversion to ONNX")


def operator_table(handlers: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return `handlers` by operator; names such as `mylib::gelu` stand for that operator's default overload.

    Raises WorkerError (usage) for a name that no operator has.
    """
    table: dict[Any, Any] = {}
    for key, handler in handlers.items():
        operator = key
        if isinstance(key, str):
            library, name, overload = [*key.replace("::", ".").split("."), "default"][:3]
            try:
                operator = getattr(getattr(getattr(torch.ops, library), name), overload)
            except AttributeError as error:
                raise WorkerError(
                    "usage",
                    f"The handlers map '{key}', which is no operator of PyTorch.",
                    "Import the one that has it.",
                ) from error
        table[operator] = handler
    return table


def _traced(subject: Subject, request: Request) -> Any:
    assert subject.flat is not None
    module = subject.flat
    if isinstance(module.module, torch.jit.ScriptModule):
        # A trace through a script module keeps its control flow; only the flattening around it is traced.
        module = torch.jit.trace(module, subject.examples, check_trace=False)
    return _torchscript(module, subject, request)


def _scripted(subject: Subject, request: Request) -> Any:
    """Compile the user's module itself: it must return tensors, and take its inputs in forward's order."""
    assert subject.flat is not None
    module = subject.flat.module
    names = [each.name for each in subject.inputs]
    order = [each.name for each in parameters_of(module)][: len(names)]
    if names != order:
        raise RoadError(f"compiled code takes its inputs by position: {', '.join(order)}, not {', '.join(names)}")
    return _torchscript(torch.jit.script(module), subject, request)


def _torchscript(module: Any, subject: Subject, request: Request) -> Any:
    """Return the onnx_ir.Model that the TorchScript exporter writes to a folder of its own."""
    import onnx_ir

    folder = Path(request["workdir"]) / "torchscript"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = str(folder / "model.onnx")
    names = [each.name for each in subject.inputs]
    axes = {each.name: {i: d for i, d in enumerate(each.dims) if isinstance(d, str)} for each in subject.inputs}
    torch.onnx.export(
        module,
        subject.examples,
        path,
        input_names=names,
        output_names=subject.output_names,
        dynamic_axes={name: found for name, found in axes.items() if found},
        opset_version=min(request["opset"] or TORCHSCRIPT_OPSET, TORCHSCRIPT_OPSET),
        dynamo=False,
    )
    return onnx_ir.load(path)


def one_line(error: BaseException) -> str:
    """Return what went wrong in one line: of the innermost cause, with the model's own source line if there is one."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, (RoadError, WorkerError)):
        cause = cause.__cause__
    text = _COLOUR.sub("", str(cause))
    line = first_line(cause) if not text else next((x.strip() for x in text.splitlines() if x.strip()), "")
    places = re.findall(r'File "([^"]+)", line (\d+), in', text)
    own = [(path, number) for path, number in places if f"{os.sep}torch{os.sep}" not in path]
    where = f" (at {Path(own[-1][0]).name}:{own[-1][1]})" if own else ""
    label = "" if isinstance(cause, (RoadError, WorkerError)) else f"{type(cause).__name__}: "
    return f"{label}{line}"[:_LONGEST_LINE] + where


def _all_failed(source: str, attempts: list[dict[str, object]]) -> WorkerError:
    tried = "".join(f"\n  {each['road']}: {each['error']}" for each in attempts)
    return WorkerError(
        "unsupported",
        f"PyTorch cannot export '{source}' to ONNX; tried:{tried}",
        "Change the operator or the control flow named above in the model, give more of its dimensions fixed sizes, or "
        "map the operator yourself: --source-option handlers=MODULE (docs/custom-operators.md).",
    )
