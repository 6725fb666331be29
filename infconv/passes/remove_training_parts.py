"""What only training needs."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._graphs import detach, remove, scopes, standard_opset, take_over


class RemoveTrainingParts(Pass):
    """Remove Dropout, which does nothing in inference; what really trains is kept and named in a note.

    A used mask becomes the constant true of the data's shape, which is what inference fills it with since opset 12;
    before that it is undefined, and the node stays.

    `y = Dropout(x)` becomes `x`.
    """

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were removed."""
        names = Names(model)
        changes = 0
        for scope in scopes(model):
            version = standard_opset(scope.opset_imports)
            if version is not None:
                changes += _clean(scope, version, names, context)
        return changes


def _clean(scope: ir.Graph, version: int, names: Names, context: Context) -> int:
    removed: list[ir.Node] = []
    for node in list(scope.all_nodes()):
        if node.domain:
            continue
        if node.op_type == "BatchNormalization" and (reason := _batch_norm_trains(node, version)):
            context.notes.append(f"BatchNormalization '{node.name}' was kept: {reason}.")
        if node.op_type == "Dropout":
            reason = _dropout_trains(node, version)
            if reason is None:
                _bypass(node, names, version)
                removed.append(node)
            else:
                context.notes.append(f"Dropout '{node.name}' was kept: {reason}.")
    for node in removed:
        detach(node)
    remove(removed)
    return len(removed)


def _batch_norm_trains(node: ir.Node, version: int) -> str | None:
    if version >= 14:
        return "training_mode is 1, it normalizes by its batch" if node.attributes.get_int("training_mode", 0) else None
    if version < 7:
        return None if node.attributes.get_int("is_test", 0) else "is_test is 0, it normalizes by its batch"
    if any(output.name for output in node.outputs[1:]):
        return "its running statistics are outputs, so it trains"
    return None


def _dropout_trains(node: ir.Node, version: int) -> str | None:
    """Return why a Dropout must stay, or None."""
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and version < 12 and (_values.use_count(mask) or mask.is_graph_output()):
        return f"its mask is used, which opset {version} does not define for inference"
    if version < 7:
        return None if node.attributes.get_int("is_test", 0) else "is_test is 0, it trains"
    training = node.inputs[2] if version >= 12 and len(node.inputs) > 2 else None
    if training is None:
        return None
    constant = _values.constant(training)
    if constant is None:
        return f"whether it trains is decided by '{training.name}' at run time"
    return "training_mode is true" if constant.any() and not _drops_nothing(node) else None


def _drops_nothing(node: ir.Node) -> bool:
    return len(node.inputs) > 1 and _values.scalar(node.inputs[1]) == 0.0


def _bypass(node: ir.Node, names: Names, version: int) -> None:
    data, graph = node.inputs[0], node.graph
    assert data is not None
    assert graph is not None
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and (_values.use_count(mask) or mask.is_graph_output()):
        op = Builder(graph, {"": version}, names, f"{node.name or 'dropout'}/", initializers=False)
        kept = op.ConstantOfShape(op.Shape(data), value=ir.tensor([True]))
        op.add_to_graph(node)
        take_over(mask, kept)
    take_over(node.outputs[0], data)
