"""The names of dynamic dimensions: the user's, otherwise names that say what a dimension is, and which are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ._worker import Request, WorkerError
from ._worker_tensorflow_subject import Dim, Port, Subject

_TRIED_SIZES = (8, 32, 64, 224)
"""Sizes of dynamic dimensions to run the model at: images want multiples of 32."""


def name_dims(subject: Subject, request: Request) -> None:
    """Give every dynamic dimension of the inputs a name, and those that the user fixed their sizes.

    Raises WorkerError of kind usage for an --input or --dim that the model does not have or contradicts.
    """
    by_name = {each.name: each for each in subject.inputs}
    for name, said in request["inputs"].items():
        if name not in by_name:
            raise WorkerError("usage", f"The model has no input '{name}'.", f"Its inputs: {', '.join(by_name)}.")
        _apply(by_name[name], said)
    for each in subject.inputs:
        if each.dims is None:
            raise WorkerError(
                "usage",
                f"Nothing says how many dimensions the input '{each.name}' has.",
                f"Say it, e.g. --input {each.name}:batch,224,224,3 (names are dynamic, numbers fixed).",
            )
    for axis in sorted({axis for each in subject.inputs for axis in _open_axes(each)}):
        _name_axis(subject, axis)
    _check_dims(subject.inputs, request["dims"])


def _apply(port: Port, said: Mapping[str, Any]) -> None:
    if said["dtype"] and said["dtype"] != _type_name(port):
        raise WorkerError("usage", f"Input '{port.name}' is {_type_name(port)} in the model, not {said['dtype']}.")
    if not said["dims"]:
        return
    if port.dims is not None and len(port.dims) != len(said["dims"]):
        raise WorkerError(
            "usage", f"Input '{port.name}' has {len(port.dims)} dimensions in the model, not {len(said['dims'])}."
        )
    for axis, (is_, wanted) in enumerate(zip(port.dims or [None] * len(said["dims"]), said["dims"], strict=True)):
        if isinstance(is_, int) and is_ != wanted:
            raise WorkerError(
                "usage",
                f"Dimension {axis} of '{port.name}' is fixed to {is_} in the model; --input says {wanted}.",
                "Save the model with that dimension None, or leave --input out.",
            )
    port.dims = list(said["dims"])


def _type_name(port: Port) -> str:
    return "str" if port.dtype == tf.string else port.dtype.name


def _open_axes(port: Port) -> list[int]:
    return [axis for axis, dim in enumerate(port.dims or []) if dim is None]


def _name_axis(subject: Subject, axis: int) -> None:
    """Name the axis of all inputs that have it open: one name if they must have one size, else one each."""
    ports = [each for each in subject.inputs if axis in _open_axes(each)]
    tied = len(ports) == 1 or (axis == 0 and subject.same_batch) or not _runs_apart(subject, ports, axis)
    taken = {dim for each in subject.inputs for dim in each.dims or [] if isinstance(dim, str)}
    for port in ports:
        assert port.dims is not None
        title = _title(axis, len(port.dims))
        name = title if tied else f"{port.name}_{title}"
        port.dims[axis] = name if name not in taken else f"{port.name}_{title}"


def _title(axis: int, rank: int) -> str:
    if axis == 0:
        return "batch"
    if rank == 4 and axis in (1, 2):  # NHWC is TensorFlow's layout
        return ("height", "width")[axis - 1]
    return "sequence" if axis == 1 else f"dim_{axis}"


def _runs_apart(subject: Subject, ports: Sequence[Port], axis: int) -> bool:
    """Tell whether the model takes different sizes of `axis` in these inputs; False when it runs at no size tried."""
    for size in _TRIED_SIZES:
        same = {(each.name, axis): size for each in ports}
        if _runs(subject, size, same):
            apart = {(each.name, axis): size + i for i, each in enumerate(ports)}
            return _runs(subject, size, apart)
    return False


def _runs(subject: Subject, size: int, sizes: Mapping[tuple[str, int], int]) -> bool:
    given: dict[str, np.ndarray] = {}
    for each in subject.inputs:
        dims = [
            dim if isinstance(dim, int) else sizes.get((each.name, axis), 2 if axis == 0 else size)
            for axis, dim in enumerate(each.dims or [])
        ]
        given[each.name] = _zeros(each, dims)
    try:
        subject.run(given)
    except WorkerError:
        return False
    return True


def name_output_dims(subject: Subject) -> None:
    """Name the open dims of outputs that follow a dim of the inputs, by running the model at two sets of sizes."""
    names = list(dict.fromkeys(dim for each in subject.inputs for dim in each.dims or [] if isinstance(dim, str)))
    open_ports = [each for each in subject.outputs if each.dims is not None and None in each.dims]
    if not names or not open_ports:
        return
    first = {each.dims[0] for each in subject.inputs if each.dims}
    for size in _TRIED_SIZES:
        # Every dim has another size, and another one in the second run: equal sizes twice are no chance.
        sizes = [
            {name: shift + i + (2 if name in first else size + len(names)) for i, name in enumerate(names)}
            for shift in (0, len(names))
        ]
        found = [_outputs_at(subject, each) for each in sizes]
        if found[0] is not None and found[1] is not None:
            for port in open_ports:
                shapes = found[0][port.name], found[1][port.name]
                port.dims = _followed(port.dims or [], shapes, sizes)
            return


def _outputs_at(subject: Subject, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
    given = {
        each.name: _zeros(each, [sizes[d] if isinstance(d, str) else d or 1 for d in each.dims or []])
        for each in subject.inputs
    }
    try:
        return {name: array.shape for name, array in subject.run(given).items()}
    except WorkerError:
        return None


def _followed(dims: Sequence[Dim], shapes: Sequence[tuple[int, ...]], sizes: Sequence[Mapping[str, int]]) -> list[Dim]:
    """Return `dims` with those named that had the size of one input dim in both runs."""
    named: list[Dim] = []
    for axis, dim in enumerate(dims):
        same = [name for name in sizes[0] if all(s[axis] == at[name] for s, at in zip(shapes, sizes, strict=True))]
        named.append(same[0] if dim is None and same else dim)
    return named


def _zeros(port: Port, shape: Sequence[int]) -> np.ndarray:
    return np.zeros(shape, np.str_ if port.dtype == tf.string else port.dtype.as_numpy_dtype)


def _check_dims(inputs: Sequence[Port], asked: Mapping[str, Any]) -> None:
    used = list(dict.fromkeys(dim for each in inputs for dim in each.dims or [] if isinstance(dim, str)))
    for name in asked:
        if name not in used:
            shown = ", ".join(used) or "none"
            raise WorkerError("usage", f"--dim {name} is no dynamic dimension of the inputs.", f"They are: {shown}.")
