"""In which type an operator of an OpenVINO IR computes: integers hide behind Convert, Subtract and Multiply."""

from __future__ import annotations

from typing import Any

_DEQUANTISES = frozenset({"Multiply", "Subtract", "Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})
"""What the reader makes of a DequantizeLinear, and what it may move through."""
_EIGHT, _FOUR = frozenset({"i8", "u8"}), frozenset({"i4", "u4"})


def compute_kind(operator: Any) -> str:
    """Return the type's name as OpenVINO spells it.

    That of what a dequantised first operand was before; `i4` or `u4` where only the weights are integers, of 4 bits.
    """
    plain = str(operator.get_input_element_type(0).get_type_name())
    hidden = _hidden(operator, 0)
    if hidden in _EIGHT:
        return hidden
    weight = _hidden(operator, 1) if operator.get_input_size() > 1 else plain
    return weight if weight in _FOUR else plain


def _hidden(operator: Any, index: int) -> str:
    """Return the type of the first integer tensor behind input `index`, or else the input's own."""
    output = operator.input(index).get_source_output()
    own = str(output.get_element_type().get_type_name())
    for _ in range(8):
        kind = str(output.get_element_type().get_type_name())
        if kind in _EIGHT | _FOUR:
            return kind
        node = output.get_node()
        if node.get_type_name() not in _DEQUANTISES:
            return own
        output = node.input(0).get_source_output()
    return own
