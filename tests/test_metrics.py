"""The user's own measure: of the source and of the artifact, with a budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import infconv
from infconv.metrics import Model
from infconv.passes import Pass

DATA = np.random.default_rng(7).normal(size=(16, 8)).astype("f4")


def accuracy(model: Model) -> float:
    """Return the mean output, which a wrong artifact changes."""
    return float(np.mean(model({"x": DATA})["y"]))


def error_rate(model: Model) -> float:
    return -accuracy(model)


def broken(model: Model) -> float:
    return model({"x": DATA})["no such output"]


def test_it_is_taken_of_the_source_and_of_each_artifact(mlp: Path, tmp_path: Path) -> None:
    for target in ("onnx", "openvino"):
        (artifact,) = infconv.convert(
            mlp, target=target, output=tmp_path / "o", metric=f"{__name__}:accuracy"
        ).artifacts
        check = artifact.verification.metric
        assert check is not None
        assert check.before == pytest.approx(check.after, rel=1e-4)
        assert check.drop == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("metric", "lower"), [("accuracy", False), ("error_rate", True)])
def test_beyond_the_budget_is_a_failure(mlp: Path, tmp_path: Path, metric: str, lower: bool) -> None:
    options = {"metric": f"{__name__}:{metric}", "max_drop": 0.05, "verify": "off", "lower_is_better": lower}
    with pytest.raises(infconv.VerificationError, match=r"from .* to .*, by .*; the budget is 0\.05") as caught:
        infconv.convert(mlp, output=tmp_path / "o.onnx", passes=[f"{__name__}:Scale"], **options)
    assert caught.value.exit_code == 5
    assert not (tmp_path / "o.onnx").exists()
    infconv.convert(mlp, output=tmp_path / "o.onnx", **options)


class Scale(Pass):
    """A wrong step: every weight is larger than it was."""

    def run(self, model, context) -> int:
        import onnx_ir as ir

        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.5), name=value.name)
        return len(model.graph.initializers)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("no_module_of_that_name:f", "cannot import"),
        (f"{__name__}:acuracy", "Did you mean 'accuracy'"),
        (f"{__name__}:broken", "KeyError"),
        ("accuracy", "module:function"),
    ],
)
def test_what_cannot_be_measured_is_told(mlp: Path, tmp_path: Path, metric: str, words: str) -> None:
    with pytest.raises(infconv.UsageError, match=words):
        infconv.convert(mlp, output=tmp_path / "o.onnx", metric=metric)


def test_the_command_line_takes_it(infconv, mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "my_eval.py").write_text("def score(model):\n    return 1.0\n")
    done = infconv("convert", mlp, "-o", "o.onnx", "--metric", "my_eval:score", "--max-drop", "0.1")
    assert done.code == 0, done.err
    assert "metric my_eval:score: 1 → 1" in done.out


def test_a_budget_without_a_metric_is_refused(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(infconv.UsageError, match="max_drop is of a metric, and there is none"):
        infconv.convert(mlp, output=tmp_path / "o.onnx", max_drop=0.1)
    with pytest.raises(infconv.UsageError, match="lower_is_better is of a metric"):
        infconv.convert(mlp, output=tmp_path / "o.onnx", lower_is_better=True)


def test_a_module_that_cannot_be_imported_is_told(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_written.py").write_text("def top1(model:")
    with pytest.raises(infconv.UsageError, match="cannot import 'half_written': SyntaxError"):
        infconv.convert(mlp, output=tmp_path / "o.onnx", metric="half_written:top1")
