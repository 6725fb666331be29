"""Step items, shipped pipelines, and what is refused before anything runs."""

from __future__ import annotations

from typing import ClassVar

import pytest

from infconv.convert.to_onnx import ToONNX
from infconv.convert.to_onnxruntime import ToONNXRuntime
from infconv.errors import UnsupportedError, UsageError
from infconv.passes import Pass
from infconv.steps import Repeat, as_items, check_legal, flatten, parse_step, resolve, shipped, without


class EmitsMicrosoft(Pass):
    """Adds com.microsoft operators."""

    emits: ClassVar[frozenset[str]] = frozenset({"com.microsoft"})

    def run(self, model, context) -> int:
        return 0


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_pipeline_resolves_and_prints_back(name: str) -> None:
    steps = resolve([name])
    assert list(flatten(steps))
    assert resolve(as_items(steps)) == steps


def test_options_are_validated() -> None:
    assert next(iter(resolve([{"fold-constants": {"max_bytes": 7}}]))).max_bytes == 7
    with pytest.raises(UsageError, match="'max_byte', did you mean 'max_bytes'"):
        resolve([{"fold-constants": {"max_byte": 7}}])
    with pytest.raises(UsageError, match="must be at least 0"):
        resolve([{"fold-constants": {"max_bytes": -1}}])


def test_an_option_without_a_default_has_to_be_given() -> None:
    with pytest.raises(UsageError, match="'script' is missing"):
        resolve(["graphsurgeon"])


def test_an_unknown_step_has_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Unknown pass 'fold-constant'.*\n.*'fold-constants'"):
        resolve(["fold-constant"])


def test_a_pass_is_named_by_module_and_class() -> None:
    (step,) = resolve([f"{__name__}:EmitsMicrosoft"])
    assert type(step).__name__ == "EmitsMicrosoft"
    assert as_items([step]) == [f"{__name__}:EmitsMicrosoft"]
    with pytest.raises(UsageError, match="Cannot import"):
        resolve(["no_such_module:Pass"])
    with pytest.raises(UsageError, match="no 'EmitsMicrosofd'.*\n.*EmitsMicrosoft"):
        resolve([f"{__name__}:EmitsMicrosofd"])


def test_repeat_nests() -> None:
    (step,) = resolve([{"repeat": ["fold-constants", {"repeat": ["remove-unused"]}]}])
    assert isinstance(step, Repeat)
    assert [s.step_name() for s in flatten([step])] == ["fold-constants", "remove-unused"]


def test_skip_removes_everywhere_and_knows_its_names() -> None:
    steps = without(resolve(["basic"]), ["remove-unused"])
    assert "remove-unused" not in {s.step_name() for s in flatten(steps)}
    with pytest.raises(UsageError, match="no such step.*\n.*'remove-unused'"):
        without(steps[:0] + resolve(["remove-unused"]), ["remove-unuse"])


def test_a_target_refuses_foreign_operators_before_the_run() -> None:
    steps = [*resolve(["remove-unused"]), EmitsMicrosoft()]
    with pytest.raises(UnsupportedError, match=r"Step 2 .*com\.microsoft operators, which target onnx does not accept"):
        check_legal(steps, ToONNX())
    check_legal(steps, ToONNXRuntime())


@pytest.mark.parametrize("text", ["[a, b]", "{a: 1, b: 2}", "{", "3"])
def test_what_is_no_step_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="-p"):
        parse_step(text)
