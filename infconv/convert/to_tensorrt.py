"""Exporter `tensorrt` (alias `trt`): a TensorRT engine, built ahead of time and without a GPU by TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from infconv.census import numpy_name
from infconv.convert._base import DimRange
from infconv.convert._exporter import Delivered, Executed, Exported, Exporter
from infconv.errors import DependencyError, UnsupportedError, UsageError
from infconv.plain import plain

if TYPE_CHECKING:
    import onnx_ir as ir

    from infconv.convert._tensorrt import Built, Profile

_NOT_EXECUTED = (
    "The TensorRT engine itself was not executed: {why} The exact ONNX that it was built from was "
    "verified, and the engine was inspected."
)
_NO_GPU = "that needs its GPU."


class ToTensorRT(Exporter):
    """TensorRT engine, built without a GPU by TensorRT-RTX (or on the GPU by classic TensorRT)."""

    target: ClassVar[str] = "tensorrt"
    suffix: ClassVar[str] = ".engine"
    max_opset: ClassVar[int] = 23
    requires: ClassVar[Mapping[str, str]] = {"tensorrt_rtx": "tensorrt"}

    flavor: Literal["auto", "rtx", "classic"] = "auto"
    """Which TensorRT builds: rtx, classic, or the one that is installed."""
    compute_capability: list[str] = Field(default_factory=list[str])
    """GPU architectures, e.g. sm89 or sm89,sm120. By default portable: Ampere and later."""
    workspace_bytes: int | None = Field(None, ge=0)
    """Scratch memory that a kernel may use on the GPU."""
    tf32: bool = True
    """Let float32 products round their inputs to 10 bits of mantissa, TensorRT's default."""
    weight_streaming: bool = False
    """Allow weights to stay in host memory at run time."""
    refit: bool = False
    """Allow weights to be replaced in the finished engine."""
    version_compatible: bool = False
    """Classic only: let later versions of TensorRT load the engine."""
    hardware_compatibility: str | None = None
    """Classic only: ampere-plus or same-compute-capability."""
    timing_cache: str | None = None
    """Classic only: a file of kernel timings, read and updated."""
    optimization_level: int | None = Field(None, ge=0, le=5)
    """Classic only: 0 builds fastest, 5 searches longest."""
    keep_onnx: bool = False
    """Leave the exact ONNX that the engine was built from beside it, as `<engine>.onnx`."""

    @field_validator("compute_capability", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def export(self, model: ir.Model, path: Path, dims: Mapping[str, DimRange]) -> Exported:
        """Write the graph as ONNX, build the engine from it, inspect the engine and compare its interface."""
        from infconv.convert._tensorrt import build, inspect, runtime
        from infconv.convert._tensorrt_execute import source_beside
        from infconv.convert._work import work_of
        from infconv.model import save

        installed = runtime(self.flavor)
        renamed = _separate_outputs(model)
        _separate_loop_inputs(model)
        profile, notes = _profile(model, dims)
        notes += [
            f"The engine's output '{name}' is called '{new}': '{name}' is an input." for new, name in renamed.items()
        ]
        source = save(model, source_beside(path) if self.keep_onnx else path.with_name("tensorrt-source.onnx"))
        onnx_path = source[0]
        try:
            built = build(onnx_path, path, profile, self._build_options(), installed)
        except UnsupportedError as error:
            # The file named in the message is in staging and means nothing to the user.
            raise UnsupportedError(error.message.replace(str(onnx_path), "the model"), error.hint) from error
        _check_interface(model, built)
        engine = inspect(path, installed, built.network)
        facts = {
            "tensorrt": str(installed),
            "compute_capabilities": list(built.targets),
            "inputs": plain(engine.inputs),
            "outputs": plain(engine.outputs),
            "layers": len(engine.layers),
            "precisions": engine.precisions,
            "matrix_precisions": engine.matrix_precisions,
            "weight_bytes": dict(engine.weight_bytes),
            "tf32": engine.tf32,
            "evidence": engine.evidence,
            "parse_seconds": built.parse_seconds,
            "build_seconds": built.build_seconds,
            "renamed_outputs": renamed,
        }
        types = {node: layer.precision for layer in engine.layers if layer.matrix for node in layer.nodes}
        files = [path, *source] if self.keep_onnx else [path]
        return Exported(files, facts, notes, compiled_from=onnx_path, work=work_of(model) or {}, types=types)

    def _build_options(self) -> Any:
        from infconv.convert._tensorrt import BuildOptions

        return BuildOptions(
            compute_capabilities=tuple(self.compute_capability),
            workspace_bytes=self.workspace_bytes,
            tf32=self.tf32,
            weight_streaming=self.weight_streaming,
            refit=self.refit,
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility,
            timing_cache=Path(self.timing_cache) if self.timing_cache else None,
            optimization_level=self.optimization_level,
        )

    def execute(self, exported: Exported, samples: Sequence[Mapping[str, Any]]) -> Executed:
        """Run the engine where its GPU is; elsewhere the exact ONNX that went into it, in ONNX Runtime."""
        by, outputs, why = self._run_engine(exported, samples)
        if why:
            by, outputs = _run_source(exported, samples)
        source_names = exported.facts["renamed_outputs"]
        outputs = [{source_names.get(name, name): value for name, value in sample.items()} for sample in outputs]
        if why:
            return Executed(by, outputs, artifact_itself=False, note=_NOT_EXECUTED.format(why=why))
        # The products of a TF32 engine round their inputs to the mantissa of float16.
        return Executed(by, outputs, precision="fp16" if exported.facts["tf32"] else "fp32")

    def _run_engine(
        self, exported: Exported, samples: Sequence[Mapping[str, Any]]
    ) -> tuple[str, Sequence[Mapping[str, Any]], str]:
        """Return what ran the engine, its outputs, and "" or why it was not run."""
        from infconv.convert._tensorrt import local_gpu, runs_here
        from infconv.convert._tensorrt_execute import run_engine
        from infconv.convert._tensorrt_inspect import read_plan

        if local_gpu() is None or not runs_here(read_plan(exported.files[0])):
            return "", [], _NO_GPU
        try:
            return *run_engine(exported.files[0], samples), ""
        except (DependencyError, UsageError) as error:  # no bindings; samples beyond the sizes that it was built for
            return "", [], f"{error.message} {error.hint}"

    def delivered(self, exported: Exported) -> Delivered:
        """Return the precisions of the engine's matrix kernels, as inspected."""
        evidence = {
            "engine": "the engine, deserialised on its GPU",
            "plan": "the kernel program in the engine file",
            "network": "the strongly typed network that the engine was built from",
        }
        from infconv.convert._work import shares

        return Delivered(
            exported.facts["matrix_precisions"],
            evidence[exported.facts["evidence"]],
            shares(exported.work, exported.types),
            shares({name: work for name, work in exported.work.items() if name in exported.types}),
        )


def _run_source(exported: Exported, samples: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Run the exact ONNX that went into the engine."""
    from infconv.convert._onnxruntime import run_samples
    from infconv.convert._rounded import run_rounded

    assert exported.compiled_from is not None
    # Narrow types: ONNX Runtime's CPU provider rounds less often than a GPU, and would flatter the engine.
    return run_rounded(exported.compiled_from, samples) or run_samples(exported.compiled_from, samples, optimize=True)


def _separate_outputs(model: ir.Model) -> dict[str, str]:
    """Give each output that is an input a tensor of its own, which TensorRT needs; return its name -> the old name."""
    import onnx_ir as ir

    taken = {v.name for v in (*model.graph.inputs, *model.graph.outputs)}
    renamed: dict[str, str] = {}
    for index, value in enumerate(model.graph.outputs):
        if not value.is_graph_input():
            continue
        name = f"{value.name}_output"
        while name in taken:
            name += "_"
        node = ir.node("Identity", [value])
        copy = node.outputs[0]
        copy.name, copy.type, copy.shape = name, value.type, value.shape
        model.graph.append(node)
        model.graph.outputs[index] = copy
        renamed[name] = value.name or ""
        taken.add(name)
    return renamed


def _separate_loop_inputs(model: ir.Model) -> None:
    """Put an Identity between an input and a Loop that counts or stops by it: TensorRT would rename the input."""
    import onnx_ir as ir

    for node in [node for node in model.graph if node.op_type == "Loop" and not node.domain]:
        for index, value in enumerate(node.inputs[:2]):
            if value is not None and value.is_graph_input():
                copy = ir.node("Identity", [value])
                copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
                model.graph.insert_before(node, copy)
                node.replace_input_with(index, copy.outputs[0])


def _profile(model: ir.Model, dims: Mapping[str, DimRange]) -> tuple[Profile, list[str]]:
    """Return (min, opt, max) shapes of the inputs with dynamic dims, and a note on ranges that had to be assumed."""
    profile: dict[str, tuple[list[int], list[int], list[int]]] = {}
    assumed: dict[str, str] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if name in model.graph.initializers or value.shape is None or value.shape.is_static():
            continue
        shapes: tuple[list[int], list[int], list[int]] = ([], [], [])
        for axis, dim in enumerate(value.shape):
            label = str(dim.value or f"{name}.{axis}") if not isinstance(dim, int) else ""
            given = dims.get(label, DimRange())
            sizes = (dim,) * 3 if isinstance(dim, int) else (given.min, given.usual(label), given.most(label))
            if not isinstance(dim, int) and given.max is None:
                assumed[label] = f"{label}={sizes[0]}..{sizes[2]}"
            for shape, size in zip(shapes, sizes, strict=True):
                shape.append(size)
        profile[name] = shapes
    if not assumed:
        return profile, []
    ranges = ", ".join(assumed.values())
    return profile, [f"The engine accepts {ranges}: no range was given. Set it with --dim."]


def _check_interface(model: ir.Model, built: Built) -> None:
    """Raise UnsupportedError where the engine's inputs or outputs are not those of the model."""
    for what, values, tensors in (
        ("input", [v for v in model.graph.inputs if v.name not in model.graph.initializers], built.network.inputs),
        ("output", list(model.graph.outputs), built.network.outputs),
    ):
        promised = {v.name or "": _dtype_name(v) for v in values}
        found = {t.name: t.dtype for t in tensors}
        if set(promised) != set(found):
            raise UnsupportedError(
                f"TensorRT's {what}s are {sorted(found)}, the model's {sorted(promised)}: it drops unused inputs and "
                "renames an input that is an output.",
                "Remove that input from the model, or put an Identity before that output.",
            )
        for name, dtype in promised.items():
            if dtype and found[name] != dtype:
                raise UnsupportedError(
                    f"TensorRT makes {what} '{name}' {found[name]}, in the model it is {dtype}.",
                    "Cast it in the model to a type that TensorRT has: float32, float16, bfloat16, int64, int32, bool.",
                )


def _dtype_name(value: ir.Value) -> str:
    return "" if value.dtype is None else numpy_name(value.dtype)
