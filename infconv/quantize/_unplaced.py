"""Why no layer of a model gets 8 bits, for its user."""

from __future__ import annotations

import collections
from collections.abc import Collection

import onnx_ir as ir

from infconv.passes._values import dtype_of, tensor
from infconv.quantize._placement import Placement, layers_of


def why_none(model: ir.Model, placement: Placement, kept: Collection[str]) -> str:
    """Return one sentence; `kept`: names of the layers that the user keeps float."""
    layers = {layer.node: layer.name for layer in layers_of(model, placement.compute)}
    found: collections.Counter[str] = collections.Counter()
    for node in model.graph:
        if node.op_type in placement.compute and node.domain == "":
            if node in layers:
                found["kept by the user" if layers[node] in kept else _OUTPUT] += 1
            else:
                found[_form(node)] += 1
    if not found:
        return f"No layer is quantised: the main graph has none of {', '.join(sorted(placement.compute))}."
    return "No layer is quantised: " + "; ".join(f"{count} {reason}" for reason, count in found.items()) + "."


_OUTPUT = "whose output, which the kernel would round to 8 bits, is the model's"


def _form(node: ir.Node) -> str:
    weight, data = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 0))
    kind = dtype_of(weight) or dtype_of(data)
    if kind is not None and kind != ir.DataType.FLOAT:
        return f"in {kind.name.lower()} (only float32 is quantised)"
    if tensor(weight) is None:
        return "whose second operand is no constant"
    return "in a form that no 8-bit kernel takes"
