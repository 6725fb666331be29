"""BatchNormalization in inference: an affine map of each channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infconv.passes._attributes import plain_attributes
from infconv.passes._pattern import Refuse
from infconv.passes._values import constant


def scale_and_shift(node: ir.Node, opset: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a BatchNormalization of opset 7 or later as y = scale * x + shift, each float64 [channels].

    scale = gamma / sqrt(variance + epsilon), shift = beta - scale * mean. Raises Refuse when the node normalizes by
    its own batch, when a parameter is not constant, and when the result is not finite.
    """
    attributes = plain_attributes(node)
    if attributes.get("training_mode", 0):
        raise Refuse("training_mode is 1: it normalizes by its batch")
    if opset < 14 and any(output.name for output in node.outputs[1:]):
        raise Refuse("its running statistics are outputs: it normalizes by its batch")
    if not attributes.get("spatial", 1):
        raise Refuse("spatial is 0: it normalizes each element, not each channel")
    gamma, beta, mean, variance = (_parameter(value) for value in node.inputs[1:5])
    epsilon = attributes.get("epsilon", 1e-5)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - scale * mean
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise Refuse("a parameter or what it gives is not finite")
    return scale, shift


def _parameter(value: ir.Value | None) -> np.ndarray:
    found = constant(value)
    if found is None:
        raise Refuse(f"'{None if value is None else value.name}' is not constant")
    return found.astype(np.float64)
