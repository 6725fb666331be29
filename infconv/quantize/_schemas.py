"""What the operator schemas say about types: which values follow a node's float type, and what is still unknown."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import onnx
import onnx_ir as ir

from infconv.model import subgraphs
from infconv.quantize._formats import Format

FLOAT = ir.DataType.FLOAT


def names(*lines: str) -> frozenset[str]:
    """Return the operators that `lines` list, separated by spaces."""
    return frozenset(" ".join(lines).split())


CONTROL_FLOW = names("If Loop Scan")

PINNED_INPUTS = {
    "Resize": (1, 2),  # roi and scales: coordinates
    "Dropout": (1,),
    "BatchNormalization": (3, 4),  # a small variance must not become zero
}
"""Inputs that stay FP32 in a lowered node although the schema allows the narrow type."""

PINNED_OUTPUTS = {
    "LayerNormalization": (1, 2),  # of the type that stash_type names, which is FP32
    "BatchNormalization": (1, 2, 3, 4),
}

_TYPE_ATTRIBUTES = {
    "Cast": ("to", None),
    "RandomNormal": ("dtype", FLOAT),
    "RandomUniform": ("dtype", FLOAT),
    "HannWindow": ("output_datatype", FLOAT),
    "HammingWindow": ("output_datatype", FLOAT),
    "BlackmanWindow": ("output_datatype", FLOAT),
    "MelWeightMatrix": ("output_datatype", FLOAT),
    "Multinomial": ("dtype", ir.DataType.INT32),
    "EyeLike": ("dtype", None),
    "Bernoulli": ("dtype", None),
    "RandomNormalLike": ("dtype", None),
    "RandomUniformLike": ("dtype", None),
    "DequantizeLinear": ("output_dtype", None),
    "QuantizeLinear": ("output_dtype", None),
    "BitCast": ("to", None),
}
"""Operator -> (the attribute that names the output's type, the type without it; None: an input's type)."""

_SAME_AS_INPUT = {
    "EyeLike": 0,
    "Bernoulli": 0,
    "RandomNormalLike": 0,
    "RandomUniformLike": 0,
    "CastLike": 1,
    "DequantizeLinear": 1,
    "QuantizeLinear": 2,
}


def type_attribute(node: ir.Node) -> str | None:
    """Return the attribute that says that `node`'s output is FP32, by being there or by its default: `to` of Cast."""
    if node.domain != "" or node.op_type not in _TYPE_ATTRIBUTES:
        return None
    name, default = _TYPE_ATTRIBUTES[node.op_type]
    return name if name in node.attributes or default == FLOAT else None


@dataclasses.dataclass(frozen=True)
class Signature:
    """The types of an operator's inputs and outputs, as its schema writes them: a type string or a variable."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variadic: tuple[bool, bool]
    """Whether the last input, and the last output, repeats."""
    allowed: Mapping[str, frozenset[str]]
    """Variable -> type strings."""

    def input(self, index: int) -> str:
        """Return the type of input `index`."""
        return _repeated(self.inputs, index, self.variadic[0])

    def output(self, index: int) -> str:
        """Return the type of output `index`."""
        return _repeated(self.outputs, index, self.variadic[1])


def _repeated(types: tuple[str, ...], index: int, variadic: bool) -> str:
    if index < len(types):
        return types[index]
    return types[-1] if variadic and types else ""


def _contributed(outputs: str = "T") -> Signature:
    """Return the signature of an operator all of whose float inputs have one type."""
    floats = frozenset({"tensor(float)", "tensor(float16)", "tensor(bfloat16)"})
    return Signature(("T",), tuple(outputs.split()), (True, False), {"T": floats, "U": frozenset({"tensor(float)"})})


_CONTRIBUTED = {
    **dict.fromkeys(names("FusedMatMul BiasGelu FastGelu Gelu QuickGelu MatMulNBits RotaryEmbedding"), _contributed()),
    **dict.fromkeys(names("FusedConv FusedGemm"), _contributed()),
    **dict.fromkeys(names("Attention MultiHeadAttention"), _contributed("T T T")),
    **dict.fromkeys(names("SkipLayerNormalization SkipSimplifiedLayerNormalization"), _contributed("T U U T")),
}
"""What is known of domain com.microsoft. All were tried in FP16 with ONNX Runtime 1.32 (CPU); the norms sum in FP32."""


@functools.cache
def signature(op_type: str, domain: str, opset: int) -> Signature | None:
    """Return the signature of an operator at `opset`, None if it is not known."""
    if domain == "com.microsoft":
        return _CONTRIBUTED.get(op_type)
    if domain != "":
        return None
    try:
        found = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    return _signature(found)


def _signature(found: onnx.defs.OpSchema) -> Signature:
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    sides = [tuple(found.inputs), tuple(found.outputs)]
    return Signature(
        *(tuple(parameter.type_str for parameter in side) for side in sides),
        variadic=(
            bool(sides[0]) and sides[0][-1].option == variadic,
            bool(sides[1]) and sides[1][-1].option == variadic,
        ),
        allowed={c.type_param_str: frozenset(c.allowed_type_strs) for c in found.type_constraints},
    )


@functools.cache
def first_opset(op_type: str, type_string: str) -> int | None:
    """Return the first opset in which some variable of a standard operator allows the type; None if there is none."""
    versions = [
        found.since_version
        for found in onnx.defs.get_all_schemas_with_history()
        if found.name == op_type
        and found.domain == ""
        and any(type_string in constraint.allowed_type_strs for constraint in found.type_constraints)
    ]
    return min(versions, default=None)


class Schemas:
    """The schemas of one model's opset, asked with nodes."""

    def __init__(self, model: ir.Model) -> None:
        self._imports = model.graph.opset_imports
        self._functions = model.functions

    def opset(self, domain: str = "") -> int:
        """Return the imported version of `domain` (1 when it is not imported)."""
        return self._imports.get(domain, 1)

    def of(self, node: ir.Node) -> Signature | None:
        """Return the signature of a known operator; None for functions and other domains."""
        if node.op_identifier() in self._functions:
            return None
        return signature(node.op_type, node.domain, self.opset(node.domain))

    def input_follows(self, node: ir.Node, index: int, narrow: Format) -> bool:
        """Whether FP32 input `index` becomes `narrow` when the node is lowered."""
        found = self.of(node)
        if found is None or node.op_type in CONTROL_FLOW:
            return found is not None
        is_own = index in PINNED_INPUTS.get(node.op_type, ()) and found.input(index) != found.input(0)
        return not is_own and narrow.type_string in found.allowed.get(found.input(index), ())

    def output_follows(self, node: ir.Node, index: int, narrow: Format) -> bool:
        """Whether FP32 output `index` becomes `narrow` when the node is lowered."""
        found = self.of(node)
        if found is None or node.op_type in CONTROL_FLOW:
            return found is not None
        is_own = index in PINNED_OUTPUTS.get(node.op_type, ()) and found.output(index) != found.output(0)
        return not is_own and narrow.type_string in found.allowed.get(found.output(index), ())

    def types(self, model: ir.Model) -> dict[ir.Value, ir.DataType | None]:
        """Return the element type of every tensor value; None where neither the file nor the schemas tell.

        Sequences, optionals and sparse tensors are None.
        """
        types: dict[ir.Value, ir.DataType | None] = {}
        self._visit(model.graph, types)
        return types

    def _visit(self, graph: ir.Graph, types: dict[ir.Value, ir.DataType | None]) -> None:
        for value in (*graph.inputs, *graph.initializers.values()):
            types[value] = types.get(value) or declared(value)
        for node in graph:
            self._unify(node, types)
            for body in subgraphs(node):
                _enter(node, body, types)
                self._visit(body, types)
            for index, value in enumerate(node.outputs):
                types[value] = declared(value) or (None if is_container(value) else self._derived(node, index, types))

    def _derived(self, node: ir.Node, index: int, types: dict[ir.Value, ir.DataType | None]) -> ir.DataType | None:
        found = self.of(node)
        if found is None:
            return None
        if node.op_type in CONTROL_FLOW:
            return _leave(node, index, types)
        special = _special(node, index, types)
        if special is not None:
            return special
        type_string = found.output(index)
        for position, value in enumerate(node.inputs):
            if value is not None and found.input(position) == type_string and types.get(value):
                return types[value]
        allowed = found.allowed.get(type_string, frozenset({type_string}))
        return _parse(next(iter(allowed))) if len(allowed) == 1 else None

    def _unify(self, node: ir.Node, types: dict[ir.Value, ir.DataType | None]) -> None:
        """Give inputs without a known type that of the inputs that must have the same."""
        found = self.of(node)
        unknown = [i for i, v in enumerate(node.inputs) if v is not None and v.name and not types.get(v)]
        if found is None or node.domain != "" or node.op_type in CONTROL_FLOW:
            return
        for index in unknown:
            value, variable = node.inputs[index], found.input(index)
            peers = [v for i, v in enumerate(node.inputs) if v is not None and found.input(i) == variable]
            known = next((types[v] for v in peers if types.get(v)), None)
            if value is not None and not is_container(value) and variable in found.allowed:
                types[value] = known


def declared(value: ir.Value) -> ir.DataType | None:
    """Return the element type that the model states for a tensor value."""
    if value.const_value is not None and value.type is None:
        return value.const_value.dtype
    return value.type.dtype if isinstance(value.type, ir.TensorType) else None


def is_container(value: ir.Value) -> bool:
    """Whether `value` is known to be no dense tensor: a sequence, an optional, a sparse tensor."""
    return value.type is not None and not isinstance(value.type, ir.TensorType)


def _enter(node: ir.Node, body: ir.Graph, types: dict[ir.Value, ir.DataType | None]) -> None:
    """Hand the types of a loop's inputs to its body's."""
    outer = node.inputs if node.op_type == "Scan" else node.inputs[: len(body.inputs)]
    if node.op_type not in {"Loop", "Scan"}:
        return
    if node.op_type == "Scan" and len(outer) != len(body.inputs):
        outer = outer[1:]  # opset 8 has sequence_lens first
    for source, target in zip(outer, body.inputs, strict=False):
        if source is not None and types.get(source):
            types[target] = types[source]


def _leave(node: ir.Node, index: int, types: dict[ir.Value, ir.DataType | None]) -> ir.DataType | None:
    """Return the type of a control-flow node's output, from its bodies."""
    position = index + 1 if node.op_type == "Loop" else index
    for body in subgraphs(node):
        if position < len(body.outputs) and types.get(body.outputs[position]):
            return types[body.outputs[position]]
    return None


def _special(node: ir.Node, index: int, types: dict[ir.Value, ir.DataType | None]) -> ir.DataType | None:
    """Return the output's type of operators that name it in an attribute or take it from one input."""
    if node.op_type in {"Constant", "ConstantOfShape"}:
        return _constant_type(node)
    if index:
        return None
    name, default = _TYPE_ATTRIBUTES.get(node.op_type, (None, None))
    attribute = node.attributes.get(name) if name else None
    if attribute is not None and attribute.as_int():
        return ir.DataType(attribute.as_int())
    source = _SAME_AS_INPUT.get(node.op_type)
    if source is None or source >= len(node.inputs) or node.inputs[source] is None:
        return ir.DataType.UINT8 if node.op_type == "QuantizeLinear" else default
    return types.get(node.inputs[source])  # type: ignore[arg-type]


def _constant_type(node: ir.Node) -> ir.DataType:
    kinds = {"value_int": ir.DataType.INT64, "value_ints": ir.DataType.INT64}
    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.as_tensor().dtype
        if name.startswith("value_string"):
            return ir.DataType.STRING
        if name in kinds:
            return kinds[name]
    return FLOAT


def _parse(type_string: str) -> ir.DataType | None:
    """Return the type that a schema's string means: tensor(int64) -> INT64."""
    if not type_string.startswith("tensor("):
        return None
    return ir.DataType[type_string.removeprefix("tensor(").removesuffix(")").upper()]
