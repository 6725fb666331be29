"""Open whatever `compare` is given, so that it can be run: a source of any framework, ONNX, IR, recorded outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infconv.errors import InfconvError, SourceError, UnsupportedError
from infconv.reference import Sample, describe_inputs, load_samples, make_inputs, read_npz, size_plans
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

    def run(self, inputs: Sequence[Mapping[str, Any]]) -> list[Outputs]:
        from infconv.convert._onnxruntime import run_samples

        return list(run_samples(self.path, inputs, optimize=True)[1])

    def samples(self, seed: int) -> list[Sample]:
        infos = describe_inputs(self.graph())
        plans = enumerate(size_plans(infos, {}))
        return [Sample(label, make_inputs(infos, sizes, seed, variant)) for variant, (label, sizes) in plans]

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


def open_runnable(entry: SourceEntry, workdir: Path) -> Runnable:
    """Open `entry.path`: recorded outputs, IR, ONNX, or what a frontend reads. `workdir` outlives it.

    Raises SourceError when it is missing, UnsupportedError for a TensorRT engine, which only its GPU runs.
    """
    from infconv.convert import open_source, recognise

    path = entry.path
    suffix = Path(path).suffix
    if suffix in {".onnx", ".xml", ".npz", ".engine"} and not Path(path).is_file():
        raise SourceError(f"'{path}' does not exist.", "Check the path.")
    if suffix == ".engine":
        raise UnsupportedError(
            "A TensorRT engine cannot be run here.", "Compare the ONNX that went into it, or run it on its GPU."
        )
    if suffix in {".xml", ".npz"}:
        return _OpenVino(path) if suffix == ".xml" else _Recorded(path)
    if entry.frontend is None and recognise(path)[0] == "onnx":
        return _Onnx(path)
    workdir.mkdir(parents=True, exist_ok=True)
    spec = PipelineSpec(source=entry, targets=[TargetEntry(target="onnx")])
    return _Framework(path, open_source(spec, workdir))
