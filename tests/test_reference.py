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
