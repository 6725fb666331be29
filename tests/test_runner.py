"""A step runs again only when there may be something for it to do."""

from __future__ import annotations

from typing import ClassVar

import onnx
import onnx_ir as ir
import pytest

from infconv.observe import Observers
from infconv.passes import Context, Pass
from infconv.passes.fuse_gelu import FuseGelu
from infconv.runner import run_steps
from infconv.steps import Repeat


class Recorded(Pass):
    """A step that is written down when it runs, and changes something the first few times."""

    runs: ClassVar[list[str]] = []
    """The names of those that ran, in order."""

    name: str
    """What is written down."""
    work: int = 0
    """How often it changes something."""

    def run(self, model: ir.Model, context: Context) -> int:
        self.runs.append(self.name)
        changes = int(self.runs.count(self.name) <= self.work)
        if changes:
            model.doc_string = f"changed by {self.runs}"
        return changes

    @classmethod
    def step_name(cls) -> str:
        return "recorded"


@pytest.fixture(autouse=True)
def nothing_ran_yet() -> None:
    Recorded.runs.clear()


def relu() -> ir.Model:
    return ir.from_proto(
        onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {y = Relu(x)}')
    )


def run(*steps: Pass | Repeat, context: Context | None = None) -> list[int]:
    """Run `steps` and return the nodes that each left."""
    _, results = run_steps(steps, relu(), context or Context(), Observers())
    return [result.nodes for result in results]


def test_what_changed_nothing_does_not_run_again_before_something_changes() -> None:
    run(Recorded(name="a"), Recorded(name="b"), Recorded(name="a"))
    assert Recorded.runs == ["a", "b"]


def test_what_changed_nothing_runs_again_after_a_change() -> None:
    run(Recorded(name="a"), Recorded(name="b", work=1), Recorded(name="a"))
    assert Recorded.runs == ["a", "b", "a"]


def test_the_last_round_ends_where_the_last_change_was() -> None:
    run(Repeat((Recorded(name="a"), Recorded(name="b", work=1), Recorded(name="c"))))
    assert Recorded.runs == ["a", "b", "c", "a", "b"]


def test_a_step_that_is_left_out_still_says_how_many_nodes_there_are() -> None:
    assert run(Recorded(name="a"), Recorded(name="a")) == [1, 1]


def test_rules_whose_operators_do_not_occur_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Pass, model: ir.Model, context: Context) -> int:
        raise AssertionError("it was run")

    monkeypatch.setattr(FuseGelu, "run", fail)
    assert not FuseGelu().may_apply({("", "Relu")})
    assert FuseGelu().may_apply({("", "Erf"), ("", "Mul"), ("", "Add"), ("", "Div"), ("", "Sqrt")})
    assert run(FuseGelu()) == [1]


def test_who_asks_why_is_told_by_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FuseGelu, "run", lambda self, model, context: Recorded.runs.append("gelu") or 0)
    run(FuseGelu(), context=Context(why=[]))
    assert Recorded.runs == ["gelu"]
