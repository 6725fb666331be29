"""Exporter `openvino` (alias `ov`): OpenVINO IR, .xml and .bin."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from infconv import isolate
from infconv.convert._base import DimRange
from infconv.convert._exporter import Delivered, Executed, Exported, Exporter
from infconv.convert._openvino_types import compute_kind
from infconv.errors import UnsupportedError, missing_extra

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._work import Work

_COMPUTE = {
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"),
    *("LSTMSequence", "GRUSequence", "RNNSequence", "ScaledDotProductAttention", "Einsum"),
}
_EXECUTED = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "ScaledDotProductAttention"}
"""What the CPU plugin calls them."""
_NAMES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f64": "float64",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
}


_ROUNDS = (
    "OpenVINO was run with INFERENCE_PRECISION_HINT=f32. Its default on a CPU with bfloat16, such as this one, rounds "
    "to it: set the hint where float32 accuracy matters."
)


_RUNS_AS = "On this machine's CPU OpenVINO's default runs the compute operators of the narrow IR so: {}."


class ToOpenVINO(Exporter):
    """OpenVINO IR (.xml and .bin)."""

    target: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    max_opset: ClassVar[int] = 22
    requires: ClassVar[Mapping[str, str]] = {"openvino": "openvino"}

    def export(self, model: ir.Model, path: Path, dims: Mapping[str, DimRange]) -> Exported:
        """Translate by OpenVINO's own ONNX reader, in a child process; types are kept exactly as in the graph."""
        from infconv.convert._work import work_of
        from infconv.model import save

        _require_openvino()
        # External, so that OpenVINO maps the weights and never parses them.
        source = save(model, path.with_name("openvino-source.onnx"), external=True)
        version = isolate.call(lambda: _translate(source[0], path), what="OpenVINO's conversion")
        for file in source:
            file.unlink()
        outputs = [value.name or "" for value in model.graph.outputs]
        here = isolate.call(lambda: _execution_types(path), what="OpenVINO's compilation for the CPU")
        return Exported(
            [path, path.with_suffix(".bin")],
            {"openvino": version, "execution_types": here},
            [_RUNS_AS.format(", ".join(f"{count} in {kind}" for kind, count in here.items()))] if here else [],
            outputs,
            work=_as_named_in_ir(model, work_of(model) or {}),
        )

    def execute(self, exported: Exported, samples: Sequence[Mapping[str, Any]]) -> Executed:
        """Compile for the CPU and run with the float32 hint: the plugin's default rounds to bf16 where the CPU can."""
        by, outputs, rounds = isolate.call(
            lambda: _run(exported.files[0], samples, exported.outputs), what="Running the OpenVINO IR"
        )
        return Executed(by, outputs, note=_ROUNDS if rounds else "")

    def delivered(self, exported: Exported) -> Delivered:
        """Read the element types of the finished IR's operators."""
        from infconv.convert._work import shares

        counts = isolate.call(lambda: _compute_types(exported.files[0]), what="Reading the OpenVINO IR")
        return Delivered(
            dict(collections.Counter(counts.values())),
            "element types in the OpenVINO IR",
            shares(exported.work, counts),
            shares({name: work for name, work in exported.work.items() if name in counts}),
        )


def _require_openvino() -> None:
    import importlib.util

    if importlib.util.find_spec("openvino") is None:
        raise missing_extra("openvino", "openvino", "Target openvino")


def _core() -> Any:
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    import openvino

    return openvino.Core()


def _as_named_in_ir(model: ir.Model, work: Mapping[str, Work]) -> dict[str, Work]:
    """Return `work` under OpenVINO's names: a node's own, but for one that writes an output the output's."""
    writers = {node.name: v.name or "" for v in model.graph.outputs if (node := v.producer()) is not None}
    return {writers.get(name, name): found for name, found in work.items()}


def _translate(source: Path, path: Path) -> str:
    import openvino

    core = _core()
    try:
        model = core.read_model(source)
    except Exception as error:  # OpenVINO raises RuntimeError, and other types for some operators
        raise UnsupportedError(
            f"OpenVINO does not accept the model: {_reason(error)}",
            "See `infconv inspect MODEL -t openvino`, or rewrite the operator.",
        ) from error
    _name_graph(model, path.stem)
    openvino.save_model(model, path, compress_to_fp16=False)
    return str(openvino.get_version())


def _name_graph(model: Any, name: str) -> None:
    """Give the IR the artifact's own name; the reader's may depend on where the file lay."""
    model.set_friendly_name(name)


def _reason(error: Exception) -> str:
    """Return the line of an OpenVINO error that says what is wrong; the rest are its source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    first = (telling or lines or [type(error).__name__])[0]
    following = (telling or lines)[1:2] if first.endswith(":") else []
    return " ".join([first, *following])[:400]


def _run(
    path: Path, samples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[str, list[dict[str, Any]], bool]:
    """Return what ran it, the outputs, and whether the plugin's default would round to bfloat16 on this CPU."""
    import openvino

    core = _core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = [_infer(compiled, sample, names) for sample in samples]
    rounds = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"openvino {openvino.__version__} CPU", results, rounds


def _infer(compiled: Any, sample: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the outputs under `names`; without them under every name that OpenVINO has for each."""
    if any(np.asarray(value).dtype.kind in "OUS" for value in sample.values()):
        raise UnsupportedError("OpenVINO cannot be fed strings here.", "Convert with --verify off, or to onnx.")
    known = {name for port in compiled.inputs for name in port.get_names()}
    result = compiled({name: np.asarray(value) for name, value in sample.items() if name in known})
    arrays = [np.array(result[port]) for port in compiled.outputs]
    if names:
        return dict(zip(names, arrays, strict=True))
    aliases = [port.get_names() or {port.get_any_name()} for port in compiled.outputs]
    return {name: array for array, known in zip(arrays, aliases, strict=True) for name in known}


def _compute_types(path: Path) -> dict[str, str]:
    """Return compute operator of the IR, by the name of its ONNX node -> type."""
    return {
        operator.get_friendly_name(): _type_name(compute_kind(operator))
        for operator in _core().read_model(path).get_ordered_ops()
        if operator.get_type_name() in _COMPUTE
    }


def _execution_types(path: Path) -> dict[str, int]:
    """Return type -> compute layers that the CPU plugin's default runs in it, from the runtime model of a narrow IR.

    Empty for an IR in float32, and on a CPU that cannot compile it.
    """
    if not set(_compute_types(path).values()) & {"float16", "bfloat16", "int8"}:
        return {}
    try:
        runtime = _core().compile_model(path, "CPU").get_runtime_model()
    except RuntimeError:  # the IR is for another device; verification tells what is wrong with it
        return {}
    facts = [operator.get_rt_info() for operator in runtime.get_ordered_ops()]
    kinds = [fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) in _EXECUTED]
    return dict(collections.Counter(_type_name(kind) for kind in kinds).most_common())


def _type_name(kind: str) -> str:
    return _NAMES.get(str(kind), str(kind))


def open_ir(path: Path, names: Sequence[str]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return the IR, compiled once for the CPU with the float32 hint, as a function of inputs."""
    compiled = _core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: _infer(compiled, inputs, names)
