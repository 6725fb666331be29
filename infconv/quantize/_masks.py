"""Constants that a narrow format cannot hold: attention masks that may be clamped, and everything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from infconv.quantize._origins import Origin, Origins
from infconv.quantize._schemas import names
from infconv.quantize._wires import Use, Wire, Wiring

_CARRIERS = names(
    "Identity Reshape Transpose Slice Concat Gather GatherElements GatherND Squeeze Unsqueeze Expand Tile Split Where",
    "Pad Flatten Max Min Add Sub Mul ReduceMax ReduceMin Cast ScatterElements ScatterND Trilu",
)
"""Their output holds the huge value, or its sum with something ordinary."""

_SOFTMAX = frozenset(
    {
        ("", "Softmax", 0),
        ("", "Attention", 3),
        ("com.microsoft", "Attention", 5),
        ("com.microsoft", "MultiHeadAttention", 5),
    }
)
"""(domain, operator, input) that a softmax reads."""


@dataclasses.dataclass
class Flow:
    """Everything that a huge constant reaches before something absorbs it."""

    nodes: dict[ir.Node, None]
    """Nodes that read it, absorbers included."""
    is_mask: bool
    """Only a softmax (or a test for equality with a constant) absorbs it: any large negative number does as well."""


def trace(source: ir.Value, wiring: Wiring, origins: Origins) -> Flow:
    """Follow `source` through the nodes that hand its magnitude on."""
    flow = Flow({}, True)
    queue, seen = [source], {source}
    while queue:
        wire = wiring.wires.get(queue.pop())
        for use in wire.uses if wire else ():
            if not isinstance(use.owner, ir.Node):
                flow.is_mask = False
                continue
            if _is_bound(use, origins):
                flow.is_mask = False  # it saturates, and as a bound must not be clamped any further
                continue
            flow.nodes[use.owner] = None
            outputs = _carried(wire, use.owner, use.index, origins)
            if outputs is None:
                flow.is_mask = False
                outputs = ()
            queue += [value for value in outputs if value not in seen]
            seen.update(outputs)
    return flow


def _carried(wire: Wire | None, node: ir.Node, index: int, origins: Origins) -> Sequence[ir.Value] | None:
    """Return the outputs that hold the huge value on; () if the node absorbs it as a softmax does; None otherwise."""
    others = [value for value in node.inputs if value is not None and (wire is None or value is not wire.value)]
    kind = node.op_type
    if (node.domain, kind, index) in _SOFTMAX or (kind == "Exp" and _is_shifted(node)):
        return ()
    if kind == "Equal":
        return () if all(origins[value] == Origin.CONSTANT for value in others) else None
    if kind == "Mul":
        # (1 - mask) * huge: the other factor is 0 or 1.
        return node.outputs if all(origins[value] <= Origin.POSITION for value in others) else None
    if kind == "Cast":
        return {ir.DataType.BOOL: (), ir.DataType.FLOAT: node.outputs}.get(ir.DataType(node.attributes["to"].as_int()))
    return node.outputs if kind in _CARRIERS and node.domain == "" else None


def _is_bound(use: Use, origins: Origins) -> bool:
    """Whether the value is only compared with data: a bound of Clip, or of Min and Max."""
    node = use.owner
    if not isinstance(node, ir.Node) or node.domain != "":
        return False
    if node.op_type == "Clip":
        return use.index > 0
    others = [value for index, value in enumerate(node.inputs) if index != use.index and value is not None]
    return node.op_type in {"Min", "Max"} and any(origins[value] == Origin.DATA for value in others)


def _is_shifted(exp: ir.Node) -> bool:
    """Whether `exp` is that of a softmax written out: Exp(x - ReduceMax(x))."""
    source = exp.inputs[0]
    sub = None if source is None else source.producer()
    if sub is None or sub.op_type != "Sub" or sub.inputs[1] is None:
        return False
    largest = sub.inputs[1].producer()
    return largest is not None and largest.op_type == "ReduceMax" and largest.inputs[0] is sub.inputs[0]
