"""Sample inputs, and what the source model answers to them: the reference that every artifact is compared with."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infconv.census import all_nodes, compute_depth, compute_types
from infconv.compare import TOLERANCES, compare_outputs
from infconv.convert._base import DimRange
from infconv.errors import InfconvError, SourceError, UnsupportedError, UsageError, did_you_mean
from infconv.synthetic import (
    EdgeCase,
    InputInfo,
    describe_inputs,
    edge_samples,
    larger_plans,
    limited,
    make_inputs,
    size_plans,
    with_edge_rows,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._base import Source

__all__ = [
    "InputInfo",
    "Reference",
    "Sample",
    "describe_inputs",
    "load_sample",
    "load_samples",
    "make_inputs",
    "make_reference",
    "read_npz",
    "sample_files",
    "size_plans",
]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Inputs, and the source's outputs for them once it was run."""

    label: str
    """What is particular about it, e.g. `batch=2 seq=8`."""
    inputs: dict[str, Any]
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    fp32_only: bool = False
    """Its numbers are beyond the range of lower precisions."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the source framework computed."""

    producer: str
    samples: Sequence[Sample]
    notes: Sequence[str] = ()
    depth: int = 0
    """Compute operators in a row: what the tolerance depends on."""
    precision: str = "fp32"
    """fp16 or bf16 where the source itself computes in it: no run of it agrees better with another."""
    of_this_model: bool = False
    """Whether the very ONNX model that the steps start from computed it, and not a framework."""

    def judged(self, precision: str) -> list[Sample]:
        """Return the samples that an artifact of `precision` must reproduce."""
        return [sample for sample in self.samples if precision == "fp32" or not sample.fp32_only]


def make_reference(
    source: Source,
    model: ir.Model,
    dims: Mapping[str, DimRange],
    sample: str | None,
    seed: int,
    edge_cases: Sequence[EdgeCase] = (),
) -> Reference:
    """Run the source on the user's samples, or on seeded inputs at several sizes of each dynamic dimension.

    A synthetic sample that the source itself refuses (a size that its architecture does not allow) is left out and
    noted; so is an edge case on which the source gives no finite or no stable numbers. Raises SourceError when the
    source ran on none.
    """
    _refuse_random(model)
    infos = [limited(info, source.value_limits.get(info.name)) for info in describe_inputs(model)]
    if sample is not None:
        samples = [Sample(label, inputs, source.run(inputs)) for label, inputs in load_samples(sample, infos)]
        return _reference(source, model, samples, [])
    ranges = {**source.dims, **dims}
    plans = list(size_plans(infos, ranges))
    samples, refused = _run_plans(source, infos, plans, seed)
    if not samples and any(isinstance(d, str) for info in infos for d in info.dims):
        plans = list(larger_plans(infos, ranges))
        samples, _ = _run_plans(source, infos, plans, seed)
    if not samples:
        raise SourceError(
            f"The source model ran on none of the synthetic inputs: {next(iter(refused.values()))}",
            "Give real inputs with --sample FILE.npz, or fixed sizes with --input and --dim.",
        )
    notes = [f"Not verified at {label}: the source does not run at that size ({why})" for label, why in refused.items()]
    sizes = next(sizes for label, sizes in plans if label == samples[0].label)
    at_edge, unjudged = _run_edge_cases(source, infos, sizes, edge_cases, seed)
    return _reference(source, model, [*samples, *at_edge], [*notes, *unjudged])


def _reference(source: Source, model: ir.Model, samples: Sequence[Sample], notes: Sequence[str]) -> Reference:
    types = compute_types(model)
    precision = "bf16" if "bfloat16" in types else "fp16" if "float16" in types else "fp32"
    return Reference(source.producer, samples, notes, compute_depth(model), precision, source.is_onnx)


def _refuse_random(model: ir.Model) -> None:
    """Raise UnsupportedError for a model that draws random numbers: two runs of it differ by themselves."""
    drawn = random_node(model)
    if drawn:
        raise UnsupportedError(
            f"The model draws random numbers ({drawn}): its outputs cannot be compared.",
            "Convert it with --verify off, or make the noise an input of the model.",
        )


def random_node(model: ir.Model) -> str:
    """Return the operator and name of the first node that draws random numbers; empty: none does."""
    for node in all_nodes(model):
        if node.domain == "" and (node.op_type.startswith("Random") or _is_random(node)):
            return f"{node.op_type} '{node.name}'"
    return ""


def _run_plans(
    source: Source, infos: Sequence[InputInfo], plans: Sequence[tuple[str, dict[str, int]]], seed: int
) -> tuple[list[Sample], dict[str, str]]:
    """Return the samples that the source accepted, and label -> reason of those that it refused."""
    fed = [(label, make_inputs(infos, sizes, seed, variant)) for variant, (label, sizes) in enumerate(plans)]
    ordinary = fed[2:3]
    fed[2:3] = [(label, with_edge_rows(infos, inputs)) for label, inputs in ordinary]  # the size with room for rows
    outcomes = source.run_all([inputs for _, inputs in fed])
    if ordinary and not _is_finite(outcomes[2]):
        fed[2:3] = ordinary
        outcomes[2:3] = source.run_all([inputs for _, inputs in ordinary])
    samples: list[Sample] = []
    refused: dict[str, str] = {}
    for (label, inputs), outcome in zip(fed, outcomes, strict=True):
        if isinstance(outcome, InfconvError):
            refused[label] = outcome.message
        else:
            samples.append(Sample(label, inputs, outcome))
    return samples, refused


def _run_edge_cases(
    source: Source, infos: Sequence[InputInfo], sizes: Mapping[str, int], cases: Sequence[EdgeCase], seed: int
) -> tuple[list[Sample], list[str]]:
    """Return the edge cases that can be judged, and a note on each of the others."""
    samples: list[Sample] = []
    notes: list[str] = []
    for case, inputs, nudged in edge_samples(infos, sizes, cases, seed):
        outcome, beside = source.run_all([inputs, nudged])
        if isinstance(outcome, InfconvError):
            notes.append(f"Edge case {case} is not judged: the source does not run on it ({outcome.message})")
        elif not _is_finite(outcome):
            notes.append(f"Edge case {case} is not judged: the source's own outputs are not finite")
        elif isinstance(beside, InfconvError) or not _agree(outcome, beside):
            notes.append(f"Edge case {case} is not judged: one rounding of the inputs changes the source's outputs")
        else:
            samples.append(Sample(f"edge case {case}", inputs, outcome, fp32_only=case in {"large", "denormal"}))
    return samples, notes


def _is_finite(outputs: Mapping[str, Any] | InfconvError) -> bool:
    """Whether the source ran and gave numbers."""
    if isinstance(outputs, InfconvError):
        return False
    arrays = [value for value in outputs.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(error.ok for error in compare_outputs(a, b, TOLERANCES["fp32"]))


def _is_random(node: ir.Node) -> bool:
    from infconv.passes._values import constant

    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = constant(node.inputs[2])  # training_mode: known to be off, or else it may drop
        return mode is None or bool(mode.any())
    return node.op_type in {"Bernoulli", "Multinomial"}


# --- the user's own --------------------------------------------------------------------------------------------


def sample_files(path: str, option: str = "--sample") -> list[Path]:
    """Return the .npz file, or the .npz files of a folder in order. Raises UsageError when there is none."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise UsageError(f"{option} '{path}' has no .npz file in it.", "Write them with numpy.savez(path, name=array).")
    return files


def load_samples(path: str, infos: Sequence[InputInfo], option: str = "--sample") -> list[tuple[str, dict[str, Any]]]:
    """Return (file name, inputs) for a .npz file, or for each in a folder. Raises UsageError."""
    return [(file.name, load_sample(str(file), infos, option)) for file in sample_files(path, option)]


def read_npz(path: str, option: str) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file. Raises UsageError naming the `option` that gave it."""
    if not Path(path).is_file():
        raise UsageError(f"{option} '{path}' does not exist.", "Check the path.")
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{option} '{path}' is not a .npz file of plain arrays: {error}.",
            "Write it with numpy.savez(path, name=array).",
        ) from error


def load_sample(path: str, infos: Sequence[InputInfo], option: str = "--sample") -> dict[str, Any]:
    """Read a .npz with one array for each input. Raises UsageError that names the `option` and the misfit."""
    arrays = read_npz(path, option)
    names = [info.name for info in infos]
    for name in arrays:
        if name not in names:
            raise UsageError(f"{option} has an array '{name}', which is no input.", did_you_mean(name, names))
    for info in infos:
        if info.name not in arrays:
            raise UsageError(f"{option} has no array for input '{info.name}'.", f"The inputs are: {', '.join(names)}.")
        arrays[info.name] = _fitted(info, arrays[info.name], option)
    return arrays


def _fitted(info: InputInfo, array: np.ndarray, option: str) -> np.ndarray:
    if not has_dims(info, array):
        raise UsageError(f"{option}: '{info.name}' has shape {list(array.shape)}, the model wants {list(info.dims)}.")
    if not np.can_cast(array.dtype, info.dtype, "same_kind"):
        raise UsageError(f"{option}: '{info.name}' is {array.dtype}, the model wants {info.dtype}.")
    return array.astype(info.dtype, copy=False)


def has_dims(info: InputInfo, array: np.ndarray) -> bool:
    """Whether the shape of `array` is one that the input takes."""
    return array.ndim == len(info.dims) and all(
        isinstance(want, str) or want == have for want, have in zip(info.dims, array.shape, strict=True)
    )
