"""The pipeline file: what `infconv run` reads, what `--dry-run` prints, and what command-line flags become."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from infconv import anchor, texts
from infconv.convert._base import DimRange, InputSpec, check_dtype
from infconv.entries import Entry
from infconv.errors import UsageError
from infconv.explain import ended, problems
from infconv.gate_options import GatesEntry, TargetGates
from infconv.options import Item as StepItem
from infconv.quantize._calibration_options import CalibrationEntry
from infconv.urls import is_url, name_of

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]


def _quantity(parse: Callable[[str, str], float]) -> BeforeValidator:
    """Return a validator that lets people write `30m` or `8GiB` where a number is meant."""

    def read(value: Any) -> Any:
        try:
            return parse(value, "the text") if isinstance(value, str) else value
        except UsageError as error:
            raise ValueError(f"{error.message} {error.hint}") from None

    return BeforeValidator(read)


_TEXT = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*[A-Za-z]*\s*$|\$\{"}
_NUMBER_OR_TEXT: dict[str, Any] = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _TEXT]}
Seconds = Annotated[float, _quantity(texts.duration), Field(gt=0), WithJsonSchema(_NUMBER_OR_TEXT)]
Bytes = Annotated[int, _quantity(texts.memory), Field(gt=0), WithJsonSchema(_NUMBER_OR_TEXT)]


def _report(path: str) -> str:
    try:
        return texts.report(path, "the report")
    except UsageError as error:
        raise ValueError(f"{error.message} {error.hint}") from None


_REPORT = {"type": "string", "pattern": rf"({'|'.join(map(re.escape, texts.REPORTS))})(::.*)?$|\$\{{"}
ReportPath = Annotated[str, AfterValidator(_report), WithJsonSchema(_REPORT)]


class DimEntry(Entry):
    """The sizes of a dynamic dimension."""

    min: int = Field(default=1, ge=1)
    opt: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> DimEntry:
        sizes = [s for s in (self.min, self.opt, self.max) if s is not None]
        if sizes != sorted(sizes):
            raise ValueError(f"min <= opt <= max is needed, not {self.min}, {self.opt}, {self.max}")
        return self


class InputEntry(Entry):
    """A model input: names in `dims` are dynamic, numbers fixed."""

    dims: list[int | str]
    """Sizes, and names of dynamic dimensions."""
    dtype: str | None = None
    """A type such as float32, int64 or bool."""

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str | None) -> str | None:
        try:
            return dtype and check_dtype(dtype, "an input")
        except UsageError as error:
            raise ValueError(f"{error.message} {error.hint}") from None


class SourceEntry(Entry):
    """The model to convert."""

    path: str
    """A file, a folder, or `module:factory`."""
    name: str | None = None
    """What it is called in --only, in reports and for `${source}`; by default after its path."""
    frontend: str | None = None
    """Overrides what is recognised from the content."""
    inputs: dict[str, list[int | str] | InputEntry] = Field(default={})
    """Input name -> dims, e.g. `pixel_values: [batch, 3, 224, 224]`."""
    dims: dict[str, DimEntry] = Field(default={})
    """Dynamic dimension -> its sizes, e.g. `batch: {min: 1, opt: 8, max: 32}`."""
    layout: Literal["keep", "nchw", "nhwc"] = "keep"
    """Where images at the artifact's inputs and outputs have their channels; `inputs` are as the source has them."""
    weights: str | None = None
    """State dict or safetensors of a `module:factory` source."""
    trust_pickle: bool = False
    """Allow a source that runs code when it is loaded."""
    options: dict[str, Any] = Field(default={})
    """Options of the frontend, e.g. `dtype: auto` for a Hugging Face folder."""
    python: str | None = None
    """The interpreter in which the source's framework is installed."""
    env: str | None = None
    """The environment (infconv env list) that runs the framework; by default the one of the frontend's name."""
    python_path: list[str] = Field(default=[])
    """Folders in which `module:name` is looked for before others; a pipeline file's own folder is one of them."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _written_out(cls, inputs: Any) -> Any:
        """Take `x: "batch,8:int64"`, as it is written on the command line, too."""
        try:
            return texts.inputs(cast("dict[str, Any]", inputs)) if isinstance(inputs, dict) else inputs
        except UsageError as error:
            raise ValueError(f"{error.message} {error.hint}") from None

    def label(self) -> str:
        """Return what the source is called."""
        if self.name is not None:
            return self.name
        return Path(name_of(self.path) if is_url(self.path) else self.path.rpartition(":")[2].rstrip("/")).stem

    def input_specs(self) -> dict[str, InputSpec]:
        """Return the inputs as the frontends take them."""
        return {
            name: InputSpec(tuple(entry.dims), entry.dtype)
            if isinstance(entry, InputEntry)
            else InputSpec(tuple(entry))
            for name, entry in self.inputs.items()
        }

    def dim_ranges(self) -> dict[str, DimRange]:
        """Return the dimensions as the frontends take them."""
        return {name: DimRange(d.min, d.opt, d.max) for name, d in self.dims.items()}


class TargetEntry(Entry):
    """An artifact to make."""

    target: str
    """onnx, onnxruntime (ort), openvino (ov) or tensorrt (trt)."""
    precision: Precision = "fp32"
    """What it computes in."""
    output: str | None = None
    """The artifact's file, in which `${source}`, `${target}` and `${precision}` stand for their names; by default the
    source's name in the pipeline file's folder."""
    io_types: Literal["keep", "follow"] = "keep"
    """Whether float inputs and outputs stay float32 or follow the precision."""
    precision_plan: str | None = None
    """A precision plan to apply, as an earlier conversion left it beside its artifact (docs/precision.md)."""
    options: dict[str, Any] = Field(default={})
    """Options of the exporter, e.g. `compute_capability: sm89`."""
    gates: TargetGates | None = None
    """Limits for this artifact, each in place of the pipeline's."""


class VerifyEntry(Entry):
    """How results are compared with the source's."""

    when: Literal["off", "end", "each"] = "end"
    """`each`: after every step; a step that breaks the result is dropped and named."""

    @field_validator("when", mode="before")
    @classmethod
    def _plain_off(cls, when: Any) -> Any:
        """YAML reads a plain `off` as false."""
        return "off" if when is False else when

    rtol: float | None = Field(default=None, ge=0)
    atol: float | None = Field(default=None, ge=0)
    min_sqnr: float | None = None
    """Least signal-to-noise ratio in dB."""
    edge_cases: list[Literal["zeros", "ones", "large", "denormal", "padding"]] = Field(default=[])
    """Samples at the edge of what inputs may be, beside the ordinary ones (docs/verification.md)."""
    metric: str | None = None
    """`module:function`, a measure of quality on your own data, taken of the source and of each artifact."""
    max_drop: float | None = Field(default=None, ge=0)
    """By how much the metric may be worse than the source's."""
    lower_is_better: bool = False
    """Whether a smaller metric is a better one, as of a word error rate."""
    step_timeout: Seconds | None = None
    """Time that a step may take with `when: each`; a slower one is dropped and named."""

    @model_validator(mode="after")
    def _has_metric(self) -> VerifyEntry:
        if self.metric is None and (self.max_drop is not None or self.lower_is_better):
            option = "max_drop" if self.max_drop is not None else "lower_is_better"
            raise ValueError(f"{option} is of a metric, and there is none: give metric: module:function")
        return self


class PipelineSpec(Entry):
    """A pipeline file."""

    version: Literal[1] = 1
    """Of the file's format."""
    source: SourceEntry
    """The model to convert."""
    sample: str | None = None
    """A .npz of real inputs; otherwise seeded synthetic ones."""
    calibration: CalibrationEntry | None = None
    """Data for INT8 and INT4: without it INT8 is dynamic, and INT4 rounds to nearest."""
    opset: int | None = Field(default=None, ge=1)
    """ONNX opset of the result; by default what the target likes best."""
    steps: list[StepItem] | None = None
    """Replaces the target's default steps. An item is a name, or `name: {option: value}`."""
    add: list[StepItem] = Field(default=[])
    """Steps that follow the default ones."""
    skip: list[str] = Field(default=[])
    """Names of default steps to leave out."""
    targets: list[TargetEntry] = Field(min_length=1)
    """The artifacts to make."""
    verify: VerifyEntry = Field(default_factory=lambda: VerifyEntry.model_validate({}))
    """How results are compared with the source's."""
    gates: GatesEntry | None = None
    """Limits that artifacts must keep (docs/ci.md)."""
    reports: list[ReportPath] = Field(default=[])
    """Files to write: .html, .json, .md, .xml (JUnit) or .sarif, by suffix."""
    seed: int = 0
    """Seed of synthetic inputs."""
    timeout: Seconds | None = None
    """Time for the whole run: seconds, or a text such as `30m`."""
    memory_limit: Bytes | None = None
    """Memory for each process of the run: bytes, or a text such as `8GiB`."""
    cache: bool | str | None = None
    """Whether results are taken from the cache and left there, or the folder or URL of a cache (docs/scale.md); by
    default `infconv run` does and `infconv convert` does not."""
    jobs: int | None = Field(default=None, ge=0)
    """Processes that make artifacts at the same time, within the memory limit; 0: one for each processor core."""

    @model_validator(mode="before")
    @classmethod
    def _plain_paths(cls, data: Any) -> Any:
        """Take file:///path as the path that it is."""
        return anchor.without_file_urls(cast("dict[str, Any]", data)) if isinstance(data, dict) else data

    _stands_for: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @property
    def stands_for(self) -> dict[str, str]:
        """Local file or folder -> the URL that it stands in for, in a run that has fetched it (infconv.nearby)."""
        return self._stands_for


def to_data(spec: PipelineSpec) -> dict[str, Any]:
    """Return `spec` as plain data; defaults are left out."""
    return {"version": 1, **spec.model_dump(mode="json", exclude_defaults=True)}


def to_yaml(spec: PipelineSpec) -> str:
    """Return `spec` as a pipeline file that `load_spec` accepts; defaults are left out."""
    return yaml.safe_dump(to_data(spec), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


_OPTIONS = {
    ("source", "inputs"): "--input",
    ("source", "dims"): "--dim",
    ("source", "path"): "SOURCE",
    ("targets", 0, "target"): "--target",
    ("targets", 0, "output"): "--output",
    ("targets", 0, "io_types"): "--io-types",
    ("targets", 0, "options"): "--option",
    ("add",): "--pass",
    ("verify", "when"): "--verify",
}
"""Where the last key is not the option's name."""


def parse_options(data: Mapping[str, Any]) -> PipelineSpec:
    """Validate what options became; every problem is told by the option's name. Raises UsageError."""
    try:
        return PipelineSpec.model_validate(data)
    except ValidationError as error:
        found = problems(error, PipelineSpec, data)
        told = dict.fromkeys(problem.sentence(_option(problem.path)) for problem in found)
        raise UsageError("\n".join(map(ended, told)), "See infconv --help.") from None


def _option(path: tuple[str | int, ...]) -> str:
    """Return how a user of options calls `path`: `--dim batch`, `--opset`."""
    for start, name in _OPTIONS.items():
        if path[: len(start)] == start:
            return " ".join([name, *(str(part) for part in path[len(start) :][:1])])
    names = [part for part in path if isinstance(part, str)]
    return "--" + names[-1].replace("_", "-") if names else "the options"


def absolute(spec: PipelineSpec) -> PipelineSpec:
    """Return `spec` with absolute paths, so that it means the same wherever it is saved."""
    return PipelineSpec.model_validate(anchor.anchored(to_data(spec), lambda _: Path.cwd(), Path.cwd()))
