"""What one run of a model computes and how much memory its activations need."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from infconv.convert._base import DimRange
from infconv.convert._work import shares, work_of
from infconv.model import subgraphs, with_subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Footprint:
    """The cost of one run at given sizes."""

    sizes: Mapping[str, int]
    """Dynamic dimension -> the size that was taken."""
    flops: float | None
    """Two for each multiplication of a compute operator (Conv, MatMul, attention …); None when a shape is not known."""
    shares: Mapping[str, float]
    """Type -> share of the FLOPs."""
    peak_bytes: int
    """Most bytes of activations that are alive at once, run in the order of the file: inputs, results that are still
    needed, outputs. Runtimes that compute in place need less; weights come on top."""
    peak_at: str
    """The node at which that is."""
    unknown: int
    """Values whose size is not known, and which are therefore not in `peak_bytes`."""


def footprint(model: ir.Model, dims: Mapping[str, DimRange]) -> Footprint:
    """Return what a run costs at the usual size of each of `dims`. `model` is changed: its shapes get fixed."""
    sizes = _fix_inputs(model, dims)
    _infer(model)
    work = work_of(model)
    alive = _Alive()
    alive.run(model.graph)
    return Footprint(
        sizes=sizes,
        flops=None if work is None else 2 * sum(each.multiplications for each in work.values()),
        shares=shares(work or {}),
        peak_bytes=alive.peak,
        peak_at=alive.peak_at,
        unknown=alive.unknown,
    )


def _fix_inputs(model: ir.Model, dims: Mapping[str, DimRange]) -> dict[str, int]:
    """Give every dynamic dimension of an input a size; return them by name."""
    import onnx_ir as ir

    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        fixed: list[int] = []
        for axis, dim in enumerate(value.shape):
            name = f"{value.name}.{axis}" if isinstance(dim, int) or not dim.value else str(dim.value)
            usual = dims.get(name, DimRange()).usual(name)
            fixed.append(dim if isinstance(dim, int) else sizes.setdefault(name, usual))
        value.shape = ir.Shape(fixed)
    return sizes


def _infer(model: ir.Model) -> None:
    """Give every value the shape that follows from the inputs' sizes, the declared outputs as well."""
    import onnx_ir as ir

    from infconv.passes import Context
    from infconv.passes._symbolic import symbolic_facts
    from infconv.passes.infer_shapes import InferShapes
    from infconv.passes.inline_functions import InlineFunctions

    for step in (InlineFunctions(), InferShapes()):
        step.run(model, Context())
    facts = symbolic_facts(model, Context())
    for graph in with_subgraphs(model.graph):
        for value in graph.outputs:
            dims = facts.dims(value)
            if dims is not None and all(isinstance(dim, int) for dim in dims):
                value.shape = ir.Shape([dim for dim in dims if isinstance(dim, int)])


class _Alive:
    """Walks graphs in order and keeps account of the values that are alive."""

    def __init__(self) -> None:
        self.bytes = self.peak = self.unknown = 0
        self.peak_at = ""

    def run(self, graph: ir.Graph) -> None:
        """Account for the nodes of `graph`; what it computes is gone afterwards."""
        last = _last_uses(graph)
        sizes = {value: self._bytes_of(value) for value in graph.inputs if value.name not in graph.initializers}
        self._grow(sum(sizes.values()), "the inputs")
        for node in graph:
            if node.op_type == "Constant" and not node.domain:
                continue  # a weight
            made = {value: self._bytes_of(value) for value in node.outputs if value.name}
            sizes |= made
            self._grow(sum(made.values()), node.name or node.op_type)
            for inner in subgraphs(node):
                self.run(inner)
            for value in last.get(node, ()):
                self.bytes -= sizes.pop(value, 0)
        self.bytes -= sum(sizes.values())

    def _grow(self, count: int, where: str) -> None:
        self.bytes += count
        if self.bytes > self.peak:
            self.peak, self.peak_at = self.bytes, where

    def _bytes_of(self, value: ir.Value) -> int:
        known = None if value.shape is None else [dim for dim in value.shape if isinstance(dim, int)]
        if value.dtype is None or known is None or value.shape is None or len(known) != len(value.shape):
            self.unknown += 1
            return 0
        return math.ceil(math.prod(known) * value.dtype.bitwidth / 8)


def _last_uses(graph: ir.Graph) -> dict[ir.Node, Sequence[ir.Value]]:
    """Return node -> the values of `graph` that nobody needs after it. A use in a subgraph is one of its node."""
    last: dict[ir.Value, ir.Node] = {}
    for node in graph:
        for value in [*node.outputs, *_needed(node)]:
            last[value] = node
    kept = set(graph.outputs)
    found: dict[ir.Node, list[ir.Value]] = {}
    for value, node in last.items():
        if value not in kept:
            found.setdefault(node, []).append(value)
    return dict(found)


def _needed(node: ir.Node) -> list[ir.Value]:
    """Return the values that `node` reads, itself or in its subgraphs."""
    read = [value for value in node.inputs if value is not None]
    for graph in subgraphs(node):
        read += [value for inner in graph for value in _needed(inner)]
        read += list(graph.outputs)
    return read
