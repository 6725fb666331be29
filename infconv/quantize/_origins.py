"""Where float values come from: constants, flags, positions or data."""

from __future__ import annotations

import enum

import onnx_ir as ir

from infconv.quantize._schemas import FLOAT, names
from infconv.quantize._wires import Wiring, is_constant

_FLAGS = frozenset({ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8})
_CARRIES = names(
    "Add Sub Mul Div Pow Neg Abs Min Max Floor Ceil Round Mod Log Exp Sqrt Reciprocal Sin Cos Sign Clip Where Identity",
    "Reshape Transpose Slice Concat Gather GatherElements GatherND Squeeze Unsqueeze Expand Tile Split Flatten Cast",
    "Relu CumSum Trilu Pad",
)
"""Arithmetic on positions yields positions (or angles, buckets, distances), which still need their bits."""


class Origin(enum.IntEnum):
    """What a value is made of; the larger one wins when values meet."""

    CONSTANT = 0
    FLAG = 1
    """Booleans and 8-bit integers: exact in every float format."""
    POSITION = 2
    """Wider integers, and arithmetic on them alone."""
    DATA = 3


class Origins:
    """The origin of every value of a model."""

    def __init__(self, wiring: Wiring) -> None:
        self._types = wiring.types
        self._of: dict[ir.Value, Origin] = {wire.value: Origin.CONSTANT for wire, _ in wiring.constants()}
        for node in wiring.nodes:
            origin = self._node(node)
            for value in node.outputs:
                self._of.setdefault(value, origin)

    def __getitem__(self, value: ir.Value) -> Origin:
        known = self._of.get(value)
        if known is not None and self._types.get(value) == FLOAT:
            return known
        if value.const_value is not None and not value.is_graph_input():
            return Origin.CONSTANT
        dtype = self._types.get(value)
        if dtype is None or dtype.is_floating_point():
            return Origin.DATA if known is None else known
        if known == Origin.CONSTANT:
            return known
        return Origin.FLAG if dtype in _FLAGS else Origin.POSITION

    def _node(self, node: ir.Node) -> Origin:
        inputs = [value for value in node.inputs if value is not None]
        if is_constant(node) or node.op_type in {"ConstantOfShape", "EyeLike"}:
            return Origin.CONSTANT
        if node.op_type == "Range":
            return Origin.POSITION
        if not inputs or node.domain != "" or not (node.op_type in _CARRIES or self._is_outer_product(node)):
            return Origin.DATA
        if node.op_type == "Cast":
            return self[inputs[0]]
        if node.op_type.startswith("Gather") and self[inputs[0]] == Origin.CONSTANT != self[inputs[1]]:
            return Origin.DATA  # a lookup in a table: what it finds is data
        floats = [value for value in inputs if self._types.get(value) == FLOAT]
        return max((self[value] for value in floats), default=Origin.DATA)

    def _is_outer_product(self, node: ir.Node) -> bool:
        """Whether a product sums over nothing: frequencies times positions in rotary embeddings."""
        if node.op_type == "Einsum":
            left, _, right = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
            return bool(right) and set(left) - {",", "."} <= set(right)
        if node.op_type != "MatMul":
            return False
        first, second = (None if value is None else value.shape for value in node.inputs)
        return bool(first and first[-1] == 1) or bool(second and len(second) > 1 and second[-2] == 1)
