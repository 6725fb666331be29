"""Capturing a module with torch.export: dynamic dimensions, and what torch says when they do not hold."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch

from ._worker import WorkerError
from ._worker_torch_inputs import Dim
from ._worker_torch_subject import Subject

REFINEMENTS = 4
"""How often a range may be narrowed to what torch suggests before the capture counts as failed."""


class DimError(WorkerError):
    """A dynamic dimension that was asked for does not exist in the model. `final`: no other road can help."""

    def __init__(self, message: str, hint: str, *, final: bool) -> None:
        super().__init__("usage", message, hint)
        self.final = final


@dataclasses.dataclass
class _Facts:
    """What torch found out about the dimensions."""

    fixed: dict[str, int]
    spans: dict[str, tuple[int | None, int | None]]
    equal: dict[str, str]
    derived: dict[str, str]


def capture(subject: Subject, *, strict: bool) -> torch.export.ExportedProgram:
    """Return the exported program of `subject.flat` with its dynamic dimensions.

    Bounds that the user did not give are narrowed to what the model takes, with a note. Raises DimError.
    """
    from torch._dynamo.exc import UserError

    spans = {name: (said.get("min"), said.get("max")) for name, said in subject.ranges.items()}
    deferred = False
    for _ in range(REFINEMENTS):
        try:
            program = _export(subject, spans, strict=strict, deferred=deferred)
        except UserError as error:
            if "Constraints violated" not in str(error):
                raise
            facts = _facts(str(error))
            narrowed = _narrow(subject, spans, facts)
            # What relates dimensions, such as "a multiple of 2", becomes a check at run time instead of a failure.
            deferred, stuck = True, deferred and not narrowed
            if stuck:
                raise _refusal(facts, str(error)) from error
            continue
        subject.symbols = _symbols(subject, program)
        subject.dim_ranges = {name: [low or 1, high] for name, (low, high) in spans.items()}
        return program
    raise DimError("The dynamic dimensions do not settle.", "Give fewer of them.", final=False)


def _export(
    subject: Subject, spans: dict[str, tuple[int | None, int | None]], *, strict: bool, deferred: bool
) -> torch.export.ExportedProgram:
    dims = {name: torch.export.Dim(name, min=low or 1, max=high) for name, (low, high) in spans.items()}
    shapes = tuple(
        {axis: dims[dim] for axis, dim in enumerate(each.dims) if isinstance(dim, str)} for each in subject.inputs
    )
    assert subject.flat is not None
    return torch.export.export(
        subject.flat,
        subject.examples,
        dynamic_shapes={"args": shapes},
        strict=strict,
        prefer_deferred_runtime_asserts_over_guards=deferred,
    )


def _facts(message: str) -> _Facts:
    """Read torch's suggested fixes: `a = 2`, `a = Dim('a', min=2, max=16)`, `a = b`, `a = 2*_a`."""
    facts = _Facts({}, {}, {}, {})
    lines = message.partition("Suggested fixes:")[2].splitlines()
    for name, text in (m.groups() for m in map(re.compile(r"\s*(\w+) = (.+)").fullmatch, lines) if m):
        if text.isdigit():
            facts.fixed[name] = int(text)
        elif text.startswith("Dim("):
            facts.spans[name] = _bounds(text)
        elif text.isidentifier():
            facts.equal[name] = text
        else:
            facts.derived[name] = text
    return facts


def _bounds(text: str) -> tuple[int | None, int | None]:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    given: dict[str | None, Any] = {w.arg: w.value.value for w in call.keywords if isinstance(w.value, ast.Constant)}
    return given.get("min"), given.get("max")


def _narrow(subject: Subject, spans: dict[str, tuple[int | None, int | None]], facts: _Facts) -> bool:
    """Take over the bounds that torch found. Raises DimError where they contradict the user's own."""
    changed = False
    for name, (low, high) in facts.spans.items():
        if name not in spans:
            continue
        said = subject.ranges[name]
        too_high = high is not None and (said.get("max") or 0) > high
        too_low = low is not None and said.get("max") is not None and (said.get("min") or 1) < low
        if too_high or too_low:
            raise DimError(
                f"The model takes {name} = {low or 1}..{high or ''} (its code or its weights set that bound); "
                f"--dim asks for {said.get('min') or 1}..{said.get('max')}.",
                f"Use --dim {name}={low or 1}..{high or ''}",
                final=True,
            )
        new = (max(low or 1, spans[name][0] or 1), high if high is not None else spans[name][1])
        if new != spans[name]:
            spans[name] = new
            changed = True
            subject.notes.append(f"The model takes {name} = {new[0]}..{new[1] or ''}: its own bound.")
    return changed


def _refusal(facts: _Facts, message: str) -> DimError:
    for name, size in facts.fixed.items():
        return DimError(
            f"Dimension '{name}' cannot be dynamic: the model's code fixes it to {size}.",
            f"Give the number {size} instead of '{name}' in --input, or change the model.",
            final=False,
        )
    for name, other in facts.equal.items():
        return DimError(
            f"The dimensions '{name}' and '{other}' must be equal in this model.",
            f"Write '{other}' for both in --input.",
            final=True,
        )
    for name, text in facts.derived.items():
        return DimError(
            f"Dimension '{name}' is not free in this model: it must be {text}.",
            f"Give a number instead of '{name}' in --input.",
            final=False,
        )
    found = re.search(r"marked (.+?) as dynamic but your code specialized it to be a constant \((\d+)\)", message)
    what = f"{found.group(1)} is fixed to {found.group(2)}" if found else message.splitlines()[0]
    return DimError(f"A dynamic dimension does not hold: {what}.", "Give its size as a number.", final=False)


def _symbols(subject: Subject, program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return torch's symbol (or expression) of each dynamic dim -> its name. Raises DimError for a dim that is gone."""
    symbols: dict[str, str] = {}
    for name, axis, said, size in _captured_dims(subject, program):
        if not isinstance(said, str):
            continue
        if isinstance(size, int):
            raise DimError(
                f"Dimension '{said}' (axis {axis} of '{name}') was fixed to {size} by the capture.",
                f"Give the number {size} instead of '{said}' in --input, or change the model.",
                final=False,
            )
        other = symbols.setdefault(str(size.node.expr), said)
        if other != said:
            raise DimError(
                f"The dimensions '{said}' and '{other}' must be equal in this model.",
                f"Write '{other}' for both in --input.",
                final=True,
            )
    return symbols


def _captured_dims(subject: Subject, program: torch.export.ExportedProgram) -> Iterator[tuple[str, int, Dim, Any]]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for each, node_name in zip(subject.inputs, program.graph_signature.user_inputs, strict=True):
        shape: Any = values[str(node_name)].shape
        for axis, (said, size) in enumerate(zip(each.dims, shape, strict=True)):
            yield each.name, axis, said, size


def keep_tensor_outputs(program: torch.export.ExportedProgram) -> None:
    """Replace outputs that are numbers by None, in place: the exporter fails on them, and None is no ONNX output."""
    from torch.export.graph_signature import ConstantArgument, TensorArgument

    [output] = program.graph.find_nodes(op="output")
    results = list(output.args[0])
    for i, spec in enumerate(program.graph_signature.output_specs):
        if not isinstance(spec.arg, TensorArgument):
            spec.arg = ConstantArgument(name="", value=None)
            results[i] = None
    output.args = (tuple(results),)
    program.graph_module.recompile()


def loosen_views(program: torch.export.ExportedProgram) -> None:
    """Put a copy before each reshape of a transposed tensor, in place; the values stay the same.

    The exporter interprets the captured graph again, where operators such as attention return other strides than at
    the capture. A reshape that was captured as a view, because the strides allowed it, fails then: "Cannot view a
    tensor with shape ...". In ONNX the copy is an Identity.
    """
    aten = torch.ops.aten
    reshapes = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten._unsafe_view.default)
    turned = (aten.transpose.int, aten.permute.default)
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in list(module.graph.nodes):
            if node.target in reshapes and getattr(node.args[0], "target", None) in turned:
                _copy_before(module, node)
        module.recompile()


def _copy_before(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    with module.graph.inserting_before(node):
        copy = module.graph.call_function(
            torch.ops.aten.clone.default, (source,), {"memory_format": torch.contiguous_format}
        )
    copy.meta = {**source.meta, "val": source.meta["val"].contiguous()}
    node.update_arg(0, copy)
