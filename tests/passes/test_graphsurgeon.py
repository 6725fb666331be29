"""A user's GraphSurgeon script as a step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infconv.errors import DependencyError, UsageError
from infconv.passes import Context
from infconv.passes.graphsurgeon import Graphsurgeon
from infconv.steps import resolve
from tests.helpers import check_rewrite, parse

SCRIPT = """
import onnx_graphsurgeon as gs

def relu_to_sigmoid(graph):
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Sigmoid"

def without_identity(graph):
    for node in list(graph.nodes):
        if node.op == "Identity":
            consumer = node.o()
            consumer.inputs[0] = node.inputs[0]
    return graph.cleanup()

def nothing(graph):
    pass

def wrong_type(graph):
    return 3

def fails(graph):
    raise ValueError("no such layer")

def breaks(graph):
    graph.nodes[0].op = "NoSuchOperator"
"""
MODEL = """
    m (float[batch, 4] x) => (float[batch, 4] y) <float[4] c = {1, 2, 3, 4}>
    { k = Constant <value = float[4] {5, 6, 7, 8}> ()
      i = Identity(x)
      s = Add(i, c)
      t = Mul(s, k)
      y = Relu(t) }
"""


@pytest.fixture(autouse=True)
def surgery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "surgery.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "surgery.py"


def test_a_script_changes_the_graph_in_place() -> None:
    after = MODEL.replace("Relu", "Sigmoid")
    check_rewrite(Graphsurgeon(script="surgery.py:relu_to_sigmoid"), MODEL, after, changes=1, compare=False)


def test_a_script_may_return_a_graph() -> None:
    model = parse(MODEL)
    assert Graphsurgeon(script="surgery.py:without_identity").run(model, Context()) == 1
    assert [node.op_type for node in model.graph] == ["Constant", "Add", "Mul", "Relu"]


def test_a_script_that_does_nothing_changes_nothing() -> None:
    model = parse(MODEL)
    graph = model.graph
    assert Graphsurgeon(script="surgery.py:nothing").run(model, Context()) == 0
    assert model.graph is graph


def test_the_function_may_be_in_a_module(surgery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(surgery.parent)
    model = parse(MODEL)
    assert Graphsurgeon(script="surgery:without_identity").run(model, Context()) == 1
    del sys.modules["surgery"]


def test_it_is_a_step_of_a_pipeline() -> None:
    assert resolve([{"graphsurgeon": {"script": "my.py:fn"}}]) == (Graphsurgeon(script="my.py:fn"),)
    with pytest.raises(UsageError, match="script"):
        resolve(["graphsurgeon"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("missing.py:fn", "'missing.py' does not exist"),
        ("surgery.py:relu_to_sigmoids", "Did you mean 'relu_to_sigmoid'?"),
        ("surgery.py", "Example: graphsurgeon"),
        ("no_such_module:fn", "No module named 'no_such_module'"),
        ("surgery.py:wrong_type", "returned a int"),
        ("surgery.py:fails", r"ValueError: no such layer \(surgery.py, line 23\)"),
        ("surgery.py:breaks", "left a graph that is not valid"),
    ],
)
def test_what_is_wrong_with_a_script_is_told(script: str, message: str) -> None:
    model = parse(MODEL)
    graph = model.graph
    with pytest.raises(UsageError, match=message) as caught:
        Graphsurgeon(script=script).run(model, Context())
    assert caught.value.exit_code == 2
    assert model.graph is graph


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    with pytest.raises(DependencyError, match="pip install 'infconv\\[peers\\]'"):
        Graphsurgeon(script="surgery.py:nothing").run(parse(MODEL), Context())
