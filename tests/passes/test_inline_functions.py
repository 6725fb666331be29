"""No function of the model is left, and the model computes the same."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from infconv.errors import SourceError, UnsupportedError
from infconv.passes import Context
from infconv.passes.inline_functions import InlineFunctions
from tests.helpers import apply, check_rewrite, parse

HEADER = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>'
IMPORTS = 'opset_import: ["" : 20, "local" : 1]'


def parsed(text: str) -> ir.Model:
    """Parse a model that the checker does not accept, or does not know what to make of."""
    return ir.from_proto(onnx.parser.parse_model(text))


def test_functions_within_functions() -> None:
    model = check_rewrite(
        InlineFunctions(),
        f"""{HEADER} m (float[2] x) => (float[2] y) {{ a = local.twice(x) y = local.four(a) }}
        <domain: "local", {IMPORTS}> twice (a) => (b) {{ b = Add(a, a) }}
        <domain: "local", {IMPORTS}> four (a) => (b) {{ c = local.twice(a) b = local.twice(c) }}
        <domain: "local", {IMPORTS}> unused (a) => (b) {{ b = Neg(a) }}""",
        "m (float[2] x) => (float[2] y) { a = Add(x, x) c = Add(a, a) y = Add(c, c) }",
        changes=4 + 3,
        infer=False,
    )
    assert not model.functions


def test_attribute_parameters_and_their_defaults() -> None:
    function = f"""<domain: "local", {IMPORTS}> leaky <alpha: float = 0.5, beta> (a) => (b)
    {{ c = LeakyRelu <alpha: float = @alpha> (a) b = HardSigmoid <beta: float = @beta> (c) }}"""
    check_rewrite(
        InlineFunctions(),
        f"""{HEADER} m (float[2] x) => (float[2] y)
        {{ a = local.leaky <alpha = 0.25, beta = 0.75> (x) y = local.leaky <beta = 0.125> (a) }} {function}""",
        """m (float[2] x) => (float[2] y)
        { a = LeakyRelu <alpha = 0.25> (x) b = HardSigmoid <beta = 0.75> (a)
          c = LeakyRelu <alpha = 0.5> (b) y = HardSigmoid <beta = 0.125> (c) }""",
        changes=3,
        infer=False,
    )


def test_an_attribute_that_nobody_gives_is_left_out() -> None:
    model = parse(
        f"""{HEADER} m (float[2] x) => (float[2] y) {{ y = local.leaky(x) }}
        <domain: "local", {IMPORTS}> leaky <alpha> (a) => (b) {{ b = LeakyRelu <alpha: float = @alpha> (a) }}""",
        infer=False,
    )
    assert apply(InlineFunctions(), model) == 2
    assert not model.graph[0].attributes


def test_optional_inputs_and_outputs() -> None:
    check_rewrite(
        InlineFunctions(),
        f"""{HEADER} m (float[2] x) => (float[2] y) <float limit = {{1}}>
        {{ a, k = local.clip(x, , limit) y, l = local.clip(a) }}
        <domain: "local", {IMPORTS}> clip (a, low, high) => (b, c) {{ b = Clip(a, low, high) c = Neg(b) }}""",
        "m (float[2] x) => (float[2] y) <float limit = {1}> { a = Clip(x, , limit) n = Neg(a) y = Clip(a) k = Neg(y) }",
        changes=3,
        infer=False,
    )


def test_subgraphs_in_functions_and_calls_in_subgraphs() -> None:
    check_rewrite(
        InlineFunctions(),
        f"""{HEADER} m (float[2] x, bool c) => (float[2] y)
        {{ a = local.choose(x, c)
           y = If (c) <then_branch = t () => (float[2] o) {{ o = local.choose(a, c) }},
                       else_branch = e () => (float[2] o) {{ p = Neg(a) o = local.choose(p, c) }}> }}
        <domain: "local", {IMPORTS}> choose (a, c) => (b)
        {{ d = Exp(a)
           b = If (c) <then_branch = t () => (float[2] o) {{ o = Relu(d) }},
                       else_branch = e () => (float[2] o) {{ o = Abs(d) }}> }}""",
        """m (float[2] x, bool c) => (float[2] y)
        { d = Exp(x)
          a = If (c) <then_branch = t () => (float[2] "choose/o") { "choose/o" = Relu(d) },
                      else_branch = e () => (float[2] "choose/o_1") { "choose/o_1" = Abs(d) }>
          y = If (c) <
            then_branch = t () => (float[2] o)
            { f = Exp(a)
              o = If (c) <then_branch = t () => (float[2] "choose/o_2") { "choose/o_2" = Relu(f) },
                          else_branch = e () => (float[2] "choose/o_3") { "choose/o_3" = Abs(f) }> },
            else_branch = e () => (float[2] o)
            { p = Neg(a)
              g = Exp(p)
              o = If (c) <then_branch = t () => (float[2] "choose/o_4") { "choose/o_4" = Relu(g) },
                          else_branch = e () => (float[2] "choose/o_5") { "choose/o_5" = Abs(g) }> }> }""",
        changes=4,
        infer=False,
    )


def test_no_name_is_used_twice() -> None:
    model = parse(
        f"""{HEADER} m (float[2] x, bool c) => (float[2] y)
        {{ t = local.f(x, c) u = local.f(t, c) y = Add(t, u) }}
        <domain: "local", {IMPORTS}> f (a, c) => (b)
        {{ t = Exp(a) x = Neg(t)
           b = If (c) <then_branch = g () => (float[2] o) {{ y = Relu(x) o = Abs(y) }},
                       else_branch = h () => (float[2] o) {{ y = Exp(x) o = Abs(y) }}> }}""",
        infer=False,
    )
    assert apply(InlineFunctions(), model) == 3
    names = [output.name for node in model.graph.all_nodes() for output in node.outputs]
    assert len(names) == len(set(names)) == 15
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_an_input_that_is_returned_as_it_came() -> None:
    check_rewrite(
        InlineFunctions(),
        f"""{HEADER} m (float[2] x) => (float[2] y, float[2] z) {{ y, p = local.pass(x) z = Neg(p) }}
        <domain: "local", {IMPORTS}> pass (a) => (a, b) {{ b = Exp(a) }}""",
        "m (float[2] x) => (float[2] y, float[2] z) { y = Identity(x) b = Exp(x) z = Neg(b) }",
        changes=2,
        infer=False,
        compare=False,  # ONNX Runtime does not load such a function
    )


def test_overloads_are_different_functions() -> None:
    model = parsed(
        f"""{HEADER} m (float[2] x) => (float[2] y) {{ a = local.f:one (x) y = local.f:two (a) }}
            <domain: "local", overload: "one", {IMPORTS}> f (a) => (b) {{ b = Exp(a) }}
            <domain: "local", overload: "two", {IMPORTS}> f (a) => (b) {{ b = Neg(a) }}"""
    )
    assert apply(InlineFunctions(), model) == 4
    assert [node.op_type for node in model.graph] == ["Exp", "Neg"]


def test_the_highest_opset_wins() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        m (float[2, 3] x) => (float[2] y) { a = ReduceMax <axes = [1], keepdims = 0> (x) y = local.f(a) }
        <domain: "local", opset_import: ["" : 20]> f (a) => (b) { b = Gelu(a) }"""
    )
    context = Context()
    assert InlineFunctions().run(model, context) == 2
    assert model.opset_imports[""] == 20
    assert "The opset was raised to 20" in context.notes[0]
    assert [node.op_type for node in model.graph] == ["Constant", "ReduceMax", "Gelu"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_opsets_that_do_not_go_together_are_refused() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 20, "acme" : 2, "local" : 1]>
        m (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 20, "acme" : 1]> f (a) => (b) { b = acme.Op(a) }""",
        infer=False,
    )
    with pytest.raises(UnsupportedError, match="version 1 of the operators of 'acme', the model uses version 2"):
        apply(InlineFunctions(), model)


def test_functions_that_call_themselves_are_refused() -> None:
    model = parsed(
        f"""{HEADER} m (float[2] x) => (float[2] y) {{ y = local.f(x) }}
            <domain: "local", {IMPORTS}> f (a) => (b) {{ b = local.g(a) }}
            <domain: "local", {IMPORTS}> g (a) => (b) {{ b = local.f(a) }}"""
    )
    with pytest.raises(SourceError, match=r"in a circle: (f -> g -> f|g -> f -> g)"):
        apply(InlineFunctions(), model)


def test_operators_that_the_standard_defines_as_functions_stay() -> None:
    text = "m (float[2] x) => (float[2] y) { y = Gelu(x) }"
    assert apply(InlineFunctions(), parse(text)) == 0
