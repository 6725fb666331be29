"""Tables that only Gather reads (embeddings) in 8 bits, a scale for each row."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infconv.passes._build import Builder, Names
from infconv.passes._graphs import take_over
from infconv.passes._values import constant, tensor
from infconv.quantize._placement import is_kept


def quantise_tables(model: ir.Model, names: Names, least: int, keep: tuple[str, ...]) -> int:
    """Store each table of at least `least` elements as int8 rows and float scales; return how many lookups changed.

    `Gather(table, i)` becomes `Cast(Gather(integers, i)) * Gather(scales, i)`. Nodes that `keep` means stay.
    """
    lookups = [node for node in model.graph if _is_lookup(node, least) and not is_kept(node, keep)]
    tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in lookups:
        data, indices = node.inputs[0], node.inputs[1]
        assert data is not None
        op = Builder(model.graph, model.graph.opset_imports, names, f"{node.name or node.outputs[0].name}/", True)
        if data not in tables:
            tables[data] = _rows(data, op)
        integers, scales = tables[data]
        rows = op.Cast(op.Gather(integers, indices, axis=0), to=int(ir.DataType.FLOAT))
        result = op.Mul(rows, op.Gather(scales, indices, axis=0), _like=node.outputs[0])
        op.add_to_graph(node)
        take_over(node.outputs[0], result)
        model.graph.remove(node, safe=True)
    return len(lookups)


def _is_lookup(node: ir.Node, least: int) -> bool:
    table = tensor(node.inputs[0]) if node.op_type == "Gather" and node.domain == "" else None
    if table is None or table.dtype != ir.DataType.FLOAT or len(table.shape) != 2 or table.size < least:
        return False
    data = node.inputs[0]
    assert data is not None
    alone = not data.is_graph_output() and all(use.node.op_type == "Gather" and use.idx == 0 for use in data.uses())
    return alone and node.attributes.get_int("axis", 0) == 0


def _rows(data: ir.Value, op: Builder) -> tuple[ir.Value, ir.Value]:
    """Return (int8 rows, float32 scales of one column) for a table."""
    table = constant(data)
    assert table is not None
    largest = np.abs(table).max(1, keepdims=True, initial=0.0)
    scales = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    return op.const(np.rint(table / scales).astype(np.int8)), op.const(scales)
