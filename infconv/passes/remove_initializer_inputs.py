"""Take initializers off the list of graph inputs."""

from __future__ import annotations

import onnx_ir as ir

from infconv.passes._base import Context, Pass

_FIRST_SEPARATE = 4
"""From IR version 4 on an initializer need not be an input; one that is, is a default that callers may override."""
_HABIT = 8
"""Nobody wants to override so many, and all that there are: the exporter knew no difference."""


class RemoveInitializerInputs(Pass):
    """Take initializers off the list of inputs where they are listed because the format or an exporter wanted it.

    Before IR version 4 every initializer had to be an input. Such a model becomes IR version 4: its weights are then
    constants, as everybody took them to be. From version 4 on one that is listed is a default, which callers of the
    model may override. But exporters, PyTorch's with `keep_initializers_as_inputs`, went on to list all of them: where
    there are eight or more and all of them are listed, they are taken for constants as well, and a note says so.
    """

    overridable: bool | None = None
    """True: in newer models always; false: never. By default, where there are many and all of them are listed."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many inputs were removed."""
        raised = model.ir_version < _FIRST_SEPARATE
        listed = [value for value in model.graph.inputs if value.name in model.graph.initializers]
        if not raised and not self._are_constants(len(listed), len(model.graph.initializers)):
            return 0
        if not raised and self.overridable is None:
            context.notes.append(
                f"All {len(listed)} initializers are inputs of the graph as well; they were taken for constants. "
                "To let callers override them, --skip remove-initializer-inputs."
            )
        for value in listed:
            model.graph.inputs.remove(value)
        model.ir_version = max(model.ir_version, _FIRST_SEPARATE)
        return len(listed) or int(raised)

    def _are_constants(self, listed: int, all_of_them: int) -> bool:
        return listed == all_of_them >= _HABIT if self.overridable is None else self.overridable
