"""A source whose images have their channels elsewhere than in the original model: `--layout`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infconv.convert._base import Source
from infconv.convert._inputs import apply_inputs

if TYPE_CHECKING:
    from infconv.passes.convert_layout import Layout
    from infconv.spec import PipelineSpec


class InLayout(Source):
    """Wraps a source: its graph takes and gives images in `layout`, and so does running the original model.

    Everything that follows (samples, calibration, verification, metrics) sees images in the new layout alone.
    """

    inputs_applied = True

    def __init__(self, original: Source, layout: Layout, spec: PipelineSpec, folder: Path) -> None:
        self._original = original
        self.producer, self.versions, self.dims = original.producer, original.versions, original.dims
        self.attempts, self.files, self.value_limits = original.attempts, original.files, original.value_limits
        self.log = original.log
        self.model_path = folder / "in-layout.onnx"
        notes = self._convert(layout, spec)
        self.notes = [*original.notes, *notes]

    def _convert(self, layout: Layout, spec: PipelineSpec) -> list[str]:
        """Write the graph in the new layout; return what the user should know."""
        from infconv.model import load, save
        from infconv.passes import Context
        from infconv.passes.convert_layout import ConvertLayout, permutations
        from infconv.passes.infer_shapes import InferShapes
        from infconv.passes.inline_functions import InlineFunctions

        context = Context()
        model = load(self._original.model_path)
        apply_inputs(model, spec.source.input_specs(), spec.source.dim_ranges())
        for step in (InlineFunctions(), InferShapes()):  # which show the convolutions, and the ranks before outputs
            step.run(model, Context())
        self._perms = permutations(model, inputs=layout, outputs=layout, notes=context.notes)
        ConvertLayout(inputs=layout, outputs=layout).run(model, Context())
        save(model, self.model_path, external=True)
        return context.notes

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run the original model on images in its own layout; return its outputs in the new one."""
        taken = {
            name: np.ascontiguousarray(np.transpose(value, np.argsort(self._perms[name])))
            if name in self._perms
            else value
            for name, value in inputs.items()
        }
        given = self._original.run(taken)
        self.log = self._original.log
        return {
            name: np.transpose(value, self._perms[name]) if name in self._perms else value
            for name, value in given.items()
        }

    def close(self) -> None:
        """Close the original source."""
        self._original.close()
