"""The JAX half of the worker: needs jax and jax2onnx, not infconv. `._worker` is infconv's own file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # the reference is computed on the CPU, whatever else the machine has

import jax
import jax2onnx
import numpy as np
from jax.export import SymbolicScope, symbolic_shape

from ._worker import Handler, Request, WorkerError, first_line

OPSET = 21


def operations() -> dict[str, Handler]:
    """Return the handlers of one worker."""
    session = Session()
    return {"export": session.export, "run": session.run}


class Session:
    """The function that stays open between requests."""

    def __init__(self) -> None:
        self._function: Callable[..., Any] | None = None
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def export(self, request: Request) -> dict[str, object]:
        """Write model.onnx to the request's workdir."""
        sys.path[:0] = [folder for folder in request["python_path"] if folder not in sys.path]
        self._inputs = list(request["inputs"])
        function = _positional(_import_function(request["source"]), self._inputs)
        try:
            model = jax2onnx.to_onnx(
                function,
                inputs=_types(request["inputs"]),
                input_names=self._inputs,
                opset=min(request["opset"] or OPSET, OPSET),
            )
        except NotImplementedError as error:
            raise WorkerError(
                "unsupported",
                f"jax2onnx cannot convert '{request['source']}': {first_line(error)}",
                "Write the primitive named with others.",
            ) from error
        except TypeError as error:
            raise WorkerError("usage", f"The function does not take these inputs: {first_line(error)}") from error
        Path(request["workdir"], "model.onnx").write_bytes(model.SerializeToString())
        self._function = jax.jit(function)
        self._outputs = [output.name for output in model.graph.output]
        return {
            "producer": f"jax {jax.__version__}",
            "versions": {"jax": jax.__version__},
            "notes": [],
            "attempts": [],
            "value_limits": {},
            "dims": {},
        }

    def run(self, request: Request) -> dict[str, object]:
        """Run the function on an .npz; its outputs are flattened in JAX's order."""
        assert self._function is not None
        with np.load(request["inputs"], allow_pickle=False) as arrays:
            given = [arrays[name] for name in self._inputs]
        try:
            found = jax.tree.leaves(self._function(*given))
        except (TypeError, ValueError) as error:
            raise WorkerError("usage", f"The function does not take these inputs: {first_line(error)}") from error
        with Path(request["outputs"]).open("wb") as stream:
            np.savez(stream, **dict(zip(self._outputs, map(np.asarray, found), strict=True)))
        return {"outputs": self._outputs}


def _import_function(source: str) -> Callable[..., Any]:
    module_name, _, name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise WorkerError("source", f"'{source}' cannot be imported: {error}.") from error
    if not callable(function):
        raise WorkerError("source", f"'{source}' is a {type(function).__name__}, not a function.")
    return function


def _positional(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Return `function` with its arrays by position: their names are the parameters'."""

    def call(*arrays: Any) -> Any:
        return function(**dict(zip(names, arrays, strict=True)))

    return call


def _types(inputs: dict[str, Any]) -> list[Any]:
    """Return shape and type of each input as JAX takes them: named dimensions are symbolic, one scope for all."""
    scope = SymbolicScope()
    shapes = [symbolic_shape(",".join(map(str, each["dims"])), scope=scope) for each in inputs.values()]
    types = [each["dtype"] or "float32" for each in inputs.values()]
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
