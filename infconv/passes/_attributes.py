"""The attributes of a node as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from infconv.passes._pattern import Refuse


def plain_attributes(node: ir.Node) -> Mapping[str, Any]:
    """Return the values of the node's attributes. Raises Refuse when one is only known to the function's caller."""
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        raise Refuse("an attribute is one of the function")
    return {name: attribute.value for name, attribute in node.attributes.items()}
