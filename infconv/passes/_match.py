"""What a rule is matched against, and what comes of it: a match, or a refusal with its reason (`_search.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._pattern import OpKey, Rule


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A near miss: the root operator was there, but the rule did not apply."""

    rule: str
    node: str
    """The root's name, or that of its first output when it has none; empty when it is about the whole model."""
    reason: str
    depth: int
    """How much of the pattern had matched; larger is nearer."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """What holds for a whole model graph, or for a whole function."""

    imports: Mapping[str, int]
    """Operator set versions by domain."""
    functions: Collection[tuple[str, str, str]]
    """The operators that the model defines itself: domain, name, overload."""
    explain: bool

    @property
    def opset(self) -> int:
        """The version of the standard operator set; 0 when it is not imported."""
        return self.imports.get("", self.imports.get("ai.onnx", 0))


@dataclasses.dataclass(frozen=True)
class Match:
    """A place where a rule's pattern applies."""

    root: ir.Node
    nodes: tuple[ir.Node, ...]
    """The matched nodes, the root first."""
    outputs: tuple[ir.Value, ...]
    """The values to be replaced."""
    bindings: Mapping[str, Any]
    """By variable name: ir.Value, attribute value, ir.Node, tuple of values; None for what is absent."""
    opset: int
    """The version of the standard operator set."""

    def __getitem__(self, name: str) -> Any:
        return self.bindings[name]

    def value(self, name: str) -> ir.Value:
        """Return the value that is bound to `name`. Raises TypeError for anything else."""
        found = self.bindings[name]
        if not isinstance(found, ir.Value):
            raise TypeError(f"'{name}' is bound to {found!r}, not to a value")
        return found

    def array(self, name: str) -> np.ndarray:
        """Return the constant that is bound to `name`, to be read only. Raises TypeError when it is none."""
        found = _values.constant(self.value(name))
        if found is None:
            raise TypeError(f"'{name}' is bound to {self.value(name)!r}, not to a constant")
        return found

    def first(self) -> tuple[str, ir.Value | None]:
        """Return the name and value of the first variable that stands for a value."""
        return next(((n, v) for n, v in self.bindings.items() if isinstance(v, ir.Value)), ("the result", None))


def heads(node: ir.Node) -> tuple[OpKey | None, ...]:
    """Return what operator each input of `node` comes from."""
    return tuple([head(value) for value in node.inputs])


def head(value: ir.Value | None) -> OpKey | None:
    """Return what operator `value` comes from."""
    producer = None if value is None else value.producer()
    return None if producer is None else (producer.domain, producer.op_type)


def plausible(rule: Rule, inputs: Sequence[OpKey | None]) -> bool:
    """Whether operators alone do not rule out that `rule` matches a node with these `heads`."""
    for call in rule.pattern.root_calls:
        if call.some and call.some.isdisjoint(inputs):
            continue
        wanted = call.heads[: len(inputs)]
        orders = (inputs, inputs[::-1]) if call.commutative else (inputs,)
        if any(all(w is None or i in w for w, i in zip(wanted, order, strict=False)) for order in orders):
            return True
    return False


def label(node: ir.Node) -> str:
    """Return what to call `node` in a message: its name, or that of its first output."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type


def opset_refusal(rule: Rule, opset: int) -> str:
    """Return why `rule` does not apply to models of this opset; empty when it does."""
    if opset < rule.since_opset:
        return f"the rule needs opset {rule.since_opset}, the model has {opset}"
    if rule.before_opset is not None and opset >= rule.before_opset:
        return f"the rule is for opsets below {rule.before_opset}, the model has {opset}"
    return ""
