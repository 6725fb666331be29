"""The layout of images at the model's inputs and outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, TypeAlias

import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import Context, Pass
from infconv.passes._build import Names
from infconv.passes._layouts import transpose_of
from infconv.passes._permute import Perm, inverse, is_identity, plan, then

Layout: TypeAlias = Literal["nchw", "nhwc"]

_CHANNELS_FIRST = frozenset({
    "AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LRN", "LpPool", "MaxPool",
    "MaxUnpool", "QLinearConv", "SpaceToDepth",
})  # fmt: skip
"""Operators whose first input and output are [batch, channels, …]."""
_FEWEST, _MOST = 3, 5
"""Ranks of what may be a signal, image or volume."""


class ConvertLayout(Pass):
    """Change whether images at the model's inputs and outputs have their channels before or after their rows.

    Inputs and outputs of rank 3 to 5 change their declared shape, and a Transpose is put beside them, which
    `push-transposes` then moves to where it costs least. In which layout an input is now is seen from the convolution,
    pooling or normalization that it reaches; what reaches none is left alone, and a note says so.

    With `inputs=nhwc`, `y = Conv(x, w)` of `x: float[1, 3, 224, 224]` becomes
    `y = Conv(Transpose(x, perm=[0, 3, 1, 2]), w)` of `x: float[1, 224, 224, 3]`.
    """

    inputs: Literal["keep", "nchw", "nhwc"] = "keep"
    """The layout that inputs shall have."""
    outputs: Literal["keep", "nchw", "nhwc"] = "keep"
    """The layout that outputs shall have."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the number of inputs and outputs that changed."""
        graph, names = model.graph, Names(model)
        perms = permutations(model, inputs=self.inputs, outputs=self.outputs, notes=context.notes)
        for value in list(graph.inputs):
            if value.name in perms:
                _convert_input(graph, value, perms[value.name], names)
        for index, value in enumerate(list(graph.outputs)):
            if value.name in perms:
                _convert_output(graph, index, perms[value.name], names)
        return len(perms)


def permutations(
    model: ir.Model, *, inputs: Layout | Literal["keep"], outputs: Layout | Literal["keep"], notes: list[str]
) -> dict[str, Perm]:
    """Return how the inputs and outputs that are in the other layout have to be transposed, by name.

    `notes` gets a sentence for each image of which nothing tells the layout.
    """
    graph, opset = model.graph, model.opset_imports.get("", 0)
    found: dict[str, Perm] = {}
    for value in graph.inputs if inputs != "keep" else ():
        if value.is_initializer() or value.is_graph_output() or not _is_image(value):
            continue
        layout = _layout_forward(value, opset)
        if layout is None:
            notes.append(f"Input '{value.name}' keeps its layout: it reaches no operator that tells which.")
        elif layout != inputs:
            found[value.name or ""] = _perm(layout, _values.rank(value) or 0)
    producers = _layouts_backward(graph, opset) if outputs != "keep" else {}
    for value in graph.outputs if outputs != "keep" else ():
        if not _is_image(value) or value.is_graph_input():
            continue
        layout = producers.get(value)
        if layout is None:
            notes.append(f"Output '{value.name}' keeps its layout: no operator before it tells which.")
        elif layout != outputs:
            found[value.name or ""] = _perm(layout, _values.rank(value) or 0)
    return found


def _is_image(value: ir.Value) -> bool:
    return _FEWEST <= (_values.rank(value) or 0) <= _MOST


def _perm(current: Layout, rank: int) -> Perm:
    """Return the permutation from the `current` layout to the other."""
    if current == "nchw":
        return (0, *range(2, rank), 1)
    return (0, rank - 1, *range(1, rank - 1))


def _name(seen: Perm) -> Layout | None:
    """Return the layout of a tensor that channels-first operators see after the permutation `seen`."""
    if is_identity(seen):
        return "nchw"
    return "nhwc" if seen == _perm("nhwc", len(seen)) else None


# --- which layout it is ----------------------------------------------------------------------------------------------


def _layout_forward(value: ir.Value, opset: int) -> Layout | None:
    """Return the layout in which an input is, from the operators that it reaches."""
    start: Perm = tuple(range(_values.rank(value) or 0))
    seen: dict[ir.Value, Perm] = {value: start}
    queue = deque([value])
    while queue:
        current = queue.popleft()
        for node, index in current.uses():
            if node.op_type in _CHANNELS_FIRST and index == 0 and not node.domain:
                return _name(seen[current])
            for output, perm in _after(node, index, seen[current], opset).items():
                if output not in seen:
                    seen[output] = perm
                    queue.append(output)
    return None


def _after(node: ir.Node, index: int, perm: Perm, opset: int) -> Mapping[ir.Value, Perm]:
    """Return how the outputs of `node` are permuted when its input `index` is permuted by `perm`."""
    own = transpose_of(node)
    if own is not None:
        return {node.outputs[0]: then(perm, own)} if len(own) == len(perm) else {}
    found = plan(node, _cyclic(len(perm)), of_output=False, opset=opset)
    if found is None or found.inputs[index] is None:
        return {}
    kept = [value for value, moved in zip(node.outputs, found.outputs, strict=True) if moved == found.inputs[index]]
    return dict.fromkeys(kept, perm)


def _cyclic(rank: int) -> Perm:
    """Return a permutation without fixed axes, to ask operators whether they mind."""
    return (*range(1, rank), 0)


def _layouts_backward(graph: ir.Graph, opset: int) -> dict[ir.Value, Layout]:
    """Return the layouts in which outputs of the graph are, from the operators before them."""
    seen: dict[ir.Value, Perm] = {}
    for node in graph:
        if node.op_type in _CHANNELS_FIRST and not node.domain and (rank := _values.rank(node.outputs[0])):
            seen[node.outputs[0]] = tuple(range(rank))
            continue
        for index, value in enumerate(node.inputs):
            if value in seen:
                for output, perm in _after(node, index, seen[value], opset).items():
                    seen.setdefault(output, perm)
    found: dict[ir.Value, Layout] = {}
    for value in graph.outputs:
        layout = _name(inverse(seen[value])) if value in seen else None
        if layout is not None:
            found[value] = layout
    return found


# --- changing it -----------------------------------------------------------------------------------------------------


def _transpose(source: ir.Value, perm: Perm, names: Names) -> ir.Node:
    return ir.Node("", "Transpose", [source], [ir.AttrInt64s("perm", list(perm))], name=names.fresh("Transpose"))


def _convert_input(graph: ir.Graph, value: ir.Value, perm: Perm, names: Names) -> None:
    """Declare an input permuted by `perm`, and undo that for those who use it."""
    users = value.uses()
    node = _transpose(value, inverse(perm), names)
    output = node.outputs[0]
    output.name, output.type, output.shape = names.fresh(f"{value.name}_transposed"), value.type, value.shape
    for user, index in users:
        user.replace_input_with(index, output)
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
    if value.shape is not None:
        value.shape = ir.Shape([value.shape[axis] for axis in perm])


def _convert_output(graph: ir.Graph, index: int, perm: Perm, names: Names) -> None:
    """Permute an output by `perm`."""
    old = graph.outputs[index]
    node = _transpose(old, perm, names)
    new = node.outputs[0]
    graph.append(node)
    graph.outputs[index] = new
    new.name, old.name = old.name, names.fresh(f"{old.name}_transposed")
    new.type = old.type
    new.shape = None if old.shape is None else ir.Shape([old.shape[axis] for axis in perm])
