"""Open whatever `compare` is given, so that it can be run: a source of any framework, ONNX, IR, recorded outputs."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError, did_you_mean
from infconv.reference import (
    InputInfo,
    Sample,
    describe_inputs,
    has_dims,
    load_samples,
    make_inputs,
    read_npz,
    size_plans,
)
from infconv.spec import PipelineSpec, SourceEntry, TargetEntry
from infconv.synthetic import limited

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import Source

Outputs = Mapping[str, Any]


class Runnable(ABC):
    """Something that computes outputs from inputs."""

    aliases = False
    """Whether it knows one output by several names."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []
        """What the user should know about how it was run."""

    @abstractmethod
    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        """Return the outputs on each of `inputs`, by name. Raises InfconvError when it does not run on one."""

    def samples(self, seed: int) -> list[Sample]:
        """Return seeded inputs at several sizes. Raises UnsupportedError where none can be made."""
        raise UnsupportedError(
            f"Inputs cannot be made from '{self.path}'.", "Give --inputs, or name an ONNX file or a source first."
        )

    def load_samples(self, given: str) -> list[Sample]:
        """Return the user's inputs."""
        return [Sample(Path(given).name, dict(read_npz(given, "--inputs")))]

    def graph(self) -> ir.Model:
        """Return the ONNX graph, whose inner values can be looked at. Raises UnsupportedError where there is none."""
        raise UnsupportedError(f"'{self.path}' has no ONNX graph to look into.", "Compare ONNX files or sources.")

    def __enter__(self) -> Runnable:
        return self

    def __exit__(self, *exc: object) -> None:
        """Release what was opened: nothing, unless a subclass says otherwise."""
        return


class _Onnx(Runnable):
    """An ONNX file, run as users run it: in ONNX Runtime with its default optimizations."""

    def __init__(self, entry: SourceEntry) -> None:
        super().__init__(entry.path)
        self._inputs, self._dims = entry.input_specs(), entry.dim_ranges()

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        from infconv.convert._onnxruntime import run_samples

        try:
            infos = describe_inputs(self.graph())
        except SourceError:  # an input of unknown rank, or no tensor: what is given is all that is known
            return list(run_samples(self.path, inputs, optimize=True)[1])
        return list(run_samples(self.path, [self._fitted(infos, given) for given in inputs], optimize=True)[1])

    def samples(self, seed: int) -> list[Sample]:
        infos = [self._as_said(info) for info in describe_inputs(self.graph())]
        if unknown := [name for name in self._inputs if name not in {info.name for info in infos}]:
            known = [info.name for info in infos]
            raise UsageError(f"--input '{unknown[0]}' is no input of '{self.path}'.", did_you_mean(unknown[0], known))
        plans = enumerate(size_plans(infos, self._dims))
        return [Sample(label, make_inputs(infos, sizes, seed, variant)) for variant, (label, sizes) in plans]

    def _as_said(self, info: InputInfo) -> InputInfo:
        """Return the input with the dims that the user gave for it."""
        said = self._inputs.get(info.name)
        return info if said is None else dataclasses.replace(info, dims=said.dims)

    def _fitted(self, infos: Sequence[InputInfo], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the other model was given as this one takes it: floats in its types, by its names."""
        names = [info.name for info in infos]
        if len(given) == len(names) and not set(given) & set(names):
            self.notes.append(
                f"No input has the same name ({', '.join(given)}; {', '.join(names)}): fed by their order."
            )
            given = dict(zip(names, given.values(), strict=True))
        if missing := [name for name in names if name not in given]:
            raise UsageError(
                f"'{self.path}' has an input '{missing[0]}'; there is only {', '.join(given) or 'none'}.",
                "Both models need the same inputs. Give them all with --inputs FILE.npz.",
            )
        return {info.name: _fit(self.path, info, given[info.name]) for info in infos}

    def load_samples(self, given: str) -> list[Sample]:
        return [
            Sample(label, inputs) for label, inputs in load_samples(given, describe_inputs(self.graph()), "--inputs")
        ]

    def graph(self) -> ir.Model:
        from infconv.model import load

        return load(self.path)


class _OpenVino(Runnable):
    aliases = True

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        from infconv.convert._exporter import Exported
        from infconv.convert.to_openvino import ToOpenVINO

        return list(ToOpenVINO().execute(Exported([Path(self.path)]), inputs).outputs)


class _Engine(Runnable):
    """A TensorRT engine, run on its GPU."""

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        from infconv.convert._tensorrt_execute import run_engine

        return list(run_engine(Path(self.path), inputs)[1])


class _Recorded(Runnable):
    """A .npz of outputs that something else computed, for one sample."""

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        outputs = read_npz(self.path, "The recorded outputs")
        if len(inputs) != 1:
            raise UnsupportedError(f"'{self.path}' has the outputs for one sample.", "Give its --inputs FILE.npz.")
        return [outputs]


class _Framework(Runnable):
    """A source, opened by its frontend and run by its own framework."""

    def __init__(self, path: str, source: Source) -> None:
        super().__init__(path)
        self._source = source

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        outputs: list[Outputs] = []
        for outcome in self._source.run_all(inputs):
            if isinstance(outcome, InfconvError):
                raise outcome
            outputs.append(outcome)
        return outputs

    def samples(self, seed: int) -> list[Sample]:
        infos = [limited(i, self._source.value_limits.get(i.name)) for i in describe_inputs(self.graph())]
        plans = list(enumerate(size_plans(infos, self._source.dims)))
        fed = [Sample(label, make_inputs(infos, sizes, seed, variant)) for variant, (label, sizes) in plans]
        outcomes = self._source.run_all([sample.inputs for sample in fed])
        accepted = [s for s, outcome in zip(fed, outcomes, strict=True) if not isinstance(outcome, InfconvError)]
        if not accepted:
            raise SourceError(f"'{self.path}' ran on none of the synthetic inputs.", "Give real ones with --inputs.")
        return accepted

    def load_samples(self, given: str) -> list[Sample]:
        return [
            Sample(label, inputs) for label, inputs in load_samples(given, describe_inputs(self.graph()), "--inputs")
        ]

    def graph(self) -> ir.Model:
        from infconv.model import load

        return load(self._source.model_path)

    def __exit__(self, *exc: object) -> None:
        self._source.close()


def _fit(path: str, info: InputInfo, given: Any) -> Any:
    """Return a value in the float type that the input of the model at `path` has. Raises UsageError: another shape."""
    array = np.asarray(given)
    if not has_dims(info, array):
        raise UsageError(
            f"'{path}' takes '{info.name}' in the shape {list(info.dims)}, not {list(array.shape)}.",
            "Models are compared on the same inputs: give such that fit both with --inputs FILE.npz, --input or --dim.",
        )
    floats = np.issubdtype(info.dtype, np.floating) or info.dtype == ml_dtypes.bfloat16
    return array.astype(info.dtype) if floats and array.dtype.kind == "f" else array


def open_runnable(entry: SourceEntry, workdir: Path) -> Runnable:
    """Open `entry.path`: recorded outputs, IR, ONNX, or what a frontend reads. `workdir` outlives it.

    Raises SourceError when it is missing, UnsupportedError for a TensorRT engine whose GPU is not here.
    """
    from infconv.convert import open_source, recognise

    path = entry.path
    suffix = Path(path).suffix
    if suffix in {".onnx", ".xml", ".npz", ".engine"} and not Path(path).is_file():
        raise SourceError(f"'{path}' does not exist.", "Check the path.")
    if suffix == ".engine":
        from infconv.convert._tensorrt_execute import runtime_for

        runtime_for(Path(path))
        return _Engine(path)
    if suffix in {".xml", ".npz"}:
        return _OpenVino(path) if suffix == ".xml" else _Recorded(path)
    if entry.frontend is None and recognise(path)[0] == "onnx":
        return _Onnx(entry)
    workdir.mkdir(parents=True, exist_ok=True)
    spec = PipelineSpec(source=entry, targets=[TargetEntry(target="onnx")])
    return _Framework(path, open_source(spec, workdir))
