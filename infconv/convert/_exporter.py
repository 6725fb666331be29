"""What an exporter is: it writes one kind of artifact, runs it, and tells what precision it delivered."""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from infconv.convert._base import DimRange

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._work import Work


@dataclasses.dataclass(frozen=True)
class Exported:
    """What `export` wrote to the staging folder."""

    files: Sequence[Path]
    """The first is the one that users open."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    """Plain data for the manifest: compiler version, compute capability, layers …"""
    notes: Sequence[str] = ()
    """What the user should know, one sentence each."""
    outputs: Sequence[str] = ()
    """The model's output names in order, where the artifact's format has several names for an output."""
    work: Mapping[str, Work] = dataclasses.field(default_factory=dict[str, "Work"])
    """Compute operator of the graph that was compiled -> its type there and what it computes; empty: not known."""
    types: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Compute operator -> the type it runs in, as read back from a compiled artifact."""
    compiled_from: Path | None = None
    """The ONNX file that a compiler turned into the artifact, kept in staging until the artifact is verified."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """The outputs of an artifact on the samples, and what computed them."""

    by: str
    """E.g. `onnxruntime 1.32.0`."""
    outputs: Sequence[Mapping[str, Any]]
    artifact_itself: bool = True
    """False: a stand-in was run, as for a TensorRT engine on a machine without a GPU; `note` says which."""
    note: str = ""
    precision: str = "fp32"
    """The precision whose tolerance is due, where it is coarser than the one that was asked for: `fp16` for TF32."""


@dataclasses.dataclass(frozen=True)
class Delivered:
    """In which types the finished artifact computes, as read back from it."""

    compute: Mapping[str, int]
    """Type name (float32, float16, int8 …) -> number of compute operators (MatMul, Conv, …) that run in it."""
    evidence: str
    """What was read, e.g. `types in the ONNX file`."""
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Type name -> share of the multiplications that run in it, 0 to 1; empty where sizes are not known."""
    promised: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """The shares in the graph that the artifact was compiled from; empty where the artifact is that graph."""

    def share(self, dtype: str) -> float:
        """Return the share of compute operators that run in `dtype`, 0 to 1."""
        total = sum(self.compute.values())
        return self.compute.get(dtype, 0) / total if total else 0.0


class Exporter(BaseModel):
    """Writes one kind of artifact. Its file `to_<name>.py` is its registration; its fields are its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    target: ClassVar[str]
    suffix: ClassVar[str]
    domains: ClassVar[frozenset[str]] = frozenset({""})
    """Operator domains that the target accepts."""
    max_opset: ClassVar[int]
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "bf16", "int8", "int4")
    requires: ClassVar[Mapping[str, str]] = {}
    """Import name -> extra that brings it."""

    @classmethod
    def summary(cls) -> str:
        """Return the docstring's first line."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @abstractmethod
    def export(self, model: ir.Model, path: Path, dims: Mapping[str, DimRange]) -> Exported:
        """Write `model` as `path` (in a staging folder). Raises UnsupportedError naming the operator."""

    @abstractmethod
    def execute(self, exported: Exported, samples: Sequence[Mapping[str, Any]]) -> Executed:
        """Run the finished artifact on each sample."""

    @abstractmethod
    def delivered(self, exported: Exported) -> Delivered:
        """Read back in which types the finished artifact computes."""


def default_output(source: str, exporter: type[Exporter], precision: str) -> Path:
    """Return the output's path when the user names none: the source's name in the current folder.

    The target is part of the name where two targets share a suffix, the precision where it is not FP32.
    """
    stem = re.sub(r"\W+", "_", source.rpartition(":")[2]) if _is_factory(source) else Path(source.rstrip("/")).stem
    parts = [stem, "ort" if exporter.target == "onnxruntime" else "", "" if precision == "fp32" else precision]
    return Path(".".join(p for p in parts if p) + exporter.suffix)


def _is_factory(source: str) -> bool:
    return ":" in source and not Path(source).exists()
