"""Nodes come after what they use."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from infconv.errors import SourceError
from infconv.passes.sort_nodes import SortNodes
from tests.helpers import apply


def unsorted(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> ' + text))


def test_the_order_changes_only_where_it_must() -> None:
    model = unsorted("m (float[2] x) => (float[2] y) { y = Add(b, c) a = Exp(x) b = Neg(a) c = Relu(x) }")
    assert apply(SortNodes(), model) == 1
    assert [node.op_type for node in model.graph] == ["Exp", "Neg", "Relu", "Add"]
    onnx.checker.check_model(ir.to_proto(model))
    assert apply(SortNodes(), model) == 0


def test_what_a_branch_uses_comes_before_the_if() -> None:
    model = unsorted(
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) { o = Neg(a) },
                      else_branch = e () => (float[2] o) { o = Abs(p) p = Exp(x) }>
          a = Relu(x) }"""
    )
    assert apply(SortNodes(), model) == 1
    assert [node.op_type for node in model.graph] == ["Relu", "If"]
    onnx.checker.check_model(ir.to_proto(model))
    assert apply(SortNodes(), model) == 0


def test_a_cycle_is_an_error() -> None:
    model = unsorted("m (float[2] x) => (float[2] y) { y = Add(x, a) a = Neg(y) }")
    with pytest.raises(SourceError, match="has a cycle"):
        apply(SortNodes(), model)
