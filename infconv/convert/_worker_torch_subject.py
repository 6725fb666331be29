"""The opened model as the roads and the reference see it: tensors in, a flat list of tensors out, names for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ._worker import Request, WorkerError, first_line, ran_out_of_memory
from ._worker_torch_huggingface import default_inputs
from ._worker_torch_inputs import (
    Dim,
    Input,
    example_sizes,
    module_inputs,
    parameters_of,
    to_tensor,
    type_name,
)
from ._worker_torch_load import Loaded

Key = tuple[str, Any]
"""One step into an output: ("item", index or key) or ("field", attribute name)."""

PREFIX = "module."
"""Comes before every parameter name inside Flat."""


class Flat(torch.nn.Module):
    """`module` with tensors in, by position, and the tensors at `paths` of its output out."""

    def __init__(self, module: torch.nn.Module, names: list[str], positional: int, paths: list[tuple[Key, ...]]):
        super().__init__()
        self.module = module
        self.names = names
        self.positional = positional
        self.paths = paths

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the module by keyword, as far as it has keywords."""
        named = dict(zip(self.names[self.positional :], args[self.positional :], strict=True))
        result = self.module(*args[: self.positional], **named)
        return tuple(_follow(result, path) for path in self.paths)


@dataclasses.dataclass
class Subject:
    """The model: how it is run, what goes in and comes out, and an example."""

    inputs: list[Input]
    output_names: list[str]
    call: Callable[..., Sequence[torch.Tensor]]
    examples: tuple[torch.Tensor, ...]
    sizes: dict[str, int]
    """Example size of each dynamic dimension."""
    ranges: dict[str, dict[str, Any]]
    """What the user said of the dynamic dimensions: min, opt, max."""
    notes: list[str]
    flat: Flat | None = None
    """What a module's exporters take; None for an exported program."""
    program: torch.export.ExportedProgram | None = None
    symbols: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of an exported program: its symbol or expression -> the dimension's name."""
    dim_ranges: dict[str, list[int | None]] = dataclasses.field(default_factory=dict)
    """What the exporter found each dynamic dimension to be good for: [min, max]."""

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the original. Raises WorkerError of kind usage when it does not take these inputs."""
        try:
            with torch.inference_mode():
                return list(self.call(*tensors))
        except Exception as error:  # torch and the model's own code raise whatever they meet
            if ran_out_of_memory(error):
                raise
            shapes = ", ".join(f"{i.name}{list(t.shape)}" for i, t in zip(self.inputs, tensors, strict=True))
            raise WorkerError(
                "usage",
                f"The model does not run on {shapes}: {type(error).__name__}: {first_line(error)}",
                "Correct --input, --dim or the sample.",
            ) from error

    def take(self, given: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
        """Return the arrays as tensors in the order and types of the inputs. Raises WorkerError of kind usage."""
        names = [each.name for each in self.inputs]
        if set(given) != set(names):
            raise WorkerError("usage", f"The model's inputs are {', '.join(names)}; given: {', '.join(given)}.")
        for each in self.inputs:
            _check_array(each, given[each.name])
        return [to_tensor(given[each.name], each.dtype) for each in self.inputs]

    def examples_of(self, sizes: Mapping[str, int], seed: int) -> tuple[torch.Tensor, ...]:
        """Return example tensors with these sizes of the dynamic dimensions."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(each.example(sizes, generator) for each in self.inputs)


def open_module(loaded: Loaded, request: Request) -> Subject:
    """Return the subject of a module (Python or TorchScript), after one run on the example."""
    module = loaded.module
    assert module is not None
    defaults = default_inputs(module, guess=not request["inputs"]) if loaded.huggingface else []
    # A Hugging Face forward swallows any keyword: a name that it does not list is a mistake.
    inputs = module_inputs(module, request, defaults, any_keyword=not loaded.huggingface)
    ranges = _ranges(request, inputs)
    sizes = example_sizes(inputs, ranges)
    names = [each.name for each in inputs]
    flat = Flat(module, names, _positional(module, names), [()])
    subject = Subject(inputs, [], flat, (), sizes, ranges, loaded.notes, flat=flat)
    subject.examples = subject.examples_of(sizes, request["seed"])
    flat.paths = _find_outputs(subject)
    flat.eval()
    return subject


def _find_outputs(subject: Subject) -> list[tuple[Key, ...]]:
    """Run the example with the whole result as the only output, and return the paths of the tensors in it."""
    [result] = subject.run(subject.examples)
    left_out: list[str] = []
    paths = list(_tensors(result, (), left_out))
    if not paths:
        raise WorkerError("unsupported", f"The model returns no tensor but {type(result).__name__}.")
    if left_out:
        subject.notes.append(f"Outputs that are no tensors were left out: {', '.join(left_out[:5])}.")
    taken = {each.name for each in subject.inputs}
    subject.output_names = output_names(paths, taken)
    plain = output_names(paths, set())
    for name, own in zip(subject.output_names, plain, strict=True):
        if own in taken:
            subject.notes.append(f"Output '{own}' has the name of an input, which ONNX forbids: it is called '{name}'.")
    return paths


def output_names(paths: list[tuple[Key, ...]], taken: set[str]) -> list[str]:
    """Return a unique name for each path, none of `taken`: its keys joined, or `output`."""
    names: list[str] = []
    for path in paths:
        parts = [str(key) for _, key in path]
        name = "_".join(parts) if parts and not parts[0].isdigit() else "_".join(["output", *parts])
        if name in taken:
            name += "_output"
        while name in names or name in taken:
            name += "_"
        names.append(name)
    return names


def _tensors(value: Any, path: tuple[Key, ...], left_out: list[str]) -> Iterator[tuple[Key, ...]]:
    """Yield the paths of all tensors in `value`; None and empty containers are no outputs at all."""
    if isinstance(value, torch.Tensor):
        yield path
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[Any, Any]", value).items():
            yield from _tensors(item, (*path, ("item", key)), left_out)
    elif hasattr(value, "_fields"):  # a named tuple
        for key in value._fields:
            yield from _tensors(getattr(value, key), (*path, ("field", key)), left_out)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(cast("Sequence[Any]", value)):
            yield from _tensors(item, (*path, ("item", i)), left_out)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), (*path, ("field", field.name)), left_out)
    elif value is not None:
        left_out.append("_".join(str(key) for _, key in path) or "output")


def _follow(value: Any, path: tuple[Key, ...]) -> Any:
    for kind, key in path:
        value = value[key] if kind == "item" else getattr(value, key)
    return value


def _positional(module: torch.nn.Module, names: list[str]) -> int:
    """Return how many inputs go by position: all for *args, otherwise those that have no keyword."""
    parameters = parameters_of(module)
    if any(p.kind == "many" for p in parameters):
        return len(names)
    return sum(p.kind == "positional" and p.name in names for p in parameters)


def _ranges(request: Request, inputs: list[Input]) -> dict[str, dict[str, Any]]:
    used = list(dict.fromkeys(dim for each in inputs for dim in each.dims if isinstance(dim, str)))
    for name in request["dims"]:
        if name not in used:
            shown = ", ".join(used) or "none"
            raise WorkerError("usage", f"--dim {name} is no dynamic dimension of the inputs.", f"They are: {shown}.")
    return {name: request["dims"].get(name, {}) for name in used}


def _check_array(each: Input, array: np.ndarray) -> None:
    fits = array.ndim == len(each.dims) and all(
        isinstance(d, str) or d == n for d, n in zip(each.dims, array.shape, strict=True)
    )
    if not fits:
        raise WorkerError(
            "usage",
            f"Input '{each.name}' has shape {list(array.shape)}; the model takes "
            f"[{', '.join(map(str, each.dims))}] {type_name(each.dtype)}.",
        )


# --- exported programs --------------------------------------------------------------------------------------------


def open_program(loaded: Loaded, request: Request) -> Subject:
    """Return the subject of an exported program: it has its own inputs, sizes and ranges."""
    program = loaded.program
    assert program is not None
    leaves, slots, inputs = _program_inputs(program)
    own_ranges = _own_ranges(program)
    symbols = _renamed(inputs, request, own_ranges)
    module: Any = program.module()
    in_spec: Any = program.call_spec.in_spec

    def call(*tensors: torch.Tensor) -> list[torch.Tensor]:
        filled = list(leaves)
        for slot, tensor in zip(slots, tensors, strict=True):
            filled[slot] = tensor
        args, kwargs = pytree.tree_unflatten(filled, in_spec)
        result = module(*args, **kwargs)
        return [_follow(result, path) for path in paths]

    paths: list[tuple[Key, ...]] = [()]
    ranges = _program_ranges(request, inputs, symbols, own_ranges)
    subject = Subject(inputs, [], call, (), {}, ranges, loaded.notes, program=program, symbols=symbols)
    subject.dim_ranges = {name: [said.get("min"), said.get("max")] for name, said in ranges.items()}
    subject.sizes = _program_sizes(inputs, leaves, slots, ranges)
    subject.examples = _program_examples(subject, leaves, slots, request["seed"])
    paths[:] = _find_outputs(subject)
    return subject


def _program_inputs(program: torch.export.ExportedProgram) -> tuple[list[Any], list[int], list[Input]]:
    """Return all leaves of the call (None where a tensor goes), the slots of the tensors, and the inputs."""
    from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

    given = program.example_inputs
    examples = pytree.tree_leaves(given) if given else None
    shapes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    leaves: list[Any] = []
    slots: list[int] = []
    inputs: list[Input] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            value = shapes[spec.arg.name]
            dims = tuple(size if isinstance(size, int) else str(size.node.expr) for size in value.shape)
            slots.append(len(leaves))
            leaves.append(examples[len(leaves)] if examples else None)
            inputs.append(Input(spec.arg.name, dims, value.dtype))
        elif isinstance(spec.arg, ConstantArgument):
            leaves.append(spec.arg.value)
        else:
            raise WorkerError("unsupported", f"The program's input '{spec.arg.name}' is a number, not a tensor.")
    return leaves, slots, inputs


def _own_ranges(program: torch.export.ExportedProgram) -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = {}
    for symbol, span in program.range_constraints.items():
        high = str(span.upper)
        found[str(symbol)] = [int(span.lower), int(high) if high.isdigit() and int(high) < 2**31 else None]
    return found


def _renamed(inputs: list[Input], request: Request, own: Mapping[str, Any]) -> dict[str, str]:
    """Give the dims the names of --input, and return expression -> name. Raises WorkerError on a contradiction."""
    by_name = {each.name: each for each in inputs}
    symbols: dict[str, str] = {}
    for name, given in request["inputs"].items():
        if name not in by_name:
            raise WorkerError("usage", f"The model has no input '{name}'.", f"Its inputs: {', '.join(by_name)}.")
        each = by_name[name]
        if given["dtype"] and given["dtype"] != type_name(each.dtype):
            raise WorkerError("usage", f"Input '{name}' is {type_name(each.dtype)} in the .pt2, not {given['dtype']}.")
        for axis, (said, is_) in enumerate(_aligned(name, given["dims"], each.dims)):
            _rename(symbols, name, axis, said, is_)
    _name_the_rest(symbols, inputs)
    for each in inputs:
        each.dims = tuple(symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in each.dims)
    taken = list(symbols.values())
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice:
        raise WorkerError("usage", f"'{twice}' names two dimensions that the .pt2 holds apart.", "Use two names.")
    return symbols


def _name_the_rest(symbols: dict[str, str], inputs: list[Input]) -> None:
    """Name the dims that the user did not: `batch` if all first ones are one dim, else after the first input with it.

    A .pt2 keeps no names but those of torch's own, such as s77.
    """
    first = {each.dims[0] for each in inputs if each.dims and isinstance(each.dims[0], str)}
    for each in inputs:
        for axis, dim in enumerate(each.dims):
            if isinstance(dim, int) or dim in symbols or not dim.isidentifier():
                continue
            name = "batch" if axis == 0 and len(first) == 1 else f"{each.name}_dim{axis}"
            while name in symbols.values():
                name += "_"
            symbols[dim] = name


def _aligned(name: str, said: list[Dim], dims: tuple[Dim, ...]) -> list[tuple[Dim, Dim]]:
    if len(said) != len(dims):
        raise WorkerError("usage", f"Input '{name}' has {len(dims)} dimensions in the .pt2, not {len(said)}.")
    return list(zip(said, dims, strict=True))


def _rename(symbols: dict[str, str], name: str, axis: int, said: Dim, is_: Dim) -> None:
    if isinstance(is_, int) and said != is_:
        raise WorkerError(
            "usage",
            f"Dimension {axis} of '{name}' is fixed to {is_} in the .pt2; --input says {said}.",
            "Export it again with dynamic_shapes, or leave --input out.",
        )
    if isinstance(is_, str) and isinstance(said, int):
        raise WorkerError(
            "usage",
            f"Dimension {axis} of '{name}' is dynamic in the .pt2; --input fixes it to {said}.",
            "Give it a name, or export it again with this size.",
        )
    if isinstance(is_, str) and isinstance(said, str) and symbols.setdefault(is_, said) != said:
        raise WorkerError(
            "usage",
            f"'{symbols[is_]}' and '{said}' are one dimension in the .pt2.",
            "Give them one name.",
        )


def _program_ranges(
    request: Request, inputs: list[Input], symbols: Mapping[str, str], own: Mapping[str, list[int | None]]
) -> dict[str, dict[str, Any]]:
    """Return the ranges of the dims by name: the user's, inside what the program was exported for."""
    ranges = _ranges(request, inputs)
    for symbol, (low, high) in own.items():
        name = symbols.get(symbol, symbol)
        if name not in ranges:
            continue
        said = ranges[name]
        too_low = low is not None and said and (said.get("min") or 1) < low and low > 2
        too_high = high is not None and said and (said.get("max") or 0) > high
        if too_low or too_high:
            raise WorkerError(
                "usage",
                f"The .pt2 was exported for {name} = {low}..{high or ''}; --dim asks for "
                f"{said.get('min')}..{said.get('max')}.",
                "Export it again with a wider range, or narrow --dim.",
            )
        ranges[name] = {"min": low, "opt": None, "max": high} | {k: v for k, v in said.items() if v is not None}
    return ranges


def _program_sizes(
    inputs: list[Input], leaves: list[Any], slots: list[int], ranges: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    sizes = example_sizes(inputs, ranges)
    for each, slot in zip(inputs, slots, strict=True):
        if leaves[slot] is not None:
            sizes.update({d: n for d, n in zip(each.dims, leaves[slot].shape, strict=True) if isinstance(d, str)})
    return sizes


def _program_examples(subject: Subject, leaves: list[Any], slots: list[int], seed: int) -> tuple[torch.Tensor, ...]:
    if all(leaves[slot] is not None for slot in slots):
        return tuple(leaves[slot] for slot in slots)
    return subject.examples_of(subject.sizes, seed)
