"""What is inside a TensorRT engine: the description types, and reading an engine file without a GPU.

An engine file of TensorRT-RTX is a header (`vtrt`), a binary section, and one or more kernel programs stored as text
behind the mark `NLYM a1da1e00` and a 64-bit little-endian length:

    header { … tf32=1 … hfc_hccc=0 … accelerators={sm89 } }
    descriptors { tensor={ … const_payload_size=2048 … name="w" … rank0=0 … type=half } … }
    main { … fully_connected={ name="mm" output={"y"} input={"x" "w" …} … layers="[ONNX Layer: mm]" } … }

The format is not documented: it was read off files of version 1.7.1. A file without such a program yields None, never a
guess.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from infconv.errors import SourceError

Evidence = Literal["engine", "plan", "network"]

PROGRAM_MARK = b"NLYM\xa1\xda\x1e\x00"
# TensorRT's spellings (Python enum, kernel program, inspector) -> ours, and bits per element.
DTYPES: Mapping[str, tuple[str, int]] = {
    "float": ("float32", 32),
    "half": ("float16", 16),
    "bf16": ("bfloat16", 16),
    "bfloat16": ("bfloat16", 16),
    "fp8": ("float8", 8),
    "fp8_e4m3": ("float8", 8),
    "e8m0": ("float8e8m0", 8),
    "int8": ("int8", 8),
    "uint8": ("uint8", 8),
    "fp4": ("float4", 4),
    "int4": ("int4", 4),
    "int32": ("int32", 32),
    "int64": ("int64", 64),
    "bool": ("bool", 8),
}
INDEX_TYPES = frozenset({"int32", "int64", "bool"})
"""Carry indices, shapes and masks; they say nothing about the precision of a computation."""
CONTROL = frozenset({"memset", "copy", "jmp", "cjmp", "shape_call", "assert"})
MATRIX_KINDS = frozenset({"corrltn", "deconvolution", "fully_connected"})
NETWORK_MATRIX_KINDS = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT"})


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine."""

    name: str
    dtype: str
    """float32, float16, bfloat16, int8, int64, bool …"""
    shape: tuple[int, ...]
    """-1 is a dynamic dimension."""
    profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    """The min, opt and max shape that the engine accepts; None for a fixed shape."""


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """A kernel of an engine, or a layer of a network."""

    name: str
    kind: str
    reads: tuple[str, ...]
    """The types of the tensors it reads, scalars such as alpha and beta left out."""
    writes: tuple[str, ...]
    nodes: tuple[str, ...]
    """The ONNX nodes that it computes."""
    matrix: bool
    """Whether it is a convolution, a matrix product or attention: where precision pays."""

    @property
    def precision(self) -> str:
        """The narrowest type that it reads (or writes, if it reads only indices): int8 for a quantized convolution."""
        for types in (self.reads, self.writes):
            if numeric := [name for name in types if name not in INDEX_TYPES]:
                return min(numeric, key=lambda name: BITS.get(name, 64))
        return next(iter(self.writes or self.reads), "none")


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """What is known about an engine, and from where.

    `evidence` is "engine" (deserialized on its GPU), "plan" (the kernel program in the engine file) or "network" (what
    the parser made of the ONNX graph; strongly typed, hence binding for the builder, but not the finished engine).
    """

    evidence: Evidence
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[LayerInfo, ...]
    targets: tuple[str, ...]
    """Compute capabilities, e.g. ("sm89",); ("portable",) for Ampere and later."""
    weight_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    """Bytes of constants by type; empty unless evidence comes from the plan."""
    tf32: bool | None = None
    """Whether float32 products may use TF32; None: not known."""

    @property
    def precisions(self) -> dict[str, int]:
        """How many layers compute in each precision, most frequent first."""
        return dict(Counter(layer.precision for layer in self.layers).most_common())

    @property
    def matrix_precisions(self) -> dict[str, int]:
        """The same for convolutions, matrix products and attention alone: the proof of a delivered precision."""
        return dict(Counter(layer.precision for layer in self.layers if layer.matrix).most_common())

    def with_interface(self, network: EngineInfo) -> EngineInfo:
        """Return this with the inputs and outputs of `network`."""
        return dataclasses.replace(self, inputs=network.inputs, outputs=network.outputs)


BITS: Mapping[str, int] = dict(DTYPES.values())


def dtype_name(word: str) -> str:
    """Return TensorRT's type name in our spelling; an unknown one unchanged."""
    return DTYPES.get(word.lower(), (word.lower(), 0))[0]


def network_info(answer: Mapping[str, Any], profile: Mapping[str, Any], targets: tuple[str, ...]) -> EngineInfo:
    """Return the worker's description of a parsed network, with the ranges of `profile`."""
    layers = [
        LayerInfo(
            name=layer["name"],
            kind=layer["kind"].lower(),
            reads=tuple(dtype_name(word) for word in layer["reads"]),
            writes=tuple(dtype_name(word) for word in layer["writes"]),
            nodes=_onnx_nodes(layer["metadata"]),
            matrix=layer["kind"] in NETWORK_MATRIX_KINDS,
        )
        for layer in answer["layers"]
    ]
    inputs = [_tensor({**tensor, "profile": profile.get(tensor["name"])}) for tensor in answer["inputs"]]
    outputs = tuple(_tensor(tensor) for tensor in answer["outputs"])
    return EngineInfo("network", tuple(inputs), outputs, tuple(layers), targets)


def _tensor(tensor: Mapping[str, Any]) -> TensorInfo:
    ranges = tensor.get("profile") if -1 in tensor["shape"] else None
    low, best, high = (tuple(shape) for shape in ranges) if ranges else ((), (), ())
    return TensorInfo(
        tensor["name"], dtype_name(tensor["dtype"]), tuple(tensor["shape"]), (low, best, high) if ranges else None
    )


def read_engine_answer(answer: Mapping[str, Any], plan: EngineInfo | None) -> EngineInfo:
    """Return the worker's description of a deserialized engine.

    Its interface is the engine's own. Layers come from the kernel program where the file has one, else from
    EngineInspector's JSON.
    """
    inputs, outputs = (tuple(_tensor(tensor) for tensor in answer[side]) for side in ("inputs", "outputs"))
    if plan is not None:
        return dataclasses.replace(plan, evidence="engine", inputs=inputs, outputs=outputs)
    # Below verbosity DETAILED a layer is only its name.
    described: list[dict[str, Any] | str] = answer["inspector"].get("Layers", [])
    layers = tuple(_inspected_layer(layer) for layer in described if not isinstance(layer, str))
    return EngineInfo("engine", inputs, outputs, layers, ("current",))


def _inspected_layer(layer: Mapping[str, Any]) -> LayerInfo:
    """Return one entry of EngineInspector's JSON (profiling verbosity DETAILED)."""
    reads, writes = (
        tuple(dtype_name(str(t.get("Format/Datatype", "")).split(" ")[-1]) for t in layer.get(side, []))
        for side in ("Inputs", "Outputs")
    )
    kind = str(layer.get("LayerType", ""))
    return LayerInfo(
        name=str(layer.get("Name", "")),
        kind=kind,
        reads=reads,
        writes=writes,
        nodes=_onnx_nodes(str(layer.get("Metadata", ""))),
        matrix=bool(re.search(r"conv|gemm|matmul|matrix|mha|attention", kind, re.IGNORECASE)),
    )


def read_plan(path: Path) -> EngineInfo | None:
    """Return what the kernel programs inside the engine file at `path` say; None when it holds none that can be read.

    Inputs and outputs are empty: the program renames them. Raises SourceError when the file is no TensorRT engine.
    """
    with path.open("rb") as file:
        if file.read(4)[1:] != b"trt":
            raise SourceError(f"{path} is not a TensorRT engine.", "Give the .engine file that infconv wrote.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            programs = [text for text in _programs(content) if "accelerators={*}" not in text]
    if not programs:
        return None
    weights: Counter[str] = Counter()
    layers: list[LayerInfo] = []
    for text in programs:
        types = _tensor_types(text)
        weights.update(_weight_bytes(text))
        layers.extend(_kernels(text, types))
    return EngineInfo("plan", (), (), tuple(layers), _targets(programs[0]), dict(weights), "tf32=1" in programs[0])


def _programs(content: mmap.mmap) -> Iterator[str]:
    """Yield the kernel programs. Those for `accelerators={*}` are parts of another, compiled on the target."""
    at = content.find(PROGRAM_MARK)
    while at >= 0:
        start = at + len(PROGRAM_MARK) + 8
        (length,) = struct.unpack_from("<Q", content, start - 8)
        yield content[start : start + length].decode("utf-8", errors="replace")
        at = content.find(PROGRAM_MARK, start + length)


def _targets(text: str) -> tuple[str, ...]:
    # hfc_hccc: hardware forward compatibility and compute capability compatibility, the portable default.
    if "hfc_hccc=1" in text:
        return ("portable",)
    match = re.search(r"accelerators=\{([^}]*)\}", text)
    return tuple(match[1].split()) if match else ()


def _tensor_types(text: str) -> dict[str, str]:
    """Return name -> type of every tensor of rank above 0 in the `descriptors` section."""
    pattern = re.compile(r'tensor=\{[^\n]* name="([^"]*)"[^\n]* rank0=0[^\n]* type=(\S+) \}')
    return {match[1]: dtype_name(match[2]) for match in pattern.finditer(text)}


def _weight_bytes(text: str) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for match in re.finditer(r"const_payload_size=(\d+) [^\n]* type=(\S+) \}", text):
        sizes[dtype_name(match[2])] += int(match[1])
    return sizes


def _kernels(text: str, types: Mapping[str, str]) -> Iterator[LayerInfo]:
    """Yield the kernels of the `main` section; branches, copies to the host and shape arithmetic are left out."""
    start = text.find("\nmain {")
    body = text[start : text.find("\n}", start)] if start >= 0 else ""
    for line in body.splitlines():
        match = re.match(r'\s+(\w+)=\{ name="?([^" ]*)', line)
        if not match or match[1] in CONTROL:
            continue
        reads, writes = (_operand_types(line, side, types) for side in ("input", "output"))
        layers = re.search(r'layers="([^"]*)"', line)
        kind, name = match[1], match[2]
        matrix = kind in MATRIX_KINDS or "backbone=" in line or "_gemm" in name
        yield LayerInfo(name, kind, reads, writes, _onnx_nodes(layers[1] if layers else ""), matrix)


def _operand_types(line: str, side: str, types: Mapping[str, str]) -> tuple[str, ...]:
    match = re.search(rf" {side}(?:_args)?=\{{([^}}]*)\}}", line)
    names: Sequence[str] = re.findall(r'"([^"]*)"', match[1]) if match else ()
    return tuple(types[name] for name in names if name in types)


def _onnx_nodes(text: str) -> tuple[str, ...]:
    """Return the names in "[ONNX Layer: a][ONNX Layer: b | then_branch]", each once."""
    return tuple(dict.fromkeys(name.split(" | ")[0] for name in re.findall(r"\[ONNX Layer: ([^\]]*)\]", text)))
