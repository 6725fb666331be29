"""A script of the user's that edits the graph with ONNX GraphSurgeon, as a step."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_ir as ir
from pydantic import Field

from infconv.errors import InfconvError, UsageError, did_you_mean, missing_extra
from infconv.model import check, from_proto, skeleton
from infconv.passes._base import Context, Pass
from infconv.passes._foreign import take_over


class Graphsurgeon(Pass):
    """Run a script that edits the model with ONNX GraphSurgeon.

    The function gets an `onnx_graphsurgeon.Graph` of the whole model and changes it, or returns another. What it
    returns is checked. GraphSurgeon keeps every weight in memory, so a model needs about three times its size.
    """

    script: str = Field(min_length=3)
    """The function to call: `my.py:fn` (the file is relative to the working directory) or `module:fn`."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the difference in nodes, at least 1; 0 when the script changed nothing.

        Raises DependencyError without the package, UsageError when the script is not found, fails, or leaves a model
        that is not valid.
        """
        try:
            import onnx_graphsurgeon as gs
        except ImportError:
            raise missing_extra("onnx-graphsurgeon", "peers", "Step graphsurgeon") from None
        function = _function(self.script)
        graph = gs.import_onnx(_whole(model))
        untouched = gs.export_onnx(graph, do_type_check=False)
        returned = _call(function, graph, self.script)
        if returned is not None and not isinstance(returned, gs.Graph):
            raise UsageError(
                f"The script '{self.script}' returned a {type(returned).__name__}.",
                "Change the graph in place and return None, or return an onnx_graphsurgeon.Graph.",
            )
        try:
            proto = gs.export_onnx(graph if returned is None else returned, do_type_check=False)
            if proto == untouched:  # GraphSurgeon itself moves constants; a script that did nothing changes nothing
                return 0
            result = _checked(proto)
        except Exception as error:  # a graph in pieces makes GraphSurgeon, onnx or onnx_ir raise whatever they meet
            reason = error.message if isinstance(error, InfconvError) else f"{type(error).__name__}: {error}"
            raise UsageError(f"The script '{self.script}' left a graph that is not valid: {reason}") from error
        return take_over(model, result)


def _whole(model: ir.Model) -> onnx.ModelProto:
    """Return the model with all its weights inside."""
    return skeleton(model, threshold=sys.maxsize).proto


def _checked(proto: onnx.ModelProto) -> ir.Model:
    result = from_proto(proto)
    check(result)
    return result


def _function(script: str) -> Callable[[Any], Any]:
    """Return the function that `script` names. Raises UsageError."""
    place, _, name = script.rpartition(":")
    if not place or not name:
        raise UsageError(f"'{script}' does not name a function.", "Example: graphsurgeon: {script: my.py:fn}")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except UsageError:
        raise
    except Exception as error:  # the script's own code runs here
        raise _failed(script, error, "be loaded") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"'{place}' has no function '{name}'.", did_you_mean(name, known) if known else "")
    return function


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"The script '{path}' does not exist.", f"It is looked for in '{Path.cwd()}'.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call(function: Callable[[Any], Any], graph: Any, script: str) -> Any:
    try:
        return function(graph)
    except Exception as error:  # the script's own code runs here
        raise _failed(script, error, "finish") from error


def _failed(script: str, error: Exception, what: str) -> UsageError:
    """Return the error of a script that raised, with the line where that happened."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return UsageError(f"The script '{script}' could not {what}: {type(error).__name__}: {error}{where}.")
