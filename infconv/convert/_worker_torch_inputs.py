"""Model inputs: what the user, the sample and the signature say of them, and example tensors to export with."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ._worker import Request, WorkerError

Dim = int | str

BATCH_SIZE = 2
"""Example size of a dynamic first dimension: the smallest that torch.export does not take for a constant."""
IMAGE_SIZE = 64
LENGTH = 16
"""Example sizes of other dynamic dimensions: of four-dimensional inputs, and of the rest."""

TYPE_NAMES = [
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "float8_e4m3fn",
    "float8_e5m2",
]
INTEGER_NAME = re.compile(r".*(_ids|^ids|_mask|^mask|_index|_indices|_idx)$")


@dataclasses.dataclass
class Input:
    """A model input: numbers in `dims` are fixed, names dynamic."""

    name: str
    dims: tuple[Dim, ...]
    dtype: torch.dtype
    high: int | None = None
    """Integer values are below this, where the model says so."""
    ones: bool = False
    """A mask: the example is all ones."""
    sample: np.ndarray | None = None

    def example(self, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
        """Return a tensor of this input's type with `sizes` for the dynamic dims: the sample, or seeded noise."""
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in self.dims]
        if self.sample is not None:
            return to_tensor(_resized(self.sample, shape), self.dtype)
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(self.dtype)
        if self.ones:
            return torch.ones(shape, dtype=self.dtype)
        # Without a known range, 0 and 1: every index table has them.
        return torch.randint(0, self.high or 2, shape, generator=generator).to(self.dtype)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a model's forward."""

    name: str
    required: bool
    kind: str
    """named, positional (has no keyword), many (*args), any (**kwargs), or the name of a type that is no tensor."""


def parameters_of(module: torch.nn.Module) -> list[Parameter]:
    """Return the parameters of `forward`, of a Python module or a TorchScript one."""
    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward
        arguments = forward.schema.arguments[1:]  # the first is self
        return [Parameter(a.name, not a.has_default_value(), _script_kind(str(a.type))) for a in arguments]
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "positional",
        inspect.Parameter.VAR_POSITIONAL: "many",
        inspect.Parameter.VAR_KEYWORD: "any",
    }
    found = inspect.signature(module.forward).parameters.values()
    return [
        Parameter(
            p.name,
            p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD),
            kinds.get(p.kind, "named"),
        )
        for p in found
    ]


def _script_kind(type_text: str) -> str:
    return "named" if type_text in ("Tensor", "Optional[Tensor]") else type_text


def module_inputs(
    module: torch.nn.Module, request: Request, defaults: list[Input], *, any_keyword: bool
) -> list[Input]:
    """Return the inputs of `module` in the order of its forward.

    `defaults` are what the model itself tells (Hugging Face); without them the user or a sample must say.
    `any_keyword`: take **kwargs of a forward at its word. Raises WorkerError of kind usage.
    """
    samples = read_sample(request["sample"])
    given: dict[str, dict[str, Any]] = request["inputs"]
    by_name = {each.name: each for each in defaults}
    names = list(given) + [name for name in samples if name not in given]
    parameters = parameters_of(module)
    if not names:
        if defaults:
            return defaults
        raise _needs_inputs(module, parameters, request["source"])
    _check_names(names, parameters, by_name, any_keyword)
    order = {parameter.name: i for i, parameter in enumerate(parameters)}
    names.sort(key=lambda name: order.get(name, len(order)))  # stable: *args keep the order given
    inputs = [_described(name, given.get(name), samples.get(name), by_name.get(name), module) for name in names]
    _check_required(parameters, inputs)
    return inputs


def _described(
    name: str,
    given: dict[str, Any] | None,
    sample: np.ndarray | None,
    default: Input | None,
    module: torch.nn.Module,
) -> Input:
    """Merge what is known of one input; the user's word comes first."""
    dtype = default.dtype if default else None
    if given and given["dtype"]:
        dtype = parse_type(name, given["dtype"])
    elif sample is not None and default is None:
        dtype = torch.from_numpy(sample[:0].copy() if sample.ndim else sample.copy()).dtype
    if dtype is None:
        dtype = torch.int64 if INTEGER_NAME.match(name) else _float_type(module)
    dims = tuple(given["dims"]) if given else tuple(sample.shape if sample is not None else ())
    if sample is not None:
        _check_sample(name, sample, dims)
    high = default.high if default else None
    ones = default.ones if default else name.endswith("mask")
    return Input(name, dims, dtype, high, ones, sample)


def parse_type(name: str, text: str) -> torch.dtype:
    """Return the dtype that `text` names."""
    if text not in TYPE_NAMES:
        close = difflib.get_close_matches(text, TYPE_NAMES, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(TYPE_NAMES)}."
        raise WorkerError("usage", f"Input '{name}' has the unknown type '{text}'.", hint)
    return getattr(torch, text)


def type_name(dtype: torch.dtype) -> str:
    """Return the numpy name of `dtype`."""
    return str(dtype).partition(".")[2]


def read_sample(path: str | None) -> dict[str, np.ndarray]:
    """Return the arrays of the .npz `path`, by name."""
    if not path:
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, AttributeError) as error:
        raise WorkerError("usage", f"The sample '{path}' is not an .npz of arrays: {error}") from error


def to_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Return `array` as a tensor of `dtype` that owns its memory."""
    return torch.from_numpy(np.array(array, order="C")).to(dtype)


def example_sizes(inputs: list[Input], ranges: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return a size for each dynamic dimension: of the sample, the range's opt, or a default, and at least 2.

    torch.export takes the sizes 0 and 1 for constants.
    """
    sizes: dict[str, int] = {}
    for each in inputs:
        for axis, dim in enumerate(each.dims):
            if isinstance(dim, str) and dim not in sizes:
                sizes[dim] = _example_size(dim, each, axis, ranges.get(dim, {}))
    return sizes


def other_sizes(sizes: Mapping[str, int], ranges: Mapping[str, Mapping[str, Any]]) -> list[dict[str, int]]:
    """Return further sizes to try: each dimension one step away from `sizes`, and each at its lower bound."""
    changed = {name: _neighbour(size, ranges.get(name, {})) for name, size in sizes.items()}
    lowest = {name: max(1, ranges.get(name, {}).get("min") or 1) for name in sizes}
    return [found for found in (changed, lowest) if found != dict(sizes)]


def _neighbour(size: int, span: Mapping[str, Any]) -> int:
    high = span.get("max")
    return size + 1 if high is None or size < high else max(span.get("min") or 1, size - 1)


def _example_size(name: str, each: Input, axis: int, span: Mapping[str, Any]) -> int:
    low, high = max(2, span.get("min") or 1), span.get("max")
    if high is not None and high < 2:
        raise WorkerError(
            "usage", f"Dimension '{name}' is never larger than {high}.", f"Give '{each.name}' a fixed {high} there."
        )
    if each.sample is not None and each.sample.shape[axis] >= low:
        return each.sample.shape[axis]
    default = BATCH_SIZE if axis == 0 else IMAGE_SIZE if len(each.dims) == 4 else LENGTH
    size = span.get("opt") or default
    return max(low, size if high is None else min(size, high))


def _resized(array: np.ndarray, shape: list[int]) -> np.ndarray:
    """Repeat or cut `array` along the axes whose size differs."""
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def _float_type(module: torch.nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), torch.float32)


def _check_sample(name: str, sample: np.ndarray, dims: tuple[Dim, ...]) -> None:
    fits = sample.ndim == len(dims) and all(
        isinstance(d, str) or d == n for d, n in zip(dims, sample.shape, strict=True)
    )
    if not fits or 0 in sample.shape:
        raise WorkerError(
            "usage",
            f"The sample's '{name}' has shape {list(sample.shape)}, which is not [{', '.join(map(str, dims))}].",
            "Correct --input or the sample.",
        )


def _check_names(names: list[str], parameters: list[Parameter], known: Mapping[str, Input], any_keyword: bool) -> None:
    if any(p.kind == "many" or (p.kind == "any" and any_keyword) for p in parameters):
        return
    by_name = {p.name: p for p in parameters}
    for name in names:
        if name in by_name and by_name[name].kind not in ("named", "positional"):
            raise _no_tensor(by_name[name])
        if name not in by_name:
            shown = sorted(known) or [p.name for p in parameters]
            raise WorkerError("usage", f"The model has no input '{name}'.", f"Its inputs: {', '.join(shown)}.")


def _check_required(parameters: list[Parameter], inputs: list[Input]) -> None:
    names = {each.name for each in inputs}
    if any(p.kind == "many" for p in parameters):
        return
    for parameter in parameters:
        if not parameter.required or parameter.name in names:
            continue
        if parameter.kind not in ("named", "positional"):
            raise _no_tensor(parameter)
        raise WorkerError(
            "usage",
            f"The model also needs the input '{parameter.name}'.",
            f"Add --input {parameter.name}:DIMS[:DTYPE], e.g. --input {parameter.name}:batch,3,224,224",
        )


def _no_tensor(parameter: Parameter) -> WorkerError:
    return WorkerError(
        "unsupported",
        f"The model's '{parameter.name}' is of type {parameter.kind}, which no ONNX input can stand for.",
        "Wrap the model in a module that passes it as a constant or builds it from tensors, and convert that.",
    )


def _needs_inputs(module: torch.nn.Module, parameters: list[Parameter], source: str) -> WorkerError:
    """Say what to type: the names are those of forward, the dims a guess from the first layer."""
    names = [p.name for p in parameters if p.required and p.kind in ("named", "positional")]
    names = names or [p.name for p in parameters if p.kind in ("named", "positional")][:1] or ["x"]
    dims = [_guess_dims(module), *["batch,..."] * (len(names) - 1)]
    typed = " ".join(f"--input {name}:{dim}" for name, dim in zip(names, dims, strict=True))
    signature = ", ".join(p.name if p.required else f"{p.name}=..." for p in parameters)
    return WorkerError(
        "usage",
        f"'{source}' does not say the sizes of its inputs; its forward is forward({signature}).",
        f"Say them, names being dynamic and numbers fixed, e.g. {typed}  (or give --sample FILE.npz)",
    )


def _guess_dims(module: torch.nn.Module) -> str:
    """Return dims that fit the first layer with parameters: a starting point for the user to edit."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            return f"batch,{layer.in_channels},224,224"
        if isinstance(layer, torch.nn.Conv1d):
            return f"batch,{layer.in_channels},1000"
        if isinstance(layer, torch.nn.Embedding):
            return "batch,seq:int64"
        if isinstance(layer, torch.nn.Linear):
            return f"batch,{layer.in_features}"
        if isinstance(layer, torch.nn.RNNBase):
            return f"batch,seq,{layer.input_size}"
    return "batch,3,224,224"
