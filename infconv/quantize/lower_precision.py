"""Lower FP32 to FP16 or BF16 as a transformation of the graph."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from infconv.errors import UnsupportedError
from infconv.passes import Context, Pass
from infconv.quantize._apply import apply, remove_casts_to_same_type
from infconv.quantize._formats import FORMATS
from infconv.quantize._plan import Decision, Plan, Planner
from infconv.quantize._schemas import FLOAT
from infconv.quantize._wires import Wiring

__all__ = ["Decision", "LowerPrecision", "Plan"]

_OPSET = {"float16": 6, "bfloat16": 13}
"""The first opset whose Cast knows the type."""


class LowerPrecision(Pass):
    """Compute in FP16 or BF16 where that is safe, and in FP32 where it is not.

    Weights are cast offline; casts stand only where the types meet. Nodes stay FP32 when their operator has no narrow
    form, when it is sensitive, when a constant or (with samples) an activation leaves the format's range, and when
    that saves casts. Masks that only a softmax sees are limited instead. The result is valid whatever the model is.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    """The narrow type."""
    io: Literal["keep", "follow"] = "keep"
    """keep: FP32 inputs and outputs stay FP32. follow: they take the narrow type."""
    keep: tuple[str, ...] = ()
    """Nodes that stay FP32: names, patterns such as `*/attention/*`, operators such as `op:Softmax`."""

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the type of every node that touches FP32 values, with the reason. `model` is not changed."""
        return Planner(self._wiring(model), context).plan(self.keep)

    def run(self, model: ir.Model, context: Context) -> int:
        """Lower `model` in place and return the number of nodes lowered, masks limited and casts set or removed.

        Raises UnsupportedError when the model's opset has no casts to the narrow type.
        """
        removed = remove_casts_to_same_type(model)
        wiring = self._wiring(model)
        return removed + apply(wiring, Planner(wiring, context).plan(self.keep))

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
