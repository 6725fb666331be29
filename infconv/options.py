"""The options of `infconv.convert`: the command line's, by the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

PathLike: TypeAlias = str | os.PathLike[str]
Item: TypeAlias = str | dict[str, Any]
"""A step of a pipeline: its name, or `{name: options}`."""
Dims: TypeAlias = str | Sequence[int | str] | Mapping[str, Any]
Sizes: TypeAlias = int | str | Sequence[int] | Mapping[str, int]

ALIASES = {"ort": "onnxruntime", "ov": "openvino", "trt": "tensorrt"}
"""Short names of targets."""


class ConvertOptions(TypedDict, total=False):
    """What `infconv.convert` takes beside the source."""

    target: str | Sequence[str]
    """onnx (the default), onnxruntime (ort), openvino (ov) or tensorrt (trt), or several of them."""
    output: PathLike | None
    """The artifact's file; a folder when there are several targets."""
    fp16: bool
    """Compute in float16 where it is safe."""
    bf16: bool
    """Compute in bfloat16 where it is safe."""
    int8: bool
    """Compute in 8-bit integers."""
    int4: bool
    """Store weights in 4 bits."""
    input: Mapping[str, Dims] | Sequence[str]
    """{"ids": ["batch", 128]}, {"ids": "batch,128:int64"} or ["ids:batch,128:int64"]: names are dynamic."""
    dim: Mapping[str, Sizes] | Sequence[str]
    """{"batch": 8}, {"batch": (1, 8, 32)}, {"batch": "1..32"} or ["batch=1..32"]."""
    sample: PathLike | None
    """A .npz of real inputs for verification."""
    calibration: PathLike | Mapping[str, Any] | None
    """Data for INT8 and INT4: a path, or {"path": …, "samples": 300}."""
    steps: Sequence[Item] | None
    """Replaces the target's default steps."""
    passes: str | Sequence[Item]
    """Steps that follow the default ones."""
    skip: str | Sequence[str]
    """Names of steps to leave out."""
    opset: int | None
    """ONNX opset of the result."""
    verify: Literal["off", "end", "each"]
    """When results are compared with the source's."""
    atol: float | None
    """Absolute tolerance."""
    rtol: float | None
    """Relative tolerance."""
    min_sqnr: float | None
    """Least signal-to-noise ratio, in dB."""
    edge_cases: Sequence[str]
    """Samples beside the ordinary ones: zeros, ones, large, denormal, padding."""
    metric: str | None
    """`module:function`, a measure of quality on your own data (docs/verification.md)."""
    max_drop: float | None
    """By how much the metric may be worse than the source's."""
    lower_is_better: bool
    """Whether a smaller metric is a better one."""
    step_timeout: float | str | None
    """Time for a step with verify="each": seconds, or `30s`."""
    io_types: Literal["keep", "follow"]
    """Float inputs and outputs stay float32, or follow the precision."""
    precision_plan: PathLike | None
    """A precision plan to apply, as an earlier conversion left it beside its artifact."""
    options: Mapping[str, Any] | None
    """Options of the exporter, e.g. {"compute_capability": "sm89"}."""
    frontend: str | None
    """Overrides the recognised frontend."""
    layout: Literal["keep", "nchw", "nhwc"]
    """Where images at the artifact's inputs and outputs have their channels."""
    weights: PathLike | None
    """State dict or safetensors of a `module:factory` source."""
    source_options: Mapping[str, Any] | None
    """Options of the frontend, e.g. {"handlers": "my_operators"}."""
    trust_pickle: bool
    """Allow a source that runs code when it is loaded."""
    python: PathLike | None
    """The interpreter that has the source's framework."""
    env: str | None
    """The environment (infconv env list) that runs the framework."""
    seed: int
    """Seed of the synthetic inputs."""
    timeout: float | str | None
    """Time for the whole conversion: seconds, or `30m`."""
    cache: bool | str | None
    """Whether results are taken from the cache and left there, or the cache's folder or URL; off when not given."""
    jobs: int | None
    """Artifacts made at the same time, each in a process; 0: one for each processor core."""
    memory_limit: int | str | None
    """Memory for each process of the conversion: bytes, or `8GiB`."""
    report: PathLike | Sequence[PathLike]
    """Files to write reports to: .html, .json, .md, .xml (JUnit) or .sarif, by suffix."""


DEFAULTS: ConvertOptions = {
    "target": "onnx",
    "fp16": False,
    "bf16": False,
    "int8": False,
    "int4": False,
    "input": (),
    "dim": (),
    "passes": (),
    "skip": (),
    "verify": "end",
    "edge_cases": (),
    "lower_is_better": False,
    "io_types": "keep",
    "layout": "keep",
    "trust_pickle": False,
    "seed": 0,
    "report": (),
}
"""What options are that nobody gives; the others are None."""
