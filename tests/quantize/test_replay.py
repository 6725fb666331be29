"""INT8 measures what is faster in float; a run from the plan that it leaves gives the same bytes without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import infconv
from infconv.quantize import quantize_static
from infconv.quantize._never_slower import Verdict


def convert(folder: Path, source: Path, **more: Any) -> bytes:
    data = folder / "c.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(16, 8)).astype("f4"))
    infconv.convert(source, target="onnxruntime", int8=True, calibration=data, output=folder / "q.onnx", **more)
    return (folder / "q.onnx").read_bytes()


@pytest.mark.parametrize("kept", [0, 1])
def test_what_was_measured_is_taken_from_the_plan(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    def measured(target: str, model: Any, layers: Sequence[Any], *_: Any) -> Verdict:
        return Verdict(frozenset(layer.name for layer in layers[:kept]), ())

    def refuse(*_: Any) -> Verdict:
        raise AssertionError("it is measured again")

    monkeypatch.setattr(quantize_static, "leave_slow_groups", measured)
    first = convert(tmp_path, mlp)
    plan = tmp_path / "plan.yaml"
    plan.write_bytes((tmp_path / "q.onnx.precision.yaml").read_bytes())
    assert str(yaml.safe_load(plan.read_text())).count("the whole is faster when it is float") == kept
    monkeypatch.setattr(quantize_static, "leave_slow_groups", refuse)
    assert convert(tmp_path, mlp, precision_plan=plan) == first
