"""Conversions of operators that tf2onnx lacks. Importing this file registers them with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tf2onnx import utils  # pyright: ignore[reportMissingImports]
from tf2onnx.handler import tf_op, tfl_op  # pyright: ignore[reportMissingImports]

_SQRT_HALF = math.sqrt(0.5)


@tf_op("Erfc")  # pyright: ignore[reportUntypedClassDecorator]
class Erfc:
    """erfc(x) = 1 - erf(x), and erfc(-x) = 1 + erf(x), the form of a GELU. Keras's exact GELU has it."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        """Replace the node."""
        dtype, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
        inner: Any = node.inputs[0]
        negated = inner.type == "Neg" if inner else False
        source = inner.input[0] if negated else node.input[0]
        one = ctx.make_const(utils.make_name("one"), np.array(1, utils.map_onnx_to_numpy_type(dtype))).output[0]
        ctx.remove_node(node.name)
        erf = ctx.make_node("Erf", [source], name=utils.make_name(node.name), shapes=[shape], dtypes=[dtype])
        operands = [one, erf.output[0]]
        kind = "Add" if negated else "Sub"
        ctx.make_node(kind, operands, name=node.name, outputs=node.output, shapes=[shape], dtypes=[dtype])


@tfl_op(["TFL_GELU"])  # pyright: ignore[reportUntypedClassDecorator]
class TflGelu:
    """Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: x Φ(x), by erf or by its approximation with tanh."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        """Replace the node."""
        approximate = bool(node.get_attr_value("approximate", False))
        dtype, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
        x, output, name = node.input[0], list(node.output), node.name
        ctx.remove_node(name)

        def constant(value: float) -> str:
            return ctx.make_const(utils.make_name("gelu"), np.array(value, np.float32)).output[0]

        def make(kind: str, operands: list[str], outputs: list[str] | None = None) -> str:
            more = {"outputs": outputs} if outputs else {}
            title = utils.make_name(name)
            return ctx.make_node(kind, operands, name=title, shapes=[shape], dtypes=[dtype], **more).output[0]

        if approximate:
            cube = make("Mul", [make("Mul", [x, x]), x])
            inner = make("Add", [x, make("Mul", [cube, constant(0.044715)])])
            part = make("Tanh", [make("Mul", [inner, constant(math.sqrt(2 / math.pi))])])
        else:
            part = make("Erf", [make("Mul", [x, constant(_SQRT_HALF)])])
        half = make("Mul", [x, constant(0.5)])
        make("Mul", [half, make("Add", [part, constant(1.0)])], output)
