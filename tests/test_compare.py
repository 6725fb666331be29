"""Outputs are compared in float64; every kind of difference is told."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import infconv
from infconv.compare import TOLERANCES, Tolerance, compare_outputs, compare_values
from infconv.convert.from_onnx import OnnxSource

FP32 = TOLERANCES["fp32"]
X = np.linspace(-1, 1, 101, dtype=np.float32)


def test_equal_outputs_have_no_error() -> None:
    error = compare_values("y", X, X.copy(), FP32)
    assert error.ok
    assert error.max_abs == 0
    assert error.sqnr_db is None


def test_rounding_is_allowed_and_measured() -> None:
    error = compare_values("y", X, X * np.float32(1 + 1e-6), FP32)
    assert error.ok
    assert error.sqnr_db is not None
    assert 115 < error.sqnr_db < 125


def test_the_first_wrong_element_is_named() -> None:
    wrong = X.copy()
    wrong[7] += 0.01
    error = compare_values("y", X, wrong, FP32)
    assert not error.ok
    assert error.first == (7,)
    assert error.mismatched == 1
    assert "off by up to 0.01" in error.reason


@pytest.mark.parametrize(("reference", "actual"), [(1.0, np.nan), (np.nan, 1.0), (1.0, np.inf), (np.inf, -np.inf)])
def test_nan_and_infinity_are_never_close(reference: float, actual: float) -> None:
    error = compare_values("y", np.array([0.0, reference]), np.array([0.0, actual]), TOLERANCES["int8"])
    assert not error.ok


def test_the_same_nan_and_infinity_are_equal() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert compare_values("y", values, values.copy(), FP32).ok


def test_shapes_must_agree() -> None:
    assert "shape" in compare_values("y", X, X.reshape(1, -1), FP32).reason


def test_integers_are_compared_exactly() -> None:
    assert not compare_values("y", np.array([2**40]), np.array([2**40 + 1]), FP32).ok


def test_an_argmax_may_flip_in_low_precision() -> None:
    reference, actual = np.zeros(100, np.int64), np.zeros(100, np.int64)
    actual[0] = 3
    assert not compare_values("y", reference, actual, FP32).ok
    assert compare_values("y", reference, actual, TOLERANCES["fp16"]).ok


def test_a_noise_floor_replaces_the_tolerance() -> None:
    noisy = X + np.float32(0.01)
    assert compare_values("y", X, noisy, Tolerance(0, 0, 0, min_sqnr=30)).ok
    assert "below 40 dB" in compare_values("y", X, noisy, Tolerance(0, 0, 0, min_sqnr=40)).reason


def test_sequences_maps_strings_and_bfloat16() -> None:
    assert compare_values("y", [X, X], [X, X], FP32).ok
    assert "length" in compare_values("y", [X, X], [X], FP32).reason
    assert compare_values("y", [{1: 0.5}], [{1: 0.5}], FP32).ok
    assert "keys" in compare_values("y", [{1: 0.5}], [{2: 0.5}], FP32).reason
    assert not compare_values("y", np.array(["a", "b"]), np.array(["a", "c"]), FP32).ok
    assert compare_values("y", X.astype(ml_dtypes.bfloat16), X, TOLERANCES["bf16"]).ok


def test_missing_and_additional_outputs_are_errors() -> None:
    errors = compare_outputs({"a": X, "b": X}, {"a": X, "c": X}, FP32)
    assert [(e.name, e.ok) for e in errors] == [("a", True), ("b", False), ("c", False)]


def test_the_documented_table_is_the_one_in_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "verification.md").read_text()
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in page.splitlines()) if len(cells) == 8}
    for precision, tolerance in TOLERANCES.items():
        rtol, atol, scaled, mismatch, sqnr = (cell.strip() for cell in rows[precision][2:7])
        for text, value in ((rtol, tolerance.rtol), (atol, tolerance.atol), (scaled, tolerance.scaled)):
            assert (0.0 if text == "-" else float(text)) == value
        assert (0.0 if mismatch == "equal" else float(mismatch.split()[0]) / 100) == tolerance.mismatch
        assert (None if sqnr == "-" else float(sqnr.split()[2])) == tolerance.min_sqnr


def test_a_given_tolerance_replaces_the_scaled_term() -> None:
    strict = FP32.override(rtol=None, atol=1e-9, min_sqnr=None)
    assert strict.scaled == 0
    assert strict.rtol == FP32.rtol


def test_the_tolerance_grows_with_depth() -> None:
    assert FP32.at_depth(100) == FP32
    assert FP32.at_depth(400).scaled == pytest.approx(2 * FP32.scaled)
    assert TOLERANCES["int8"].at_depth(400) == TOLERANCES["int8"]


def test_nan_and_infinity_are_counted() -> None:
    error = compare_values("y", np.array([1.0, 2.0, np.nan]), np.array([np.inf, np.nan, np.nan]), FP32)
    assert error.not_finite == 2


# --- models of any kind -------------------------------------------------------------------------------------------


def test_recorded_outputs_are_a_reference(infconv, mlp: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 8)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "y.npz", y=OnnxSource(mlp).run({"x": x})["y"])
    assert infconv("compare", "y.npz", mlp, "--inputs", "x.npz").code == 0
    np.savez(tmp_path / "y.npz", y=np.zeros((3, 4), "f4"))
    assert infconv("compare", "y.npz", mlp, "--inputs", "x.npz").code == 5


def test_a_source_is_compared_with_onnx(infconv, tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(
        "import torch\n\n\ndef make():\n    model = torch.nn.Linear(4, 3).eval()\n"
        "    for p in model.parameters():\n        torch.nn.init.constant_(p, 0.5)\n    return model\n"
    )
    text = '<ir_version: 9, opset_import: ["" : 17]> m (float[batch, 4] input) => (float[batch, 3] y) '
    text += "<float[4, 3] w = {%s}, float[3] b = {0.5, 0.5, 0.5}> { h = MatMul(input, w) y = Add(h, b) }"
    onnx.save(onnx.parser.parse_model(text % ", ".join(["0.5"] * 12)), tmp_path / "m.onnx")
    done = infconv("compare", "my_model:make", "m.onnx", "--input", "input:batch,4", "--layers", "--json")
    assert done.code == 0, done.err
    assert len(done.json["samples"]) == 3
    assert done.json["layers"]["first"] is None


def test_layers_show_where_two_models_part(infconv, mlp: Path, tmp_path: Path) -> None:
    model = onnx.load(mlp)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"
    onnx.save(model, tmp_path / "b.onnx")
    done = infconv("compare", mlp, "b.onnx", "--layers")
    assert done.code == 5
    assert "first divergence  Abs 'r': 'r'" in done.out


def test_outputs_without_a_common_name_are_compared_in_their_order(mlp: Path, tmp_path: Path) -> None:
    model = onnx.load(mlp)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, tmp_path / "b.onnx")
    comparison = infconv.compare(mlp, tmp_path / "b.onnx")
    assert comparison.passed
    assert "compared by their order" in comparison.notes[0]


def test_decisions_are_compared_where_asked(mlp: Path) -> None:
    comparison = infconv.compare(mlp, mlp, as_="topk:2")
    assert {output.agreement for check in comparison.samples for output in check.outputs} == {1.0}


def saved(path: Path, body: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> m {body}'), path)
    return path


RELU = "(float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }"


def test_inputs_are_cast_and_called_as_the_other_model_has_them(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.onnx", RELU)
    half = saved(tmp_path / "half.onnx", RELU.replace("float[", "float16["))
    assert infconv.compare(first, half, atol=1e-2).passed
    other = infconv.compare(first, saved(tmp_path / "b.onnx", RELU.replace("x)", "z)").replace("x", "z")))
    assert other.passed
    assert other.notes == ["No input has the same name (x; z): fed by their order."]


def test_inputs_that_do_not_fit_both_are_told(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.onnx", RELU)
    wider = saved(tmp_path / "b.onnx", RELU.replace("8", "9"))
    with pytest.raises(infconv.UsageError, match=r"b.onnx' takes 'x' in the shape \['n', 9\], not \[2, 8\]"):
        infconv.compare(first, wider)
    more = "(float[n, 8] x, float[n, 8] z) => (float[n, 8] y) { y = Add(x, z) }"
    with pytest.raises(infconv.UsageError, match="c.onnx' has an input 'z'; there is only x"):
        infconv.compare(first, saved(tmp_path / "c.onnx", more))


def test_sizes_of_onnx_files_can_be_given(tmp_path: Path) -> None:
    model = saved(tmp_path / "a.onnx", RELU.replace("[n, 8]", "[n, m]"))
    assert [c.label for c in infconv.compare(model, model, dim={"n": "4..6", "m": 3}).samples] == ["n=4 m=3", "n=5 m=3"]
    assert [c.label for c in infconv.compare(model, model, input=["x:5,7"]).samples] == ["fixed shapes"]
    with pytest.raises(infconv.UsageError, match="--input 'xx' is no input"):
        infconv.compare(model, model, input=["xx:5,7"])


def test_random_numbers_are_named_where_models_differ(tmp_path: Path) -> None:
    body = "(float[n, 8] x) => (float[n, 8] y) { [noise] r = RandomNormalLike(x) y = Add(x, r) }"
    model = saved(tmp_path / "a.onnx", body)
    comparison = infconv.compare(model, model)
    assert not comparison.passed
    assert "draws random numbers (RandomNormalLike 'noise')" in comparison.notes[0]


def test_a_cause_without_a_counterpart_is_not_passed_over(infconv, tmp_path: Path) -> None:
    saved(tmp_path / "a.onnx", "(float[n, 8] x) => (int64[2, k] y) { y = NonZero(x) }")
    saved(tmp_path / "b.onnx", "(float[n, 8] x) => (int64[2, k] y) { z = Relu(x) y = NonZero(z) }")
    done = infconv("compare", "a.onnx", "b.onnx", "--layers")
    assert done.code == 5
    assert "first divergence  NonZero 'y': 'y'" in done.out
    assert "without a counterpart before it  z: the cause may lie there" in done.out


def test_a_branch_is_looked_into(infconv, tmp_path: Path) -> None:
    branches = "then_branch = t () => (float[2] r) { r = Exp(x) }, else_branch = e () => (float[2] r) { r = Neg(x) }"
    body = "(float[2] x, bool c) => (float[2] y) { [pick] r2 = If (c) <%s> y = Tanh(r2) }" % branches
    saved(tmp_path / "a.onnx", body)
    saved(tmp_path / "b.onnx", body.replace("Neg(x)", "Sin(x)"))
    done = infconv("compare", "a.onnx", "b.onnx", "--layers")
    assert done.code == 5
    assert "Sin 'r' in the else branch of If 'pick'" in done.out
    done = infconv("bisect", "a.onnx", "b.onnx", "--json")
    assert done.json["node"] == "Sin 'r' in the else branch of If 'pick'"
    assert (done.json["nodes"], done.json["repro"]["reproduced"]) == (1, True)
    assert [node.op_type for node in onnx.load(tmp_path / "repro/model.onnx").graph.node] == ["Sin"]
