"""The padding, strides and dilations of convolutions and pools."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from infconv.passes._attributes import plain_attributes
from infconv.passes._pattern import Refuse


@dataclasses.dataclass(frozen=True)
class Windows:
    """How windows of a kernel lie on an input, one number for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    """The padding before the first element."""
    end: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(self.begin + self.end)

    @property
    def pads(self) -> list[int]:
        """The attribute `pads`."""
        return [*self.begin, *self.end]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output depends on the one input at its place (and there are as many)."""
        return not self.padded and all(size == 1 for size in self.kernel + self.strides)


def windows(node: ir.Node, kernel: Sequence[int] | None = None) -> Windows:
    """Return the windows of a Conv (`kernel`: the spatial shape of its weight) or a pool.

    Raises Refuse when the padding depends on the size of the input: auto_pad=SAME_* with strides.
    """
    attributes = plain_attributes(node)
    sizes = tuple(kernel if kernel is not None else attributes["kernel_shape"])
    ones = (1,) * len(sizes)
    strides, dilations = tuple(attributes.get("strides", ones)), tuple(attributes.get("dilations", ones))
    match attributes.get("auto_pad", "NOTSET"):
        case "NOTSET":
            pads = tuple(attributes.get("pads", ())) or (0,) * (2 * len(sizes))
        case "VALID":
            pads = (0,) * (2 * len(sizes))
        case auto_pad:
            if any(size > 1 and stride > 1 for size, stride in zip(sizes, strides, strict=True)):
                raise Refuse(f"{node.op_type} has auto_pad={auto_pad}, which depends on the size of its input")
            totals = [step * (size - 1) for size, step in zip(sizes, dilations, strict=True)]
            less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
            pads = less + more if auto_pad == "SAME_UPPER" else more + less
    return Windows(sizes, strides, dilations, pads[: len(sizes)], pads[len(sizes) :])
