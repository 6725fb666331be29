"""Move nodes between versions of the standard operator set, up or down, subgraphs included.

onnx has a converter in C++, which this does not use: it passes every weight through a 2 GB protobuf, leaves subgraphs
and functions as they are, loses names, metadata and types other than tensors, and crashes on some models. Here, a node
walks from version to version of its own operator. Most versions only add types, optional inputs or attributes; that is
read off onnx's schemas (`_carry`). The others have an adapter in `_opset_up` or `_opset_down`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir

from infconv.passes._build import Builder, Names
from infconv.passes._functions import inline
from infconv.passes._graphs import DEFAULT_DOMAINS, detach, remove, scopes, standard_opset, take_over
from infconv.passes._pattern import Refuse

Adapter: TypeAlias = Callable[[ir.Node, Builder], Sequence[ir.Value] | None]
"""Rewrites a node for another version of its operator.

It edits the node and returns None, or returns the values that replace the node's outputs. Nodes that it needs, it makes
with the builder, in terms of the version that is converted to. Raises Refuse when the node cannot be expressed.
"""
Table: TypeAlias = dict[tuple[str, int], Adapter]
"""(operator, version of that operator that is converted to) -> adapter."""

_IGNORED = frozenset({"consumed_inputs"})
"""Attributes that never meant anything: a hint of Caffe2 for working in place."""


class CannotConvert(Refuse):
    """A node that the other version cannot express; the text names it."""


@cache
def schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """Return the operator as opset `version` knows it; None when it does not."""
    try:
        return onnx.defs.get_schema(op_type, version)
    except onnx.defs.SchemaError:
        return None


@cache
def since(op_type: str, version: int) -> int:
    """Return the version of the operator that opset `version` contains, 0 when it does not contain it."""
    found = schema(op_type, version)
    return found.since_version if found else 0


def convert_scopes(model: ir.Model, target: int) -> int:
    """Bring the main graph and the functions of `model` to opset `target`; return how many nodes changed.

    Raises CannotConvert, half way through.
    """
    names = Names(model)
    changes = 0
    for scope in scopes(model):
        source = standard_opset(scope.opset_imports)
        if source is None or source == target:
            continue
        changes += Converter(source, target, names, model.functions.keys()).convert(scope)
        for domain in DEFAULT_DOMAINS:
            scope.opset_imports.pop(domain, None)
        scope.opset_imports[""] = target
    return changes


@cache
def _following(op_type: str, version: int, target: int) -> int | None:
    now = since(op_type, version)
    if not now:
        raise Refuse(f"is not an operator of opset {version}")
    if target > version:
        return next((v for v in range(version + 1, target + 1) if since(op_type, v) > now), None)
    # Downwards, the version before this one is in the opset just below it.
    return max(now - 1, target) if now > target else None


@cache
def _only_grows(op_type: str, version: int, following: int) -> bool:
    """Whether every use of the operator in opset `version` is right, and means the same, in `following`."""
    old, new = schema(op_type, version), schema(op_type, following)
    if old is None or new is None or new.deprecated or old.attributes.keys() - new.attributes.keys():
        return False
    if new.min_input > old.min_input or new.max_input < old.max_input or new.max_output < old.max_output:
        return False
    same_defaults = all(
        not attribute.default_value.name
        or attribute.default_value.SerializeToString() == new.attributes[name].default_value.SerializeToString()
        for name, attribute in old.attributes.items()
    )
    return same_defaults and all(set(a.types) <= set(b.types) for a, b in zip(old.inputs, new.inputs, strict=False))


class Converter:
    """Moves nodes from one opset to another. `functions` are the model's own, which are no standard operators."""

    def __init__(self, source: int, target: int, names: Names, functions: Collection[ir.OperatorIdentifier]) -> None:
        from infconv.passes import _opset_down, _opset_up

        self.source = source
        self.target = target
        self.names = names
        self.functions = functions
        self.table: Table = _opset_up.ADAPTERS if target > source else _opset_down.ADAPTERS

    def convert(self, scope: ir.Graph) -> int:
        """Convert the nodes of `scope` and its subgraphs; return how many changed. Raises CannotConvert."""
        return sum(self._node(node) for node in list(scope.all_nodes()))

    def _node(self, node: ir.Node) -> bool:
        changed = False
        queue = [(node, self.source)]
        while queue:
            current, version = queue.pop()
            if current.domain or current.op_identifier() in self.functions:
                continue
            while (following := self._next(current, version)) is not None:
                if self._is_missing(current, following):
                    queue += [(new, version) for new in self._expand(current, version)]
                    changed = True
                    break
                made, edited = self._step(current, version, following)
                changed |= edited
                queue += [(new, following) for new in made]
                if current.graph is None:
                    break
                version = following
        return changed

    def _next(self, node: ir.Node, version: int) -> int | None:
        """Return the next opset on the way to the target in which the operator differs; None at the end."""
        try:
            return _following(node.op_type, version, self.target)
        except Refuse as reason:
            raise CannotConvert(f"{_label(node)} {reason}") from reason

    def _is_missing(self, node: ir.Node, following: int) -> bool:
        """Whether opset `following` neither has the operator nor is there another way to say it."""
        found = schema(node.op_type, following)
        return found is None or (found.deprecated and (node.op_type, found.since_version) not in self.table)

    def _step(self, node: ir.Node, version: int, following: int) -> tuple[Sequence[ir.Node], bool]:
        """Convert `node` to opset `following`; return the nodes made for it, and whether it changed."""
        graph = node.graph
        assert graph is not None
        adapter = self.table.get((node.op_type, since(node.op_type, following)))
        if adapter is None and _only_grows(node.op_type, version, following):
            return (), False
        before = schema(node.op_type, version)
        if before is not None and len(node.inputs) < before.min_input:
            raise CannotConvert(f"{_label(node)} lacks an input that opset {version} requires")
        op = Builder(graph, {"": following}, self.names, f"{node.name or node.op_type}/", initializers=False)
        try:
            values = adapter(node, op) if adapter else None
            changed = bool(adapter)
            if values is None:
                changed |= _carry(node, version, following)
        except Refuse as reason:
            op.discard()
            raise CannotConvert(f"{_label(node)} cannot move from opset {version} to {following}: {reason}") from reason
        op.add_to_graph(node)
        if values is not None:
            for old, new in zip(node.outputs, values, strict=False):
                take_over(old, new)
            detach(node)
            remove([node])
        return op.nodes, changed

    def _expand(self, node: ir.Node, version: int) -> Sequence[ir.Node]:
        """Replace an operator that the target does not have by what the standard says that it is made of."""
        definition = schema(node.op_type, version)
        assert definition is not None
        for name, described in definition.attributes.items():
            if name not in node.attributes and described.default_value.name:
                node.attributes.add(ir.from_proto(described.default_value))
        function = _body(node, definition)
        if function is None:
            raise CannotConvert(f"{_label(node)} does not exist in opset {self.target}")
        try:
            return inline(node, function, self.names)
        except ValueError as error:
            raise CannotConvert(f"{_label(node)} does not exist in opset {self.target}, and {error}") from error


def _body(node: ir.Node, definition: Any) -> ir.Function | None:
    """Return the standard's definition of an operator in terms of others of the same opset; None: it is primitive.

    `definition` is an OpSchema; onnx's stubs lack the methods that are used here.
    """
    version = definition.since_version
    if definition.has_function:
        code = definition.get_function_with_opset_version(version)
    elif definition.has_context_dependent_function:
        types = [b"" if value is None else ir.to_proto(value).type.SerializeToString() for value in node.inputs]
        code = definition.get_context_dependent_function_with_opset_version(
            version, ir.to_proto(node).SerializeToString(), types
        )
    else:
        code = b""
    if not code:
        return None
    function = onnx.FunctionProto.FromString(code)
    computed = {*function.input, *(name for inner in function.node for name in inner.output)}
    for i, name in enumerate(function.output):
        if name not in computed:
            if i < len(node.outputs) and node.outputs[i].name:
                raise CannotConvert(f"{_label(node)} has the output {i}, which its definition leaves out")
            function.output[i] = function.output[0]  # any value will do for an output that nobody asks for
    return ir.from_proto(function)


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type


def _carry(node: ir.Node, version: int, following: int) -> bool:
    """Keep `node` as it is where the other version means the same by it; return whether an attribute was touched."""
    old, new = schema(node.op_type, version), schema(node.op_type, following)
    assert old is not None
    assert new is not None
    changed = _carry_attributes(node, old, new)
    while node.inputs and node.inputs[-1] is None and len(node.inputs) > new.max_input:
        node.resize_inputs(len(node.inputs) - 1)
    if not new.min_input <= len(node.inputs) <= new.max_input:
        raise Refuse(f"it has {len(node.inputs)} inputs there, between {new.min_input} and {new.max_input} are allowed")
    if sum(bool(output.name) for output in node.outputs) > new.max_output:
        raise Refuse(f"it has {new.max_output} outputs there")
    for value, parameter in zip(node.inputs, new.inputs, strict=False):
        if value is not None and isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.UNDEFINED:
            name = f"tensor({value.type.dtype.name.lower()})"
            if name not in parameter.types:
                raise Refuse(f"the input '{parameter.name}' may not be of type {name}")
    return changed


def _carry_attributes(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    changed = False
    for name in list(node.attributes):
        if name in _IGNORED or (name not in new.attributes and _is_default(node.attributes[name], old)):
            del node.attributes[name]
            changed = True
        elif name in old.attributes and name not in new.attributes:
            raise Refuse(f"the attribute '{name}' does not exist there")
    for name, attribute in old.attributes.items():
        default = attribute.default_value
        if name in node.attributes or not default.name or name not in new.attributes:
            continue
        if default.SerializeToString() != new.attributes[name].default_value.SerializeToString():
            node.attributes.add(ir.from_proto(default))
            changed = True
    return changed


def _is_default(attribute: ir.Attr, owner: onnx.defs.OpSchema) -> bool:
    """Whether `attribute` says what `owner` takes for granted."""
    if attribute.is_ref() or attribute.name not in owner.attributes:
        return False
    default = owner.attributes[attribute.name].default_value
    return bool(default.name) and ir.from_proto(default).value == attribute.value


# --- what adapters share -----------------------------------------------------------------------------------------


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute. Raises Refuse for one that the caller of a function decides."""
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise Refuse(f"the attribute '{name}' is a parameter of a function")
    return found.value


def take_attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute and remove it."""
    value = attribute(node, name, default)
    node.attributes.pop(name, None)
    return value


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Set input `index` of `node`, making room where there is none."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def get_input(node: ir.Node, index: int) -> ir.Value | None:
    """Return input `index` of `node`; None when it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None
