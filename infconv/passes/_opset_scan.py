"""Scan of opset 8, which works on batches, in terms of Scan of opset 9, which does not."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from infconv.passes._build import Builder
from infconv.passes._opset import attribute
from infconv.passes._pattern import Refuse


def batched_scan(node: ir.Node, op: Builder) -> Sequence[ir.Value]:
    """Return the outputs of a Scan over the batch whose body is the Scan over the sequence.

    In opset 8 every input and output of Scan has a leading batch dimension [batch, ...], which the body does not see.
    An outer Scan, whose only inputs to scan are all of these along dimension 0, says the same in opset 9.
    """
    lengths, *values = node.inputs
    if lengths is not None:
        raise Refuse("it has sequence lengths")
    count = attribute(node, "num_scan_inputs")
    directions = attribute(node, "directions", (0,) * count)
    body = node.attributes.pop("body").as_graph()
    inner_inputs = [
        ir.Value(name=f"{node.outputs[0].name}/scan_{i}", type=inner.type) for i, inner in enumerate(body.inputs)
    ]
    inner = ir.Node(
        "",
        "Scan",
        inner_inputs,
        [
            ir.AttrGraph("body", body),
            ir.AttrInt64("num_scan_inputs", count),
            ir.AttrInt64s("scan_input_directions", directions),
        ],
        outputs=[
            ir.Value(name=f"{node.outputs[0].name}/scanned_{i}", type=output.type)
            for i, output in enumerate(body.outputs)
        ],
        name=f"{node.name or node.outputs[0].name}/scan",
    )
    outer_body = ir.Graph(inner_inputs, inner.outputs, nodes=[inner], name=f"{inner.name}_batch")
    made = op.Scan(*values, body=outer_body, num_scan_inputs=len(values), _outputs=len(node.outputs))
    return [made] if isinstance(made, ir.Value) else made
