"""Apply what the user said about inputs to a loaded graph: fix dynamic dims, give them names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infconv.census import numpy_name
from infconv.convert._base import DimRange, InputSpec
from infconv.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir


def apply_inputs(model: ir.Model, inputs: Mapping[str, InputSpec], dims: Mapping[str, DimRange]) -> None:
    """Set the dims of the named inputs. A dynamic dim may be fixed or renamed; a fixed one must be repeated as it is.

    Raises UsageError for an unknown input, another rank, another size, another dtype, or a `--dim` that no input has.
    """
    feeds = {v.name or "": v for v in model.graph.inputs if v.name not in model.graph.initializers}
    for name, spec in inputs.items():
        if name not in feeds:
            raise UsageError(f"--input: the model has no input '{name}'.", did_you_mean(name, feeds))
        _apply(feeds[name], spec)
    known = {str(d.value) for v in feeds.values() for d in v.shape or () if not isinstance(d, int) and d.value}
    for name in dims:
        if name not in known:
            hint = did_you_mean(name, known) if known else "The model has no named dynamic dimension."
            raise UsageError(f"--dim: no input has a dimension '{name}'.", hint)


def _apply(value: ir.Value, spec: InputSpec) -> None:
    import onnx_ir as ir

    shape: list[int | str | None] = [d if isinstance(d, int) else d.value for d in value.shape or ()]
    if value.shape is not None and spec.dims and len(spec.dims) != len(shape):
        raise UsageError(f"--input {value.name}: it has {len(shape)} dims {shape}, not {len(spec.dims)}.")
    if spec.dtype is not None and value.dtype is not None and numpy_name(value.dtype) != spec.dtype:
        raise UsageError(f"--input {value.name}: its type is {numpy_name(value.dtype)}, not {spec.dtype}.")
    if not spec.dims:
        return
    for axis, (have, want) in enumerate(zip(shape or [None] * len(spec.dims), spec.dims, strict=True)):
        if isinstance(have, int) and have != want:
            raise UsageError(
                f"--input {value.name}: dim {axis} is fixed at {have} in the model, not {want}.",
                "Export the model with that dimension dynamic.",
            )
    value.shape = ir.Shape(spec.dims)
