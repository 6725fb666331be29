"""The model: how it is run, what goes in and comes out, and its form that tf2onnx reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ._worker import WorkerError, first_line, ran_out_of_memory

Dim = int | str | None


@dataclasses.dataclass
class Port:
    """An input or output: numbers in `dims` are fixed, names and None dynamic; `dims` None: not even the rank."""

    name: str
    """In ONNX."""
    tensor: str
    """In the graph that is converted, e.g. `x:0`."""
    dtype: Any
    """A tf.DType."""
    dims: list[Dim] | None

    def describe(self) -> dict[str, object]:
        """Return what the parent is told."""
        return {"name": self.name, "dims": self.dims, "dtype": self.dtype.name}


@dataclasses.dataclass
class Graph:
    """A graph without variables, as tf2onnx takes it."""

    definition: Any = None
    """A GraphDef; None for TensorFlow Lite."""
    tables: Any = None
    """Of a model with lookup tables: their contents, as tf2onnx wants them."""
    values: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """The contents of large constants, by node; the definition has them empty."""
    tflite: str | None = None
    """The path of a TensorFlow Lite file."""


@dataclasses.dataclass
class Subject:
    """The opened model."""

    inputs: list[Port]
    outputs: list[Port]
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """ONNX input name -> tensor or array, to ONNX output name -> tensor or array."""
    make_graph: Callable[[], Graph]
    """Freezes the model; called once."""
    notes: list[str] = dataclasses.field(default_factory=list)
    packages: list[str] = dataclasses.field(default_factory=list)
    """Packages beside TensorFlow that the model came through."""
    same_batch: bool = False
    """Whether the first dimensions of all inputs are one batch, as in Keras."""

    def run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the original. Raises WorkerError of kind usage when it does not take these inputs."""
        names = [each.name for each in self.inputs]
        if set(given) != set(names):
            raise WorkerError("usage", f"The model's inputs are {', '.join(names)}; given: {', '.join(given)}.")
        arrays = {each.name: given[each.name].astype(_numpy_type(each.dtype), copy=False) for each in self.inputs}
        try:
            found = self.call(arrays)
            return {each.name: _portable(found[each.name]) for each in self.outputs}
        except Exception as error:  # TensorFlow and the model's own code raise whatever they meet
            if ran_out_of_memory(error):
                raise
            shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items())
            raise WorkerError(
                "usage",
                f"The model does not run on {shapes}: {type(error).__name__}: {_reason(error)}",
                "Correct --input, --dim or the sample.",
            ) from error


def shape_of(spec: Any) -> list[Dim] | None:
    """Return the dims of a TensorSpec or tensor, None where its rank is not known."""
    return None if spec.shape.rank is None else list(spec.shape.as_list())


def _numpy_type(dtype: Any) -> Any:
    return np.str_ if dtype == tf.string else dtype.as_numpy_dtype


def _portable(value: Any) -> np.ndarray:
    """Return an array that an .npz holds: strings as unicode, bfloat16 as float32, which has its values."""
    array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    array = np.asarray(array)
    if array.dtype.kind == "O":
        return np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[str])(array)
    return array if array.dtype.kind in "biufcU" else array.astype(np.float32)


def _reason(error: Exception) -> str:
    """Return the line of TensorFlow's message that says what is wrong; the first often is a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception encountered", "Graph execution error", "File "))]
    return said[0][:400] if said else first_line(error)
