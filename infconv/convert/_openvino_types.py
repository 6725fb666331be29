"""In which type an operator of an OpenVINO IR computes: integers hide behind Convert, Subtract and Multiply."""

from __future__ import annotations

from typing import Any

_DEQUANTISES = frozenset(
    {
        *("Multiply", "Subtract", "Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split"),
        *("VariadicSplit", "MaxPool", "AvgPool", "Interpolate", "Slice", "StridedSlice", "Gather", "Tile", "Broadcast"),
        *("DepthToSpace", "SpaceToDepth", "ShuffleChannels", "ReduceMax"),
    }
)
"""What the reader makes of a DequantizeLinear, and what the compiler moves it through."""
_STEPS = 24
_EIGHT, _FOUR = frozenset({"i8", "u8"}), frozenset({"i4", "u4"})


def compute_kind(operator: Any) -> str:
    """Return the type's name as OpenVINO spells it.

    That of what a dequantised first operand was before; `i4` or `u4` where only the weights are integers, of 4 bits.
    """
    plain = str(operator.get_input_element_type(0).get_type_name())
    hidden = _hidden(operator, 0)
    if hidden in _EIGHT and not _has_float_weight(operator):
        return hidden
    weight = _hidden(operator, 1) if operator.get_input_size() > 1 else plain
    return weight if weight in _FOUR else plain


def _hidden(operator: Any, index: int) -> str:
    """Return the type of the first integer tensor behind input `index`, or else the input's own."""
    output = operator.input(index).get_source_output()
    own = str(output.get_element_type().get_type_name())
    for _ in range(_STEPS):
        kind = str(output.get_element_type().get_type_name())
        if kind in _EIGHT | _FOUR:
            return kind
        node = output.get_node()
        if node.get_type_name() not in _DEQUANTISES:
            return own
        output = node.input(0).get_source_output()
    return own


def _has_float_weight(operator: Any) -> bool:
    """Whether the second operand is a constant in a float type: then there is no integer kernel for it."""
    weight = operator.input(1).get_source_output() if operator.get_input_size() > 1 else None
    if weight is None or weight.get_node().get_type_name() != "Constant":
        return False
    return str(weight.get_element_type().get_type_name()).startswith(("f", "bf"))
