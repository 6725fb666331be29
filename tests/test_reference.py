"""Samples: seeded, within the domains that the graph implies, at several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.convert._base import DimRange, Source
from infconv.errors import UsageError
from infconv.reference import describe_inputs, load_sample, make_inputs, make_reference, size_plans

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
g (int64[batch, seq] ids, float[batch, seq] attention_mask, bool[3] flags, float[2, 3] x) => (float[batch, seq, 4] y)
<float[11, 4] table = {0.0}>
{
    flat = Identity(ids)
    y = Gather(table, flat)
}
"""


@pytest.fixture
def infos() -> list:
    text = TEXT.replace("{0.0}", "{" + ", ".join(["0.5"] * 44) + "}")
    return describe_inputs(ir.from_proto(onnx.parser.parse_model(text)))


def test_indices_stay_within_the_table(infos) -> None:
    ids = make_inputs(infos, {"batch": 50, "seq": 50}, seed=0)["ids"]
    assert ids.min() >= 0
    assert ids.max() == 10


def test_masks_are_ones_then_zeros(infos) -> None:
    mask = make_inputs(infos, {"batch": 20, "seq": 9}, seed=0)["attention_mask"]
    assert mask.dtype == np.float32
    assert (np.diff(mask, axis=1) <= 0).all()
    assert mask[0].all()
    assert (mask.sum(axis=1) >= 5).all()
    assert (mask == 0).any()


def test_the_same_seed_gives_the_same_inputs(infos) -> None:
    sizes = {"batch": 2, "seq": 3}
    a, b, c = (make_inputs(infos, sizes, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["x"], c["x"])


def test_dynamic_dims_are_tried_at_three_sizes(infos) -> None:
    plans = [sizes for _, sizes in size_plans(infos, {"batch": DimRange(1, 4, 32)})]
    assert [p["batch"] for p in plans] == [4, 1, 5]
    assert len({p["seq"] for p in plans}) == 3


def test_the_range_of_a_dim_is_respected(infos) -> None:
    for _, sizes in size_plans(infos, {"batch": DimRange(3, None, 3), "seq": DimRange(16, 16, 512)}):
        assert sizes["batch"] == 3
        assert 16 <= sizes["seq"] <= 512


def sample(tmp_path: Path, **arrays: np.ndarray) -> str:
    np.savez(tmp_path / "s.npz", **arrays)
    return str(tmp_path / "s.npz")


def test_a_users_sample_is_checked_against_the_inputs(tmp_path: Path, infos) -> None:
    good = make_inputs(infos, {"batch": 2, "seq": 3}, 0)
    assert set(load_sample(sample(tmp_path, **good), infos)) == set(good)
    with pytest.raises(UsageError, match="no array for input 'x'"):
        load_sample(sample(tmp_path, **{k: v for k, v in good.items() if k != "x"}), infos)
    with pytest.raises(UsageError, match="'idz'.*\n.*'ids'"):
        load_sample(sample(tmp_path, **good, idz=good["ids"]), infos)
    with pytest.raises(UsageError, match="shape"):
        load_sample(sample(tmp_path, **{**good, "x": good["x"].T}), infos)
    with pytest.raises(UsageError, match="float64"):
        load_sample(sample(tmp_path, **{**good, "ids": good["x"].astype("f8")}), infos)


class Fussy(Source):
    """A model that wants at least 32 of everything but the batch."""

    producer = "fussy"

    def run(self, inputs):
        if inputs["x"].shape[1] < 32:
            raise UsageError("too small")
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


def test_larger_sizes_are_tried_when_the_source_refuses_the_usual_ones() -> None:
    text = '<ir_version: 9, opset_import: ["" : 17]> g (float[batch, n_samples] x) => (float[batch, n_samples] y) '
    text += "{ y = Relu(x) }"
    model = ir.from_proto(onnx.parser.parse_model(text))
    reference = make_reference(Fussy(), model, {}, None, 0)
    assert "batch=1 n_samples=32" in [s.label for s in reference.samples]
    assert any("too small" in note for note in reference.notes)


# --- domains ------------------------------------------------------------------------------------------------------


def inputs_of(text: str, sizes: dict[str, int] | None = None, variant: int = 0) -> dict:
    model = ir.from_proto(onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]> ' + text))
    return make_inputs(describe_inputs(model), sizes or {}, 0, variant)


def test_lengths_count_what_is_there() -> None:
    text = "m (float[batch, time, 4] x, int64[batch] x_lengths) => (float[batch, time, 4] y) { y = Relu(x) }"
    lengths = inputs_of(text, {"batch": 20, "time": 10})["x_lengths"]
    assert lengths[0] == 10
    assert 5 <= lengths.min() < lengths.max() == 10


def test_pixels_are_pixels() -> None:
    text = "m (uint8[2, 3, 8, 8] raw, float[2, 3, 8, 8] x) => (float[2, 3, 8, 8] y) <float k = {255}> "
    inputs = inputs_of(text + "{ f = Cast <to = 1> (raw) s = Div(x, k) y = Add(f, s) }")
    assert inputs["raw"].max() > 250
    assert 0 <= inputs["x"].min() < 10
    assert 245 < inputs["x"].max() <= 255


def test_indices_of_other_operators_stay_within_too() -> None:
    text = "m (int64[3, 2] i, float[5, 2] x) => (float[3, 2] y) { y = GatherElements(x, i) }"
    assert 0 <= inputs_of(text)["i"].min() <= inputs_of(text)["i"].max() < 5


def test_a_flag_is_on_in_every_second_sample() -> None:
    text = "m (bool c, float[2] x) => (float[2] y) { y = Relu(x) }"
    assert {bool(inputs_of(text, variant=v)["c"]) for v in (0, 1)} == {True, False}


# --- the edge -----------------------------------------------------------------------------------------------------


class Echo(Source):
    """A model that returns a function of its input."""

    producer = "echo"

    def __init__(self, function) -> None:
        self.function = function

    def run(self, inputs):
        with np.errstate(all="ignore"):
            return {"y": self.function(inputs["x"])}

    def close(self) -> None:
        pass


def reference_of(function, *edge_cases: str):
    text = '<ir_version: 9, opset_import: ["" : 17]> m (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }'
    return make_reference(Echo(function), ir.from_proto(onnx.parser.parse_model(text)), {}, None, 0, edge_cases)


def test_one_sample_has_a_row_of_zeros_and_one_of_ones() -> None:
    rows = [sample.inputs["x"] for sample in reference_of(lambda x: x).samples]
    assert [len(x) for x in rows] == [2, 1, 3]
    assert (rows[2][0] == 0).all()
    assert (rows[2][1] == 1).all()
    assert rows[2][2].std() > 0


def test_not_where_the_source_gives_no_numbers_for_them() -> None:
    samples = reference_of(lambda x: 1 / x).samples
    assert (samples[2].inputs["x"][0] != 0).all()


def test_edge_cases_are_samples_of_their_own() -> None:
    reference = reference_of(lambda x: x, "zeros", "ones", "large", "denormal", "padding")
    cases = {s.label: s.inputs["x"] for s in reference.samples if "edge" in s.label}
    assert list(cases) == [f"edge case {name}" for name in ("zeros", "ones", "large", "denormal")]
    assert np.abs(cases["edge case large"]).max() > 1e3
    assert 0 < np.abs(cases["edge case denormal"]).max() < 1e-38
    assert len(reference.judged("fp16")) == len(reference.samples) - 2


def test_an_edge_case_without_numbers_or_without_stability_is_not_judged() -> None:
    notes = reference_of(np.exp, "large").notes
    assert notes == ["Edge case large is not judged: the source's own outputs are not finite"]
    notes = reference_of(np.sign, "zeros").notes
    assert notes == ["Edge case zeros is not judged: one rounding of the inputs changes the source's outputs"]


def test_a_mask_of_zeros_is_all_padding() -> None:
    text = "m (int64[2, 4] mask, float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }"
    model = ir.from_proto(onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]> ' + text))
    (sample,) = (
        s for s in make_reference(Echo(lambda x: x), model, {}, None, 0, ["padding"]).samples if "edge" in s.label
    )
    assert not sample.inputs["mask"].any()
    assert sample.inputs["x"].any()


# --- the user's own -----------------------------------------------------------------------------------------------


def test_a_folder_of_samples_is_several(tmp_path: Path) -> None:
    for name in ("b", "a"):
        np.savez(tmp_path / f"{name}.npz", x=np.full((2, 4), ord(name), "f4"))
    text = '<ir_version: 9, opset_import: ["" : 17]> m (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    reference = make_reference(Echo(lambda x: x), model, {}, str(tmp_path), 0)
    assert [(s.label, s.outputs["y"][0, 0]) for s in reference.samples] == [("a.npz", 97), ("b.npz", 98)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.npz file"):
        make_reference(Echo(lambda x: x), model, {}, str(tmp_path / "empty"), 0)
