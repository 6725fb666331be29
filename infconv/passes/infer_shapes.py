"""Types and shapes of every value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from infconv.passes import _dims, _native
from infconv.passes._base import Context, Pass
from infconv.passes._dims import Dims
from infconv.passes._graphs import standard_opset, with_subgraphs
from infconv.passes._symbolic import Hint, Symbolic, has_rule, symbolic_facts


class InferShapes(Pass):
    """Work out the type and shape of every value, dynamic dimensions as expressions of the inputs' names.

    `x: float[batch, 128, 64]` reshaped to `[-1, 64]` is `float[128*batch, 64]`. A dimension that has no name gets one
    from the value where it first appears (`x_dim_0`), so that equal sizes can be told. The declared inputs and outputs
    of the model and of its subgraphs are interfaces and stay as they are. Declared shapes of inner values give way to
    what the operators say, as many files carry stale ones.
    """

    keeps_facts: ClassVar[bool] = True

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the number of values whose type or shape is now known better."""
        opset = standard_opset(model.opset_imports) or 0
        facts = symbolic_facts(model, context)
        typed: set[ir.Value] = set()
        graphs = with_subgraphs(model.graph)
        inner = _inner_values(graphs)
        if any(_may_know(node, model, facts) for graph in graphs for node in graph):
            wanted = [value for value in inner if _is_unknown(value, facts)]
            types = _native.infer(model, facts, wanted, context.notes)
            hints = {value: hint for value, payload in types.items() if (hint := _hint(payload)) is not None}
            typed = {value for value, payload in types.items() if _set_type(value, facts, payload)}
            if types:
                facts = Symbolic(model.graph, opset, hints).run()
                if context.remembered is not None:
                    context.remembered.shapes = facts
        _note_contradictions(facts, context)
        # what a body declares, runtimes hold the outer graph to
        fixed = {value for graph in graphs for value in (*graph.inputs, *graph.outputs)}
        changed = 0
        for value in inner:
            gained = _set_type(value, facts, None) or value in typed
            if value not in fixed:
                gained |= _set_shape(value, facts.dims(value))
            changed += gained
        return changed


def _inner_values(graphs: Sequence[ir.Graph]) -> list[ir.Value]:
    """Return the values that nodes compute, and the inputs of subgraphs: of all `graphs` but the first."""
    found: list[ir.Value] = []
    for graph in graphs:
        if graph is not graphs[0]:
            found.extend(graph.inputs)
        for node in graph:
            found.extend(value for value in node.outputs if value.name)
    return found


def _may_know(node: ir.Node, model: ir.Model, facts: Symbolic) -> bool:
    """Return whether onnx may know more of a node's outputs than the rules here did."""
    if node.domain:
        return node.op_identifier() in model.functions
    if not has_rule(node):
        return any(_is_unknown(value, facts) for value in node.outputs)
    if not any(_is_unknown(value, facts) for value in node.outputs if value.name):
        return False
    return all(value is None or facts.dims(value) is not None for value in node.inputs)


def _is_unknown(value: ir.Value, facts: Symbolic) -> bool:
    """Return whether to ask onnx: the type or rank is not known, or only declared by the file."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return False
    if facts.facts.dtype(value) is None or facts.dims(value) is None:
        return True
    node = value.producer()
    return node is not None and not has_rule(node)


def _hint(payload: bytes) -> Hint | None:
    """Return a tensor's inferred shape, None for a type without one."""
    import onnx

    proto = onnx.TypeProto.FromString(payload)
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    # onnx makes up "unk__7" for what it does not know
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None if dim.dim_param.startswith("unk__") else dim.dim_param
        for dim in proto.tensor_type.shape.dim
    )


def _set_type(value: ir.Value, facts: Symbolic, payload: bytes | None) -> bool:
    """Give `value` its type if it has none; return whether it had none."""
    if value.type is not None:
        return False
    dtype = facts.facts.dtype(value)
    if dtype is not None:
        value.type = ir.TensorType(dtype)
    elif payload:
        import onnx

        value.type = ir.serde.deserialize_type_proto_for_type(onnx.TypeProto.FromString(payload))
    return value.type is not None


def _set_shape(value: ir.Value, dims: Dims | None) -> bool:
    """Give `value` the shape `dims`; return whether it is news."""
    if dims is None or (value.type is not None and not isinstance(value.type, ir.TensorType)):
        return False
    new = [dim if isinstance(dim, int) else _dims.name_of(dim) for dim in dims]
    if value.shape is not None:
        old = [dim if isinstance(dim, int) else dim.value for dim in value.shape.dims]
        if old == new:
            return False
    value.shape = ir.Shape(new)
    return True


def _note_contradictions(facts: Symbolic, context: Context) -> None:
    wrong = facts.contradictions
    if wrong:
        value = wrong[0]
        derived = ",".join(map(str, facts.dims(value) or ()))
        context.notes.append(
            f"{len(wrong)} declared shapes contradict the operators: "
            f"'{value.name}' is declared {value.shape}, but is [{derived}]."
        )
        facts.contradictions.clear()  # they are about to be corrected
