"""A run's calibration data, and the reference on it: a quantised model is right for data like that, not for noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infconv.reference import Reference, Sample, describe_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import DimRange, Source
    from infconv.quantize._calibration import Calibration
    from infconv.quantize._readers import Batch
    from infconv.spec import PipelineSpec

PRECISIONS = frozenset({"int8", "int4"})
"""Those that calibration data is for."""


def open_data(
    spec: PipelineSpec, model: ir.Model, reference: Reference | None, dims: Mapping[str, DimRange]
) -> Calibration | None:
    """Return the data that `spec` names, if it names any. Raises UsageError when it cannot be read."""
    from infconv.quantize._calibration import Input, open_calibration

    if spec.calibration is None:
        return None
    infos = describe_inputs(model)
    inputs = [Input(info.name, info.dtype, info.dims) for info in infos]
    batches = {info.dims[0] for info in infos if info.dims and isinstance(info.dims[0], str)}
    limits = [most for name in batches if name in dims and (most := dims[name].max)]
    samples = [sample.inputs for sample in reference.samples] if reference else []
    return open_calibration(spec.calibration, inputs, samples, real=spec.sample is not None, most=min([8, *limits]))


def reference_on(calibration: Calibration, source: Source, reference: Reference) -> Reference:
    """Return the reference with calibration samples in place of synthetic ones: one batch, and its first sample."""
    first = next(calibration.batches(), None)
    if first is None:
        return reference
    samples = [Sample("the first calibration batch", dict(first))]
    if calibration.data.fixed is None:
        samples.append(Sample("the first calibration sample", _first_row(first)))
    outputs = [source.run(sample.inputs) for sample in samples]
    return dataclasses.replace(
        reference,
        samples=[dataclasses.replace(s, outputs=o) for s, o in zip(samples, outputs, strict=True)],
        notes=[*reference.notes, *calibration.remarks()],
    )


def _first_row(batch: Batch) -> dict[str, Any]:
    return {name: array[:1] if array.ndim else array for name, array in batch.items()}
