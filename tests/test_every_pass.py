"""Contracts that hold for every registered pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv import registry
from infconv.errors import InfconvError
from infconv.passes import Context, Pass
from tests.helpers import check_same_outputs, parse

NAMES = registry.names("pass")
MODELS = {
    "mlp": """
        m (float[batch, 8] x) => (float[batch, 4] y)
        <float[8, 4] w = {%s}, float[4] b = {0.1, 0.2, 0.3, 0.4}>
        { h = MatMul(x, w)
          s = Add(h, b)
          y = Relu(s) }
    """
    % ", ".join(f"{v:.3f}" for v in np.linspace(-1, 1, 32)),
    "branches": """
        m (float[2, 3, 4, 4] x, bool c) => (float[2, 3, 4, 4] y, float[2, 3, 4, 4] z)
        { a = Relu(x)
          y = If (c) <then_branch = t () => (float[2, 3, 4, 4] o) { o = Sigmoid(a) },
                      else_branch = e () => (float[2, 3, 4, 4] o) { o = Tanh(a) }>
          b = Identity(a)
          z = Identity(b) }
    """,
    "nothing": "m (float[3] x) => (float[3] y) { y = Relu(x) }",
}


def instances() -> list[tuple[str, Pass]]:
    """Return each pass with its defaults; those that need an option are tested where they live."""
    made: list[tuple[str, Pass]] = []
    for name in NAMES:
        kind = registry.get("pass", name)
        if not any(field.is_required() for field in kind.model_fields.values()):
            made.append((name, kind()))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_the_file_the_class_and_the_step(name: str) -> None:
    kind = registry.get("pass", name)
    assert kind.step_name() == name
    assert kind.__module__.rpartition(".")[2] == name.replace("-", "_")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_does_and_so_does_each_option(name: str) -> None:
    kind = registry.get("pass", name)
    assert kind.summary().endswith(".")
    assert len(kind.summary()) < 120
    for option, text in kind.option_help().items():
        assert text, f"option {option} of {name} has no help"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "step"), instances(), ids=[n for n, _ in instances()])
def test_it_keeps_the_model_valid_and_its_count_is_honest(name: str, step: Pass, model: str) -> None:
    graph = parse(MODELS[model])
    before = ir.to_proto(graph)
    try:
        changes = step.run(graph, Context())
    except InfconvError as refused:
        assert refused.message
        return
    after = ir.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    if not changes:
        assert after.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)
    tolerance = {"lower-precision": "fp16", "quantize-dynamic": "int8", "quantize-weights": "int4"}.get(name, "fp32")
    check_same_outputs(before, after, None, tolerance)
    assert step.run(graph, Context()) == 0, "a second run changes the model again"


def test_every_pass_has_a_test_of_its_own() -> None:
    tests = Path(__file__).parent
    for name in NAMES:
        assert list(tests.glob(f"*/test_{name.replace('-', '_')}.py")), f"{name} has no test file"
