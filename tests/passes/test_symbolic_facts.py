"""Facts about shapes that were worked out once follow the graph as it is rewired."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from infconv.observe import Observers
from infconv.passes import Context
from infconv.passes._symbolic import Symbolic
from infconv.runner import run_steps
from infconv.steps import resolve
from tests.helpers import parse

TEXT = """
    m (float[batch, seq, 64] x, bool c) => (float[a, b, d] y)
    <float[1] w = {0.0}, int64[3] target = {0, -1, 32}>
    { i = Identity(x)
      s = Shape(i)
      r = Reshape(x, s)
      e = Add(r, w)
      z = If (c) <then_branch = yes () => (t) { t = Exp(e) }, else_branch = no () => (f) { f = Identity(e) }>
      y = Reshape(z, target) }"""


def facts_of(facts: Symbolic, model: ir.Model) -> dict[str, str]:
    values = [value for graph in model.graphs() for node in graph for value in node.outputs]
    return {str(v.name): f"{facts.dims(v)} {facts.content(v)} {facts.facts.dtype(v)}" for v in values}


def test_refreshed_facts_are_those_of_a_fresh_start() -> None:
    model = parse(TEXT, infer=False)
    facts = Symbolic(model.graph, 20).run()
    nodes = {node.op_type: node for node in model.graph}
    nodes["Add"].replace_input_with(0, model.graph.inputs[0])
    nodes["If"].attributes["else_branch"].as_graph()[0].replace_input_with(0, model.graph.inputs[0])
    short = ir.Node("", "ReduceSum", [nodes["If"].outputs[0]], num_outputs=1)
    short.outputs[0].name = "short"
    model.graph.insert_before(list(model.graph)[-1], short)
    list(model.graph)[-1].replace_input_with(0, short.outputs[0])
    facts.refresh()
    assert facts_of(facts, model) == facts_of(Symbolic(model.graph, 20).run(), model)
    assert facts.dims(short.outputs[0]) == (1, 1, 1)


def test_only_what_changed_is_visited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(TEXT, infer=False)
    facts = Symbolic(model.graph, 20).run()
    visited: list[str] = []
    visit = Symbolic.visit
    monkeypatch.setattr(Symbolic, "visit", lambda self, node: (visited.append(node.op_type), visit(self, node)))
    facts.refresh()
    assert visited == ["If", "Exp", "Identity"], "a node with bodies may always have changed"


def test_constants_that_were_removed_are_let_go() -> None:
    model = parse(TEXT, infer=False)
    facts = Symbolic(model.graph, 20).run()
    weight = model.graph.initializers["w"]
    assert facts.dims(weight) == (1,)
    add = next(node for node in model.graph if node.op_type == "Add")
    add.replace_input_with(1, model.graph.inputs[0])
    del model.graph.initializers["w"]
    facts.refresh()
    assert weight not in facts.facts.dims


def test_steps_that_only_rewire_leave_the_facts_to_be_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    run, refresh = Symbolic.run, Symbolic.refresh
    monkeypatch.setattr(Symbolic, "run", lambda self: (runs.append("run"), run(self))[1])
    monkeypatch.setattr(Symbolic, "refresh", lambda self: (runs.append("refresh"), refresh(self))[1])
    rewiring = ["infer-shapes", "remove-no-ops", "infer-shapes", "fold-shapes"]
    run_steps(resolve(rewiring), parse(TEXT, infer=False), Context(), Observers())
    assert runs == ["run", "refresh"]
    runs.clear()
    converting = ["infer-shapes", {"convert-opset": {"to": 21}}, "infer-shapes"]
    run_steps(resolve(converting), parse(TEXT, infer=False), Context(), Observers())
    assert runs == ["run", "run"]
