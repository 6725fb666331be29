"""TensorRT: which one is installed, building an engine from an ONNX file, and asking what its parser refuses.

Two packages have the same Python API. `tensorrt_rtx` (TensorRT for RTX) builds ahead of time for named compute
capabilities and needs no GPU for it; classic `tensorrt` builds for the GPU that it runs on. Both are strongly typed:
the precision of every tensor is what the ONNX graph says, and there is no flag that changes it.

What the ONNX parser makes of a model without asking (measured with 1.7.1):

- `double` tensors, also inputs and outputs, become float32. int64 stays int64.
- An output's declared type is ignored in favour of the one that its node computes.
- A graph output that is a graph input makes the *input* be renamed (`x` becomes `__x`).

So compare `Built.network.inputs` and `.outputs` with the interface that was promised.

Everything that calls the library runs in a process of its own (`_tensorrt_worker.py` says why). Two builds of one ONNX
file with the same options and the same library version are byte-identical.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from infconv.convert._tensorrt_inspect import EngineInfo, TensorInfo, network_info, read_engine_answer, read_plan
from infconv.convert._tensorrt_process import Refusal, ask, raise_refusal
from infconv.errors import (
    DependencyError,
    SourceError,
    UnsupportedError,
    UsageError,
    did_you_mean,
    missing_extra,
)

Flavor = Literal["rtx", "classic"]
Shape = Sequence[int]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> (min, opt, max) shape."""

logger = logging.getLogger("infconv.tensorrt")

MODULES: Mapping[Flavor, str] = {"rtx": "tensorrt_rtx", "classic": "tensorrt"}
RTX_CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
CLASSIC_CAPABILITIES = ("sm87", "sm90", "sm100", "sm103", "sm110")
"""Exist, but TensorRT-RTX has no kernels for them."""
PORTABLE = "portable"
CURRENT = "current"

AHEAD_OF_TIME_WORKSPACE = 64 << 30
"""Bytes. What TensorRT-RTX assumes without a GPU. Set explicitly, because the limit is written into the engine: the
memory of a GPU that happens to be in the building machine must not decide its bytes."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """An installed TensorRT."""

    flavor: Flavor
    version: str

    @property
    def module(self) -> str:
        """The import name."""
        return MODULES[self.flavor]

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.flavor == 'rtx' else 'TensorRT'} {self.version}"


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. What the installed library lacks raises UnsupportedError, never passes silently."""

    compute_capabilities: tuple[str, ...] = ()
    """GPU architectures, e.g. ("sm89", "sm120"). Empty: "portable" with TensorRT-RTX (sm80, sm86, sm89, sm120 and
    later: its own default, with or without a GPU in the building machine; not Turing), "current" with classic TensorRT.
    "portable" and "current" can be said too."""
    workspace_bytes: int | None = None
    """Scratch memory that a kernel may use on the GPU. None: 64 GiB ahead of time, all of the GPU's for "current"."""
    tf32: bool = True
    """Let float32 convolutions and matrix products round their inputs to 10 bits of mantissa: TensorRT's default."""
    weight_streaming: bool = False
    """Allow weights to stay in host memory at run time."""
    refit: bool = False
    """Allow weights to be replaced in the finished engine. TensorRT-RTX needs a GPU to build such an engine."""
    version_compatible: bool = False
    """Classic only: let later versions of TensorRT load the engine."""
    hardware_compatibility: str | None = None
    """Classic only: "ampere-plus" or "same-compute-capability". With TensorRT-RTX use `compute_capabilities`."""
    timing_cache: Path | None = None
    """Classic only: a file that is read, and written after the build. Builds that share it choose the same kernels."""
    optimization_level: int | None = None
    """Classic only: 0 (fastest build) to 5. TensorRT-RTX accepts and ignores it."""
    timeout: float | None = None
    """Seconds."""


_CLASSIC_ONLY: Mapping[str, str] = {
    "version_compatible": "Leave it out, and build again when TensorRT-RTX is upgraded.",
    "hardware_compatibility": "Name the GPUs with compute_capabilities, or leave it out: portable is the default.",
    "timing_cache": "Leave it out: TensorRT-RTX times nothing while building, and its builds are identical anyway.",
    "optimization_level": "Leave it out: TensorRT-RTX builds the same engine at every level.",
}
_HARDWARE_LEVELS = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclasses.dataclass(frozen=True)
class Built:
    """A finished engine file."""

    path: Path
    runtime: Runtime
    targets: tuple[str, ...]
    """What it was built for: compute capabilities, or ("portable",) or ("current",)."""
    parse_seconds: float
    build_seconds: float
    network: EngineInfo
    """What went in, with the profile ranges; its evidence is "network"."""


def runtime(flavor: Literal["auto", "rtx", "classic"] = "auto") -> Runtime:
    """Return the installed TensorRT of this flavor; "auto" prefers TensorRT-RTX. Imports neither.

    Raises DependencyError when there is none, UsageError for an unknown flavor.
    """
    if flavor not in ("auto", *MODULES):
        raise UsageError(f"Unknown TensorRT flavor '{flavor}'.", did_you_mean(flavor, ("auto", *MODULES)))
    wanted: Sequence[Flavor] = ("rtx", "classic") if flavor == "auto" else (flavor,)
    for candidate in wanted:
        if importlib.util.find_spec(MODULES[candidate]) is not None:
            return Runtime(candidate, importlib.metadata.version(MODULES[candidate]))
    if flavor == "classic":
        raise DependencyError("Classic TensorRT is not installed.", "Install it with: pip install tensorrt")
    raise missing_extra("tensorrt-rtx", "tensorrt", "Building a TensorRT engine")


@functools.cache
def local_gpu() -> str | None:
    """Return the compute capability of this machine's first NVIDIA GPU, e.g. "sm89", or None without one.

    Asks the driver library (a few milliseconds, no CUDA context). A driver without a device counts as none.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._MINOR
    return f"sm{major.value}{minor.value}"


def build(
    onnx_path: Path,
    output: Path,
    profile: Profile,
    options: BuildOptions,
    installed: Runtime,
    *,
    values: Profile | None = None,
) -> Built:
    """Build the engine of the ONNX model at `onnx_path` (external data beside it, any size) into the file `output`.

    `profile` needs a range for each input with a dynamic dimension. `values` has the range of *values* of inputs that
    are shapes themselves (int32 or int64 inputs of rank 0 or 1 that a Reshape, Expand, Tile … takes as its shape).

    Raises UnsupportedError naming every refused node, UsageError (options, profile), SourceError (no ONNX model),
    ResourceError (time, memory, disk). `output` does not exist after an error.
    """
    targets = resolve_targets(options.compute_capabilities, installed)
    request: dict[str, Any] = {
        "command": "build",
        "model": str(onnx_path),
        "output": str(output),
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        "values": {name: [list(shape) for shape in shapes] for name, shapes in (values or {}).items()},
        "options": _options(options, targets, installed),
    }
    _require_file(onnx_path)
    try:
        answer = ask(request, installed.module, str(installed), options.timeout)
        raise_refusal(answer)
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    return Built(
        path=output,
        runtime=installed,
        targets=targets,
        parse_seconds=answer["parse_seconds"],
        build_seconds=answer["build_seconds"],
        network=network_info(answer, profile, targets),
    )


def unsupported(onnx_path: Path, installed: Runtime, *, timeout: float | None = None) -> list[Refusal]:
    """Return the nodes of the ONNX model at `onnx_path` that TensorRT's parser refuses; empty: it accepts the model.

    Unknown operators and attributes are all found in one go; of type mismatches and non-constant axes the parser
    reports the first only. A model that passes can still fail in the builder (attention without a matching kernel,
    NonMaxSuppression, bfloat16 on sm75).
    """
    _require_file(onnx_path)
    request = {"command": "build", "model": str(onnx_path), "output": None}
    answer = ask(request, installed.module, str(installed), timeout)
    error: dict[str, Any] = answer.get("error", {})
    if error.get("kind") == "unsupported":
        return [Refusal(**refusal) for refusal in error["refusals"]]
    raise_refusal(answer)
    return []


def inspect(engine: Path, installed: Runtime, network: EngineInfo | None = None) -> EngineInfo:
    """Read back the finished engine file `engine`: the best evidence that this machine can give.

    An engine can only be deserialized on the GPU that it is for; there the answer has evidence "engine". Elsewhere the
    kernel program that TensorRT-RTX stores as text inside the file is read (evidence "plan"): every kernel with the
    types that it reads and writes and the ONNX nodes that it computes, the bytes of weights by type, and the target
    architectures. It has no names of inputs and outputs; those come from `network`, what `build` returned. When neither
    can be read the answer is `network` itself (evidence "network").

    Raises SourceError when the file is no TensorRT engine, UnsupportedError when nothing can be said about it.
    """
    _require_file(engine)
    plan = read_plan(engine)
    if runs_here(plan):
        answer = ask({"command": "read", "engine": str(engine)}, installed.module, str(installed), None)
        if "error" not in answer:
            return read_engine_answer(answer, plan)
        logger.warning("%s could not be loaded on this machine's GPU; its file is read instead.", engine)
    if plan is not None:
        return plan.with_interface(network) if network else plan
    if network is not None:
        return network
    raise UnsupportedError(
        f"{engine} cannot be inspected on this machine.", "Inspect it where the GPU is that it was built for."
    )


def runs_here(plan: EngineInfo | None) -> bool:
    """Whether this machine's GPU is one that the engine is for, as far as its file tells."""
    gpu = local_gpu()
    if gpu is None or plan is None:
        return gpu is not None
    return gpu in plan.targets or (plan.targets == (PORTABLE,) and gpu != "sm75")


def resolve_targets(names: Sequence[str], installed: Runtime) -> tuple[str, ...]:
    """Return the compute capabilities in `names` in one spelling and order, or ("portable",) or ("current",).

    Accepts sm89, SM_89 and 8.9. Raises UsageError (unknown name, "current" without a GPU) or UnsupportedError.
    """
    if not names:
        names = (PORTABLE,) if installed.flavor == "rtx" else (CURRENT,)
    plain = sorted({_plain_capability(name) for name in names}, key=lambda name: (len(name), name))  # sm89 before sm120
    if len(plain) > 1 and (alone := [name for name in plain if name in (PORTABLE, CURRENT)]):
        raise UsageError(f"Compute capability '{alone[0]}' cannot be combined with others.", "Give it alone.")
    if installed.flavor == "classic" and plain != [CURRENT]:
        raise UnsupportedError(
            f"{installed} builds only for the GPU that it runs on, not for {', '.join(plain)}.",
            "Build on the target, or use TensorRT-RTX: pip install 'infconv[tensorrt]'",
        )
    if missing := [name for name in plain if name in CLASSIC_CAPABILITIES]:
        raise UnsupportedError(
            f"TensorRT-RTX does not build for {', '.join(missing)}.",
            f"Use classic TensorRT on a machine with that GPU. TensorRT-RTX builds for {', '.join(RTX_CAPABILITIES)}.",
        )
    if plain == [CURRENT] and local_gpu() is None:
        raise UsageError(
            "Compute capability 'current' needs an NVIDIA GPU in this machine, and there is none.",
            f"Name the target's instead, e.g. sm89 ({', '.join(RTX_CAPABILITIES)}), with TensorRT-RTX.",
        )
    return tuple(plain)


def _plain_capability(name: str) -> str:
    """Return `name` as sm89, portable or current. Raises UsageError."""
    word = name.strip().lower().replace("_", "").replace(".", "")
    word = f"sm{word}" if word.isdigit() else word
    known = (*RTX_CAPABILITIES, *CLASSIC_CAPABILITIES, PORTABLE, CURRENT)
    if word not in known:
        raise UsageError(f"Unknown compute capability '{name}'.", did_you_mean(word, known))
    return word


def _options(options: BuildOptions, targets: tuple[str, ...], installed: Runtime) -> dict[str, Any]:
    """Return `options` as the worker takes them. Raises UnsupportedError or UsageError."""
    request = dataclasses.asdict(options)
    default = BuildOptions()
    if installed.flavor == "rtx":
        for name, remedy in _CLASSIC_ONLY.items():
            if request[name] != getattr(default, name):
                raise UnsupportedError(f"{installed} does not have the option '{name}'.", remedy)
        if options.refit and local_gpu() is None:
            raise UnsupportedError(f"{installed} needs a GPU to build a refittable engine.", "Build without refit.")
        if options.workspace_bytes is None and targets != (CURRENT,):
            request["workspace_bytes"] = AHEAD_OF_TIME_WORKSPACE
    level = options.hardware_compatibility
    if level is not None and level not in _HARDWARE_LEVELS:
        raise UsageError(f"Unknown hardware_compatibility '{level}'.", did_you_mean(level, _HARDWARE_LEVELS))
    request["hardware_compatibility"] = _HARDWARE_LEVELS[level] if level else None
    request["timing_cache"] = str(options.timing_cache) if options.timing_cache else None
    # Classic TensorRT knows no list of targets; "portable" is what TensorRT-RTX does when given none.
    request["compute_capabilities"] = [] if targets == (PORTABLE,) or installed.flavor == "classic" else list(targets)
    return request


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} does not exist or is not a file.", "Check the path.")


__all__ = [
    "BuildOptions",
    "Built",
    "EngineInfo",
    "Flavor",
    "Profile",
    "Refusal",
    "Runtime",
    "TensorInfo",
    "build",
    "inspect",
    "local_gpu",
    "resolve_targets",
    "runs_here",
    "runtime",
    "unsupported",
]
