"""Grouped convolution for targets without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from infconv.passes._base import RewritePass
from infconv.passes._build import Builder
from infconv.passes._rewrite import Refuse, Rule, constant
from infconv.passes._weights import linear

_MAX_GROUPS = 64


def _split(op: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    old = linear(node)
    groups = old.weight.shape[0]
    if groups == 1:
        raise Refuse("it has one group")
    if groups > _MAX_GROUPS:
        raise Refuse(f"{groups} groups are too many to be operators of their own")
    sizes = [old.inputs // groups] * groups
    if op.opset < 13:
        parts = op.Split(x, split=sizes, axis=1, _outputs=groups)
    else:
        parts = op.Split(x, np.array(sizes, np.int64), axis=1, _outputs=groups)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    attributes = {name: a for name, a in node.attributes.items() if name != "group"}
    results: list[ir.Value] = []
    for i, part in enumerate(parts):
        constants = [old.weight[i], *([] if bias is None else [bias.reshape(groups, -1)[i]])]
        results.append(op.call(node.op_type, part, *constants, _attrs=attributes))
    return op.Concat(*results, axis=1)


class SplitGroupConv(RewritePass):
    """Replace Conv and ConvTranspose with groups by Split, a convolution for each group and Concat.

    For targets that have no groups; everywhere else it is slower. Up to 64 groups: a depthwise convolution of hundreds
    of channels is better left to a target that has it.

    `y = Conv<group=2>(x, W)` becomes `a, b = Split(x); y = Concat(Conv(a, W[:n]), Conv(b, W[n:]))` along the channels.
    """

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            name="group-conv",
            match=lambda op, x, w, b, node: op.any("Conv", "ConvTranspose")(
                x, op.const(w), op.optional(op.const(b)), _attrs=..., _node=node
            ),
            build=_split,
            since_opset=2,
        ),
    )
