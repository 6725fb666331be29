"""What a frontend and an exporter are."""

from __future__ import annotations

import dataclasses
import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from infconv.errors import InfconvError, UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class DimRange:
    """The sizes that a named dynamic dimension takes. `max` None: not known."""

    min: int = 1
    opt: int | None = None
    max: int | None = None

    def usual(self, name: str) -> int:
        """Return the size to optimise for: `opt`, or a small one that is usual for a dimension of this `name`."""
        guess = 2 if "batch" in name.lower() or name.lower() in {"n", "b"} or name.endswith(".0") else 8
        size = self.opt if self.opt is not None else guess
        return max(self.min, size if self.max is None else min(size, self.max))

    def most(self, name: str) -> int:
        """Return the largest size: `max`, or four times the usual one."""
        return self.max if self.max is not None else 4 * self.usual(name)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A model input as the user described it: names in `dims` are dynamic, numbers fixed."""

    dims: tuple[int | str, ...]
    dtype: str | None = None
    """A numpy dtype name such as float32, int64, bool; None: the frontend's own choice."""


@dataclasses.dataclass(frozen=True)
class SourceRequest:
    """What a frontend is asked to open."""

    source: str
    """A path, or `module:factory`."""
    format: str
    """One of the frontend's formats, as `recognise` returned it."""
    inputs: Mapping[str, InputSpec] = dataclasses.field(default_factory=dict[str, InputSpec])
    dims: Mapping[str, DimRange] = dataclasses.field(default_factory=dict[str, DimRange])
    weights: str | None = None
    sample: str | None = None
    """A .npz of real inputs, if the user gave one: also an example for exporters that trace."""
    opset: int | None = None
    trust_pickle: bool = False
    python: str | None = None
    """The interpreter that runs the framework; None: this one."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    python_path: Sequence[str] = ()
    """Folders in which modules are looked for before others."""
    memory_limit: int | None = None
    """Bytes."""
    timeout: float | None = None
    """Seconds for each request to the framework."""
    seed: int = 0


class Source(ABC):
    """An opened source: its ONNX form on disk, and the original model ready to be run.

    Use as a context manager; leaving it ends the worker process.
    """

    model_path: Path
    """The exported (or original) ONNX file."""
    is_onnx: ClassVar[bool] = False
    """Whether the source is the ONNX file itself, so that running it is running the source."""
    producer: str
    """What computes the reference, e.g. `torch 2.13.0`."""
    notes: Sequence[str] = ()
    """What the user should know about how the source was opened, one sentence each."""
    attempts: Sequence[Mapping[str, Any]] = ()
    """The roads an exporter tried: {road, ok, seconds, error}."""
    versions: Mapping[str, str] = {}
    """Package name -> version, as used by the frontend."""
    dims: Mapping[str, DimRange] = {}
    """Dynamic dimension -> the sizes that the model takes, where the framework knows them."""
    log: Sequence[str] = ()
    """The end of what the framework printed, line by line."""
    files: Sequence[Path] = ()
    """The files that make up the source, where its path does not name them all."""
    value_limits: Mapping[str, int] = {}
    """Input name -> its integers stay below this (the size of a vocabulary), where the framework knows it."""

    inputs_applied: ClassVar[bool] = False
    """Whether the ONNX form already has what the user said about the inputs' dims."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run the *original* model and return its outputs by the ONNX output names, in order.

        Raises InfconvError when the source model does not accept these inputs.
        """

    def run_all(self, samples: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, Any] | InfconvError]:
        """Run on each sample; where the model does not accept one, its error stands in the list."""
        return [self._run_or_error(sample) for sample in samples]

    def _run_or_error(self, sample: Mapping[str, np.ndarray]) -> dict[str, Any] | InfconvError:
        try:
            return self.run(sample)
        except InfconvError as error:
            return error

    @abstractmethod
    def close(self) -> None:
        """Release the worker process. Idempotent."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Frontend(ABC):
    """Opens the models of one training framework. Its file `from_<name>.py` is its registration."""

    summary: ClassVar[str]
    """One line for `infconv frontends`."""
    formats: ClassVar[Mapping[str, str]]
    """Format name -> one line, e.g. {"exported-program": ".pt2 written by torch.export.save"}."""
    requires: ClassVar[Mapping[str, str]] = {}
    """Import name -> extra that brings it, e.g. {"torch": "torch"}."""
    takes: ClassVar[frozenset[str]] = frozenset({"--weights", "--python", "--trust-pickle", "source options"})
    """The options for sources that mean something to it; others are refused."""

    @classmethod
    @abstractmethod
    def recognise(cls, source: str) -> str | None:
        """Return the format if this frontend reads `source`, from its content; None otherwise.

        Imports nothing heavy, reads only headers, raises nothing for files that are not its own.
        """

    @abstractmethod
    def open(self, request: SourceRequest, workdir: Path) -> Source:
        """Export to `workdir` (an empty folder that outlives the Source) and return the opened source.

        Raises SourceError (not a valid model), UnsupportedError (operators), DependencyError, ResourceError.
        """


DTYPES = (
    *("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32"),
    *("uint64", "bool", "str", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
)
_OTHER_NAMES = {
    other: name
    for name, others in {
        "float32": "float fp32 f32",
        "float16": "half fp16 f16",
        "bfloat16": "bf16",
        "float64": "double fp64 f64",
        "int64": "int long i64",
        "int32": "i32",
        "int8": "i8",
        "uint8": "byte u8",
        "bool": "boolean",
        "str": "string",
    }.items()
    for other in others.split()
}


def check_dtype(name: str, what: str) -> str:
    """Return the type's `name`. Raises UsageError that suggests the right spelling; `what` has the type."""
    if name in DTYPES:
        return name
    close = difflib.get_close_matches(name.lower(), [*_OTHER_NAMES, *DTYPES], n=1)
    hint = f"Did you mean '{_OTHER_NAMES.get(close[0], close[0])}'?" if close else f"Known: {', '.join(DTYPES)}."
    raise UsageError(f"{what} has the unknown type '{name}'.", hint)


def parse_input(text: str) -> tuple[str, InputSpec]:
    """Parse `NAME:DIMS[:DTYPE]`, e.g. `input_ids:batch,128:int64`. Raises UsageError."""
    name, _, rest = text.partition(":")
    if not name or not rest:
        raise UsageError(
            f"--input '{text}' is not NAME:DIMS[:DTYPE].",
            "Example: --input input_ids:batch,128:int64 (names are dynamic, numbers fixed).",
        )
    return name, InputSpec(*parse_dims(rest, f"--input '{name}'"))


def parse_dims(text: str, what: str) -> tuple[tuple[int | str, ...], str | None]:
    """Parse `DIMS[:DTYPE]`, e.g. `batch,128:int64`. Raises UsageError that names it `what`."""
    dims_text, _, dtype = text.partition(":")
    dims = [part.strip() for part in dims_text.strip("[]() ").split(",") if part.strip()]
    bad = next((d for d in dims if not re.fullmatch(r"\d+|[A-Za-z_]\w*", d)), None)
    if bad is not None:
        raise UsageError(
            f"{what}: '{bad}' is no dimension in '{text}'.",
            "Write DIMS[:DTYPE], e.g. batch,128:int64 (names are dynamic, numbers fixed).",
        )
    return tuple(int(d) if d.isdigit() else d for d in dims), check_dtype(dtype, what) if dtype else None
