"""The pipeline file: what `infconv run` reads, what `--dry-run` prints, and what command-line flags become."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infconv.convert._base import DimRange, InputSpec
from infconv.errors import UsageError

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
StepItem = str | dict[str, Any]
ALIASES = {"ort": "onnxruntime", "ov": "openvino", "trt": "tensorrt"}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DimEntry(_Strict):
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


class InputEntry(_Strict):
    """A model input: names in `dims` are dynamic, numbers fixed."""

    dims: list[int | str]
    dtype: str | None = None


class SourceEntry(_Strict):
    """The model to convert."""

    path: str
    """A file, a folder, or `module:factory`."""
    frontend: str | None = None
    """Overrides what is recognised from the content."""
    inputs: dict[str, list[int | str] | InputEntry] = {}
    """Input name -> dims, e.g. `pixel_values: [batch, 3, 224, 224]`."""
    dims: dict[str, DimEntry] = {}
    """Dynamic dimension -> its sizes, e.g. `batch: {min: 1, opt: 8, max: 32}`."""
    weights: str | None = None
    """State dict or safetensors of a `module:factory` source."""
    trust_pickle: bool = False
    """Allow a source that runs code when it is loaded."""
    options: dict[str, Any] = {}
    """Options of the frontend, e.g. `dtype: auto` for a Hugging Face folder."""
    python: str | None = None
    """The interpreter in which the source's framework is installed."""

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


class TargetEntry(_Strict):
    """An artifact to make."""

    target: str
    """onnx, onnxruntime (ort), openvino (ov) or tensorrt (trt)."""
    precision: Precision = "fp32"
    output: str | None = None
    """The artifact's file; by default the source's name in the current folder."""
    io_types: Literal["keep", "follow"] = "keep"
    """Whether float inputs and outputs stay float32 or follow the precision."""
    options: dict[str, Any] = {}
    """Options of the exporter, e.g. `compute_capability: sm89`."""


class VerifyEntry(_Strict):
    """How results are compared with the source's."""

    when: Literal["off", "end", "each"] = "end"
    """`each`: after every step; a step that breaks the result is dropped and named."""
    rtol: float | None = Field(default=None, ge=0)
    atol: float | None = Field(default=None, ge=0)
    min_sqnr: float | None = None
    """Least signal-to-noise ratio in dB."""
    step_timeout: float | None = Field(default=None, gt=0)
    """Seconds that a step may take with `when: each`; a slower one is dropped and named."""


class PipelineSpec(_Strict):
    """A pipeline file."""

    version: Literal[1] = 1
    source: SourceEntry
    sample: str | None = None
    """A .npz of real inputs; otherwise seeded synthetic ones."""
    opset: int | None = Field(default=None, ge=7)
    """ONNX opset of the result; by default what the target likes best."""
    steps: list[StepItem] | None = None
    """Replaces the target's default steps. An item is a name, or `name: {option: value}`."""
    add: list[StepItem] = []
    """Steps that follow the default ones."""
    skip: list[str] = []
    """Names of default steps to leave out."""
    targets: list[TargetEntry] = Field(min_length=1)
    verify: VerifyEntry = Field(default_factory=lambda: VerifyEntry.model_validate({}))
    seed: int = 0


def to_yaml(spec: PipelineSpec) -> str:
    """Return `spec` as a pipeline file that `load_spec` accepts; defaults are left out."""
    data: dict[str, Any] = {"version": 1, **spec.model_dump(mode="json", exclude_defaults=True)}
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def load_spec(path: str | Path) -> PipelineSpec:
    """Read a pipeline file; relative paths in it are relative to the file. Raises UsageError."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the pipeline '{path}': {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"'{path}' is not a pipeline: it must be a mapping with `version: 1`, `source` and `targets`.")
    return _anchored(parse_spec(data, str(path)), path.parent)  # pyright: ignore[reportUnknownArgumentType]


def parse_spec(data: Mapping[str, Any], where: str) -> PipelineSpec:
    """Validate `data`; every problem is told, each with where it is. Raises UsageError."""
    try:
        spec = PipelineSpec.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{where}: " + "; ".join(explain(error, PipelineSpec))) from None
    return spec


def absolute(spec: PipelineSpec) -> PipelineSpec:
    """Return `spec` with absolute paths, so that it means the same wherever it is saved."""
    return _anchored(spec, Path.cwd())


def _anchored(spec: PipelineSpec, folder: Path) -> PipelineSpec:
    """Return `spec` with its relative paths made relative to `folder`."""

    def anchor(path: str | None) -> str | None:
        return None if path is None or _is_reference(path) else str(folder / path)

    source = spec.source.model_copy(
        update={"path": anchor(spec.source.path) or spec.source.path, "weights": anchor(spec.source.weights)}
    )
    targets = [t.model_copy(update={"output": anchor(t.output)}) for t in spec.targets]
    return spec.model_copy(update={"source": source, "targets": targets, "sample": anchor(spec.sample)})


def _is_reference(path: str) -> bool:
    """Return whether `path` is `module:function` or a URL, which no folder applies to."""
    head, separator, tail = path.partition(":")
    return bool(separator) and (tail.startswith("//") or head.replace(".", "").isidentifier())


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return one sentence for each problem: the key, what is wrong, and the likely spelling of an unknown key."""
    return [_explain_one(problem, root) for problem in error.errors()]


def _explain_one(problem: Mapping[str, Any], root: type[BaseModel]) -> str:
    location: Sequence[Any] = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(root, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"unknown key '{key}'" + (f", did you mean '{close[0]}'?" if close else f" (known: {', '.join(known)})")
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    return f"'{key}': {problem['msg'].removeprefix('Value error, ')}"


def _fields_at(root: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the keys that are known where `location` points to, walking the models' annotations."""
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            nested = _model_in(model.model_fields[part].annotation)
            model = nested or model
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
