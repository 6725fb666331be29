"""Exporter `onnx`: plain ONNX that any runtime reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from infconv.census import compute_types
from infconv.convert._base import DimRange
from infconv.convert._exporter import Delivered, Executed, Exported, Exporter

if TYPE_CHECKING:
    import onnx_ir as ir


_ROUNDED = (
    "ONNX Runtime's CPU provider cannot run bfloat16. A float32 copy of the artifact was run in its place, which "
    "rounds every value to bfloat16 where the artifact does."
)


class ToONNX(Exporter):
    """Standard ONNX for any runtime."""

    target: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    max_opset: ClassVar[int] = 26

    external_data: bool | None = None
    """Store weights in `<output>.data`; by default only above 1.5 GB."""

    def export(self, model: ir.Model, path: Path, dims: Mapping[str, DimRange]) -> Exported:
        """Write the model as it is."""
        from infconv.model import save

        return Exported(save(model, path, external=self.external_data))

    def execute(self, exported: Exported, samples: Sequence[Mapping[str, Any]]) -> Executed:
        """Run the file in ONNX Runtime with its default optimizations, as users do."""
        from infconv.convert._onnxruntime import run_samples
        from infconv.convert._rounded import ROUNDING

        by, outputs = run_samples(exported.files[0], samples, optimize=True)
        stand_in = ROUNDING in by
        return Executed(by, outputs, artifact_itself=not stand_in, note=_ROUNDED if stand_in else "")

    def delivered(self, exported: Exported) -> Delivered:
        """Read the types from the finished file."""
        from infconv.convert._work import shares, work_of
        from infconv.model import load

        model = load(exported.files[0])
        return Delivered(compute_types(model), "types in the ONNX file", shares(work_of(model) or {}))
