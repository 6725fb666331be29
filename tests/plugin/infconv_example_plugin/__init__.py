"""A pass from a package of its own."""

import onnx_ir as ir

from infconv.passes import Context, Pass


class RenameGraph(Pass):
    """Give the graph another name."""

    to: str = "renamed"
    """The new name."""

    def run(self, model: ir.Model, context: Context) -> int:
        changed = model.graph.name != self.to
        model.graph.name = self.to
        return int(changed)
