"""Random graphs stay valid and compute the same through every level; INFCONV_FUZZ_SEEDS=1000-2000 runs others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.compare import TOLERANCES, OutputError, compare_outputs
from infconv.graphs import level_steps
from infconv.model import from_proto
from infconv.observe import Observers
from infconv.passes import Context
from infconv.runner import run_steps
from infconv.steps import resolve
from tests.fuzz.graphs import random_feed, random_model
from tests.helpers import run, signature

BATCHES = (1, 3)
LEVELS = ("basic", "extended", "all")
SENSITIVITY = 30.0
"""An output may be off by this many times what a relative change of 1e-6 of the inputs does to it."""


def seeds() -> list[int]:
    first, _, last = os.environ.get("INFCONV_FUZZ_SEEDS", "0-49").partition("-")
    return list(range(int(first), int(last or first) + 1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", seeds())
def test_a_pipeline_keeps_what_a_random_graph_computes(seed: int, level: str) -> None:
    before = random_model(seed)
    onnx.checker.check_model(before, full_check=True)
    again = f"seed {seed}, level {level}: INFCONV_FUZZ_SEEDS={seed} pytest tests/fuzz -k {level}"
    model = optimized(before, level)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert signature(model) == signature(ir.from_proto(before)), again
    for batch in BATCHES:
        errors = differences(before, after, random_feed(before, batch, seed))
        assert not errors, f"{again}, batch {batch}: {errors}"
    second = ir.to_proto(optimized(after, level))
    assert node_lines(second) == node_lines(after), f"{again}: a second run changes the model again"


def optimized(proto: onnx.ModelProto, level: str) -> ir.Model:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    model, _ = run_steps(resolve(level_steps("onnx", level)), from_proto(copy), Context(), Observers())
    return model


def differences(before: onnx.ModelProto, after: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[OutputError]:
    """Return the outputs that differ by more than rounding, which an ill-conditioned graph magnifies, explains."""
    reference = run(before, feed)
    errors = [e for e in compare_outputs(reference, run(after, feed), TOLERANCES["fp32"]) if not e.ok]
    if not errors:
        return []
    rng = np.random.default_rng(0)
    nudged = {
        k: v * rng.uniform(1 - 1e-6, 1 + 1e-6, v.shape).astype(v.dtype) if v.dtype.kind == "f" else v
        for k, v in feed.items()
    }
    moved = run(before, nudged)
    return [e for e in errors if (e.max_abs or np.inf) > SENSITIVITY * largest_change(reference[e.name], moved[e.name])]


def largest_change(a: Any, b: Any) -> float:
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), initial=0.0))


def node_lines(model: onnx.ModelProto) -> list[str]:
    """Return the model as lines of text, whose differences pytest shows."""
    return onnx.printer.to_text(model).splitlines()
