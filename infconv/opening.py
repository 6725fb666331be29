"""Open a source: its graph, what it computes on samples, and calibration data; or take them from the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from infconv.observe import Observers

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import Source
    from infconv.quantize._calibration import Calibration
    from infconv.reference import Reference
    from infconv.shelf import Shelf
    from infconv.spec import PipelineSpec


@dataclasses.dataclass(frozen=True)
class Opened:
    """What all artifacts of a source are made from."""

    source: Source
    """Closed: its graph is there, but it does not run any more."""
    reference: Reference | None
    """None with `--verify off`."""
    calibration: Calibration | None
    calibrated: Reference | None
    """What quantised artifacts are verified with."""
    quality: float | None
    """The user's metric of the source."""


class Opening:
    """Opens a source when it is first needed."""

    def __init__(self, spec: PipelineSpec, folder: Path, watch: Observers, shelf: Shelf | None = None) -> None:
        """Keep in mind what to open; `folder` is empty and outlives what is opened."""
        self.shelf = shelf
        self._spec, self._folder, self._watch = spec, folder, watch
        self._opened: Opened | None = None

    def opened(self) -> Opened:
        """Return the opened source. Raises the InfconvErrors of its frontend."""
        from infconv.metrics import measure_source

        if self._opened is None:
            with self._watch.stage("open the source"):
                source = self._source()
            with source:
                reference = self._reference(source)
                calibration, calibrated = open_calibration(self._spec, source, reference, self._watch)
                with self._watch.stage("measure the source"):
                    quality = measure_source(self._spec, source)
            self._opened = Opened(source, reference, calibration, calibrated, quality)
        return self._opened

    def _source(self) -> Source:
        from infconv.convert import open_source

        def open_at(name: str) -> Source:
            folder = self._folder / name
            folder.mkdir()
            return open_source(self._spec, folder)

        if self.shelf is not None and self.shelf.find_opened():
            stored = self.shelf.stored_source(lambda: open_at("original"))
            if stored is not None:
                return stored
        return open_at("source")

    def _reference(self, source: Source) -> Reference | None:
        if self.shelf is not None and self.shelf.find_opened():
            return self.shelf.stored_reference()
        reference = _run_on_samples(self._spec, source, self._watch)
        if self.shelf is not None:
            with self._watch.stage("store the opened source"):
                self.shelf.keep_opened(source, reference)
        return reference


def _run_on_samples(spec: PipelineSpec, source: Source, watch: Observers) -> Reference | None:
    """Run the source on samples; None with `--verify off`."""
    from infconv.reference import make_reference

    if spec.verify.when == "off":
        return None
    with watch.stage("run the source on samples"):
        model = load_source(spec, source)
        return make_reference(source, model, spec.source.dim_ranges(), spec.sample, spec.seed, spec.verify.edge_cases)


def open_calibration(
    spec: PipelineSpec, source: Source, reference: Reference | None, watch: Observers
) -> tuple[Calibration | None, Reference | None]:
    """Return the calibration data, if there is any, and what quantised artifacts are verified with."""
    from infconv.calibrated import open_data, reference_on

    if spec.calibration is None:
        return None, reference
    with watch.stage("look at the calibration data"):
        ranges = {**source.dims, **spec.source.dim_ranges()}
        calibration = open_data(spec, load_source(spec, source), reference, ranges)
        if calibration is None or reference is None or spec.sample is not None:
            return calibration, reference
        return calibration, reference_on(calibration, source, reference)


def load_source(spec: PipelineSpec, source: Source) -> ir.Model:
    """Return the graph that the steps start from: the source as ONNX, with what the user said about its inputs."""
    from infconv.convert._inputs import apply_inputs
    from infconv.model import load

    model = load(source.model_path)
    if not source.inputs_applied:
        apply_inputs(model, spec.source.input_specs(), spec.source.dim_ranges())
    return model
