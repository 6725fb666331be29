"""Lower FP32 to FP16 or BF16 as a transformation of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
from pydantic import Field

from infconv.errors import UnsupportedError
from infconv.passes import Context, Pass
from infconv.quantize._apply import apply, remove_casts_to_same_type
from infconv.quantize._formats import FORMATS
from infconv.quantize._identity import identities
from infconv.quantize._keep import Found, Search
from infconv.quantize._plan import Decision, Plan, Planner
from infconv.quantize._plan_file import NodePlan, PrecisionPlan
from infconv.quantize._rescale import rescale
from infconv.quantize._schemas import FLOAT
from infconv.quantize._wires import Wiring

__all__ = ["Decision", "LowerPrecision", "Plan"]

_OPSET = {"float16": 6, "bfloat16": 13}
"""The first opset whose Cast knows the type."""


class LowerPrecision(Pass):
    """Compute in FP16 or BF16 where that is safe, and in FP32 where it is not.

    Weights are cast offline; casts stand only where the types meet. Nodes stay FP32 when their operator has no narrow
    form, when it is sensitive, when a constant or (with samples) an activation leaves the format's range, and when
    that saves casts. Masks that only a softmax sees are limited instead. With samples the lowered model is run, and
    when it differs too much the nodes that cause it stay FP32 as well. The result is valid whatever the model is.
    What was decided, and why, is left beside the artifact as a precision plan.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    """The narrow type."""
    io: Literal["keep", "follow"] = "keep"
    """keep: FP32 inputs and outputs stay FP32. follow: they take the narrow type."""
    keep: tuple[str, ...] = ()
    """Nodes that stay FP32: names, patterns such as `*/attention/*`, operators such as `op:Softmax`."""
    precision_plan: str | None = None
    """A precision plan to apply: what it lists has its type from there, the rest is decided as usual."""
    scale: bool = True
    """Multiply weights by powers of two where that makes weights or activations fit FP16 (needs samples; exact)."""
    search_seconds: float = Field(60.0, ge=0)
    """Time to look for the nodes that have to stay FP32 when the samples show too large an error; 0: rules alone."""

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the type of every node that touches FP32 values, with the reason. `model` is not changed."""
        return Planner(self._wiring(model), context).plan(self.keep, self._given())

    def run(self, model: ir.Model, context: Context) -> int:
        """Lower `model` in place and return the number of nodes lowered, masks limited and casts set or removed.

        Raises UnsupportedError when the model's opset has no casts to the narrow type, UsageError for a wrong plan.
        """
        removed = remove_casts_to_same_type(model)
        known = identities(model)
        planner, plan, scales = self._planned(model, context)
        found = Found(plan)
        if any(planner.wiring.is_lowerable(node) for node in plan.lowered()):
            if context.samples and self.search_seconds:
                found = Search(planner, context, self.search_seconds).run(plan)
            entries = found.plan.entries(model, known, scales)
            context.documents["precision.yaml"] = self._document(found, entries).to_yaml()
        return removed + len(scales) + apply(planner.wiring, found.plan)

    def _planned(self, model: ir.Model, context: Context) -> tuple[Planner, Plan, dict[ir.Node, int]]:
        """Make the plan by the rules, after scaling what does not fit; return node -> exponent of its scale too."""
        planner = Planner(self._wiring(model), context)
        plan = planner.plan(self.keep, self._given())
        if not (self.scale and self.dtype == "float16" and planner.out_of_range and planner.maxima):
            return planner, plan, {}
        scales = rescale(planner.wiring, planner.maxima)
        if not scales:
            return planner, plan, {}
        context.notes[:] = [note for note in context.notes if note not in planner.notes]
        context.notes.append(_scaled(scales))
        planner = Planner(self._wiring(model), context, scales)
        return planner, planner.plan(self.keep, self._given()), scales

    def _given(self) -> PrecisionPlan | None:
        return None if self.precision_plan is None else PrecisionPlan.load(self.precision_plan)

    def _document(self, found: Found, entries: Sequence[NodePlan]) -> PrecisionPlan:
        facts: dict[str, Any] = {"nodes": {}, **found.facts}
        for entry in entries:
            facts["nodes"][entry.type] = facts["nodes"].get(entry.type, 0) + 1
        return PrecisionPlan("fp16" if self.dtype == "float16" else "bf16", entries, facts)

    def _wiring(self, model: ir.Model) -> Wiring:
        narrow = FORMATS[self.dtype]
        opset = model.graph.opset_imports.get("", 0)
        if opset >= _OPSET[self.dtype]:
            return Wiring(model, narrow, narrow.dtype if self.io == "follow" else FLOAT)
        wiring = Wiring(model, narrow)
        if wiring.wires and opset:
            raise UnsupportedError(
                f"{narrow.label} needs opset {_OPSET[self.dtype]} or later; the model has opset {opset}.",
                "Convert the model first, e.g. with --opset 20.",
            )
        return wiring


def _scaled(scales: Mapping[ir.Node, int]) -> str:
    exponents = sorted(set(scales.values()))
    factors = f"2^{exponents[0]}" if len(exponents) == 1 else f"2^{exponents[0]} to 2^{exponents[-1]}"
    some = ", ".join(f"'{node.outputs[0].name}'" for node in list(scales)[:3])
    more = f" and {len(scales) - 3} more" if len(scales) > 3 else ""
    return f"lower-precision: scaled by {factors} to fit FP16, in the weights around, exactly: {some}{more}."
