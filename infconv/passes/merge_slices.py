"""Slices side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes import _values
from infconv.passes._base import Context, Pass
from infconv.passes._build import Builder, Names
from infconv.passes._compose import by_axis
from infconv.passes._graphs import detach, remove, scopes, standard_opset, take_over, with_subgraphs
from infconv.passes._pattern import Refuse


class MergeSlices(Pass):
    """Replace Slices that cut one tensor into all of its parts by one Split.

    The parts must follow each other without gaps and overlaps, along one axis of a known size. Rotary embeddings and
    gated units are exported that way.

    `a = Slice(x, 0, 8); b = Slice(x, 8, 16)` of `x: float[16]` becomes `a, b = Split(x, [8, 8])`.
    """

    needs_shapes: ClassVar[bool] = True

    def run(self, model: ir.Model, context: Context) -> int:
        """Return the number of Slices that were replaced."""
        names = Names(model)
        changes = 0
        for scope in scopes(model):
            opset = standard_opset(scope.opset_imports) or 0
            for graph in with_subgraphs(scope) if opset >= 2 else ():
                for parts in _find(graph, opset):
                    # functions have no initializers, and before IR version 4 an initializer had to be an input as well
                    initializers = scope is model.graph and (model.ir_version or 4) >= 4
                    op = Builder(graph, scope.opset_imports, names, f"{parts[0].node.name or ''}_", initializers)
                    _replace(op, parts)
                    changes += len(parts)
        return changes


class _Part:
    """A Slice along one axis of a known size."""

    def __init__(self, node: ir.Node, source: ir.Value, axis: int, taken: range) -> None:
        self.node = node
        self.source = source
        self.axis = axis
        self.taken = taken


def _find(graph: ir.Graph, opset: int) -> list[list[_Part]]:
    """Return the Slices that together are all of a tensor, in the order of the graph."""
    groups: dict[tuple[ir.Value, int], list[_Part]] = {}
    for node in graph:
        part = _part(node, opset) if node.op_type == "Slice" and not node.domain else None
        if part is not None:
            groups.setdefault((part.source, part.axis), []).append(part)
    return [parts for parts in groups.values() if len(parts) > 1 and _are_whole(parts)]


def _part(node: ir.Node, opset: int) -> _Part | None:
    source = node.inputs[0]
    try:
        ranges = by_axis(node, opset, _values.rank(source))
    except Refuse:
        return None
    if source is None or len(ranges) != 1:
        return None
    ((axis, taken),) = ranges.items()
    size = _values.static_dim(source, axis)
    return None if size is None or taken.step != 1 else _Part(node, source, axis, taken.positions(size))


def _are_whole(parts: Sequence[_Part]) -> bool:
    """Whether the parts follow each other from the first element to the last."""
    position = 0
    for part in sorted(parts, key=lambda part: (part.taken.start, part.taken.stop)):
        if not part.taken or part.taken.start != position:
            return False
        position = part.taken.stop
    return position == _values.static_dim(parts[0].source, parts[0].axis)


def _replace(op: Builder, parts: Sequence[_Part]) -> None:
    ordered = sorted(parts, key=lambda part: part.taken.start)
    sizes = [len(part.taken) for part in ordered]
    # Not `.source`: that may have been the output of a Slice that was replaced meanwhile.
    source, axis = parts[0].node.inputs[0], parts[0].axis
    if op.opset >= 13:
        made = op.Split(source, np.array(sizes, np.int64), axis=axis, _outputs=len(sizes))
    else:
        made = op.Split(source, axis=axis, split=sizes, _outputs=len(sizes))
    op.add_to_graph(parts[0].node)
    for part, new in zip(ordered, made, strict=True):
        old = part.node.outputs[0]
        new.type, new.shape = old.type, old.shape
        name = old.name
        take_over(old, new)
        if not new.is_graph_output():
            old.name, new.name = None, name
    for part in parts:
        detach(part.node)
    remove(part.node for part in parts)
