"""Take initializers off the list of graph inputs."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes._base import Context, Pass

_FIRST_SEPARATE = 4
"""From IR version 4 on an initializer need not be an input; one that is, is a default that callers may override."""


class RemoveInitializerInputs(Pass):
    """Take initializers off the list of inputs in models older than IR version 4, where every one had to be there.

    Such a model becomes IR version 4: its weights are then constants, as everybody took them to be.
    """

    overridable: bool = False
    """In newer models too, where an initializer that is an input is a default that callers may override."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many inputs were removed."""
        if model.ir_version >= _FIRST_SEPARATE and not self.overridable:
            return 0
        listed = [value for value in model.graph.inputs if value.name in model.graph.initializers]
        raised = model.ir_version < _FIRST_SEPARATE
        for value in listed:
            model.graph.inputs.remove(value)
        model.ir_version = max(model.ir_version, _FIRST_SEPARATE)
        return len(listed) or int(raised)
