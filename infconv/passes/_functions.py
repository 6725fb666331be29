"""Put the body of a function in the place of a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from infconv.passes._build import Names
from infconv.passes._graphs import detach, remove, subgraphs, take_over


def reachable(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Return the functions that the main graph calls, directly or through other functions."""
    found: set[ir.OperatorIdentifier] = set()
    queue: list[ir.Graph] = [model.graph]
    while queue:
        called = {node.op_identifier() for node in queue.pop().all_nodes()} & model.functions.keys()
        queue.extend(model.functions[name].graph for name in called - found)
        found |= called
    return found


def inline(call: ir.Node, function: ir.Function, names: Names) -> list[ir.Node]:
    """Replace `call` by the nodes of `function`; return them, without those in subgraphs.

    The outputs keep the names, types and shapes of the call's. Raises ValueError when the call does not fit the
    function.
    """
    graph = call.graph
    assert graph is not None
    nodes, results = _instantiate(function, call, names)
    graph.insert_before(call, nodes)
    own = {output for node in nodes for output in node.outputs}
    for old, new in zip(call.outputs, results, strict=False):
        if new is None:
            _withdraw(old)
            continue
        if new in own and not old.is_graph_output() and old.name:
            own.discard(new)
            _inherit(old, new)
        take_over(old, new)
    detach(call)
    remove([call])
    return nodes


def _instantiate(function: ir.Function, call: ir.Node, names: Names) -> tuple[list[ir.Node], list[ir.Value | None]]:
    """Return a copy of the body with the call's inputs and attributes in it, and the values that it returns."""
    wanted = len(call.outputs)
    while wanted and not call.outputs[wanted - 1].name:
        wanted -= 1
    if len(call.inputs) > len(function.inputs) or wanted > len(function.outputs):
        raise ValueError(
            f"'{call.name}' calls {function.name} with {len(call.inputs)} inputs and {wanted} outputs, "
            f"which has {len(function.inputs)} and {len(function.outputs)}"
        )
    body = function.clone().graph
    arguments = dict.fromkeys(body.inputs)
    arguments.update(zip(body.inputs, call.inputs, strict=False))
    _resolve_attributes(body, call.attributes, function.attributes)
    _rename(body, names, call.name or function.name)
    for parameter, argument in arguments.items():
        for node, index in parameter.uses():
            node.replace_input_with(index, argument)
            while node.inputs and node.inputs[-1] is None:
                node.resize_inputs(len(node.inputs) - 1)
    results = [arguments.get(output, output) for output in body.outputs]
    body.outputs.clear()
    nodes = list(body)
    body.remove(nodes)
    for node in nodes:
        for key, value in call.metadata_props.items():
            node.metadata_props.setdefault(key, value)
    return nodes, results


def _resolve_attributes(body: ir.Graph, given: Mapping[str, ir.Attr], defaults: Mapping[str, ir.Attr]) -> None:
    """Replace references to the function's attributes; one without a value is an attribute that is left out."""
    for node in list(body.all_nodes()):
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref():
                continue
            reference = attribute.ref_attr_name or ""
            source = given.get(reference, defaults.get(reference))
            if source is None or (source.value is None and not source.is_ref()):
                del node.attributes[name]
            else:
                node.attributes[name] = _renamed_attribute(name, source)


def _renamed_attribute(name: str, source: ir.Attr) -> ir.Attr:
    if source.is_ref():
        return ir.RefAttr(name, source.ref_attr_name or "", source.type)
    if source.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(name, source.as_graph().clone(allow_outer_scope_values=True))
    if source.type == ir.AttributeType.GRAPHS:
        return ir.AttrGraphs(name, [graph.clone(allow_outer_scope_values=True) for graph in source.as_graphs()])
    return ir.Attr(name, source.type, source.value)


def _rename(body: ir.Graph, names: Names, prefix: str) -> None:
    """Give every node and value in `body` a name that is unique in the model that it goes to."""
    for graph in _with_subgraphs(body):
        inner = [] if graph is body else [*graph.inputs, *graph.initializers.values()]
        for value in dict.fromkeys([*inner, *(output for node in graph for output in node.outputs)]):
            if value.name != "":
                value.name = names.fresh(f"{prefix}/{value.name}")
            # A function is written for any size: what it says of one dimension here may not hold at this call.
            if value.shape is not None and not value.shape.is_static():
                value.shape = None
        for node in graph:
            node.name = names.fresh(f"{prefix}/{node.name or node.op_type}")


def _with_subgraphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for inner in subgraphs(node):
            yield from _with_subgraphs(inner)


def _inherit(old: ir.Value, new: ir.Value) -> None:
    """Give `new` the name of `old`, and what is known of it."""
    name, old.name = old.name, None
    new.name = name
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.metadata_props.update(old.metadata_props)


def _withdraw(value: ir.Value) -> None:
    """Make `value` absent for its users: the function returns an optional input that the call did not give."""
    if value.is_graph_output():
        raise ValueError(f"the output '{value.name}' is an optional input that is not given")
    for node, index in value.uses():
        node.replace_input_with(index, None)
