"""A newer opset where it has an operator for what the model computes in parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir
from pydantic import Field

from infconv.passes._base import Context, Pass
from infconv.passes._build import all_nodes
from infconv.passes._graphs import standard_opset
from infconv.passes._match import Match, Scope
from infconv.passes._pattern import OpKey, Rule, may_match
from infconv.passes._search import find
from infconv.passes.fuse_gelu import FuseGelu
from infconv.passes.fuse_hard_swish import FuseHardSwish
from infconv.passes.fuse_layer_norm import FuseLayerNorm
from infconv.passes.fuse_mish import FuseMish

_RULES: Sequence[Rule] = (*FuseGelu.rules, *FuseLayerNorm.rules, *FuseHardSwish.rules, *FuseMish.rules)
_OLDEST = 7
"""Older models stay: few of their operators are as they are today."""
_LIKED = {"onnxruntime": 20}
"""Up to which opset a target gains from it. ONNX Runtime finds some ways to write these operators at load, not all: a
GELU by tanh takes three times as long in parts. RMSNormalization (23) and Swish (24) gain nothing there. The compilers
of OpenVINO and TensorRT put the parts together themselves, and plain ONNX is for runtimes of any age."""


class RaiseOpset(Pass):
    """Raise the opset where a newer one has an operator for what the model computes in parts.

    That is LayerNormalization (17), Gelu (20), HardSwish (14) and Mish (18), which the fusions after this step then
    write; the opset becomes the lowest one that has what was found. Only for target onnxruntime unless `to` says
    otherwise; an opset that the user asks for (`--opset`) takes the place of this step. A model that cannot be
    converted stays as it is, and a note says why.

    `y = Mul(Mul(x, Add(Erf(Div(x, 1.414214)), 1)), 0.5)` of opset 17 is then of opset 20.
    """

    to: int | None = Field(None, ge=_OLDEST)
    """The newest opset to raise a model to; by default 20 for target onnxruntime, none for others."""

    def may_apply(self, operators: Collection[OpKey]) -> bool:
        """Whether the operators of at least one rule are there."""
        return any(may_match(rule.pattern.roots[0], operators) for rule in _RULES)

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes the conversion changed, plus one for the version itself."""
        opset, newest = standard_opset(model.graph.opset_imports), self.to or _LIKED.get(context.target)
        if opset is None or newest is None or not _OLDEST <= opset < newest:
            return 0
        wanted = max(_wanted(model, range(opset + 1, newest + 1)), default=opset)
        if wanted == opset:
            return 0
        from infconv.passes.convert_opset import ConvertOpset  # few models need it, and it takes a while to import

        return ConvertOpset(to=wanted, min=None, required=False).run(model, context)


def _wanted(model: ir.Model, opsets: range) -> Iterator[int]:
    """Yield the opset that each fusion needs that would be made in one of `opsets`."""
    by_root: dict[OpKey, list[Rule]] = {}
    for rule in _RULES:
        if rule.since_opset in opsets:
            for key in dict.fromkeys(key for call in rule.pattern.root_calls for key in call.ops):
                by_root.setdefault(key, []).append(rule)
    scope = Scope({**model.graph.opset_imports, "": opsets[-1]}, model.functions.keys(), explain=False)
    for node in all_nodes(model.graph):
        for rule in by_root.get((node.domain, node.op_type), ()):
            if isinstance(find(rule, node, scope), Match):
                yield rule.since_opset
