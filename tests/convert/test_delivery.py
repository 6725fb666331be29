"""Proof of delivery: what share of the multiplications runs in which type, read back from the finished artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import infconv
from infconv.convert._delivery import check_delivered
from infconv.convert._exporter import Delivered
from infconv.convert._work import shares, work_of
from infconv.errors import VerificationError
from tests.helpers import parse

W = "float[8, 8] w = {%s}, float[16, 8] v = {%s}" % tuple(
    ", ".join(f"{x:.3f}" for x in np.random.default_rng(seed).normal(size=size) / 3)
    for seed, size in ((0, 64), (1, 128))
)
MODEL = f"""m (float[n, 8] x) => (float[n, 8] y) <{W}, int64[2] to = {{-1, 16}}>
    {{ [small] a = MatMul(x, w)  [act] b = Tanh(a)  c = Concat<axis = 1>(b, b)  [wide] y = MatMul(c, v) }}"""


@pytest.mark.parametrize(
    ("signature", "node", "expected"),
    [
        ("float[2, 3, 4] x", "y = MatMul(x, w45)", 2 * 3 * 5 * 4),
        ("float[4, 2] x", "y = Gemm<transA = 1>(x, w45)", 2 * 5 * 4),
        ("float[1, 4, 6, 6] x", "y = Conv<group = 2>(x, k)", 6 * 16 * 2 * 9),
        ("float[1, 6, 4, 4] x", "y = ConvTranspose(x, t)", 6 * 16 * 3 * 4),
        ("float[2, 4] x", 'y = Einsum<equation = "ab,bc->ac">(x, w45)', 2 * 4 * 5),
        ("float[batch_size, 4] x", "y = MatMul(x, w45)", 2 * 4 * 5),
    ],
)
def test_multiplications_are_counted(signature: str, node: str, expected: int) -> None:
    weights = "float[4, 5] w45 = {%s}, float[6, 2, 3, 3] k = {%s}, float[6, 3, 2, 2] t = {%s}" % tuple(
        ", ".join(["0.5"] * size) for size in (20, 108, 72)
    )
    rank = {"Conv<": 4, "ConvT": 4, "MatMul(x, w45)": signature.count(",") + 1}
    dims = ", ".join("abcd"[: next((r for name, r in rank.items() if name in node), 2)])
    found = work_of(parse(f"m ({signature}) => (float[{dims}] y) <{weights}> {{ {node} }}"))
    assert found is not None
    assert [work.multiplications for work in found.values()] == [expected]


def test_shares_weigh_operators_by_their_multiplications() -> None:
    model = parse(MODEL)
    work = work_of(model)
    assert work is not None
    assert shares(work) == {"float32": 1.0}
    assert shares(work, {"small": "float16", "wide": "float32"}) == {"float32": 2 / 3, "float16": 1 / 3}


@pytest.mark.parametrize("target", ["onnx", "onnxruntime", "openvino", "tensorrt"])
def test_every_target_tells_the_shares(target: str, tmp_path: Path) -> None:
    onnx.save(ir.to_proto(parse(MODEL)), tmp_path / "m.onnx")
    (tmp_path / "plan.yaml").write_text("{version: 1, precision: fp16, nodes: [{node: wide, type: float32}]}")
    result = infconv.convert(
        tmp_path / "m.onnx",
        target=target,
        output=tmp_path / "out",
        precision_plan=tmp_path / "plan.yaml",
        dim={"n": (1, 2)},
    )
    artifact = result.artifacts[0]
    assert dict(artifact.compute) == {"float16": 1, "float32": 1}
    assert dict(artifact.compute_share) == pytest.approx({"float32": 2 / 3, "float16": 1 / 3})
    manifest = json.loads(Path(artifact.manifest).read_text())
    assert manifest["compute_share"] == artifact.compute_share
    if target == "openvino":
        assert sum(manifest["facts"]["execution_types"].values()) == 2


def test_nothing_in_the_precision_asked_for_is_exit_5() -> None:
    with pytest.raises(VerificationError, match="no compute operator of the onnx artifact runs in float16") as raised:
        check_delivered(Delivered({"float32": 3}, "types in the file"), "fp16", "onnx", ["why"])
    assert raised.value.exit_code == 5
    assert raised.value.hint == "why"


def test_less_than_the_graph_promised_is_exit_5() -> None:
    fell_back = Delivered({"float16": 1, "float32": 9}, "kernels", {"float16": 0.1, "float32": 0.9}, {"float16": 1.0})
    with pytest.raises(
        VerificationError, match="the graph has 100% of its multiplications in float16, the artifact 10%"
    ):
        check_delivered(fell_back, "fp16", "tensorrt", [])
    kept = Delivered({"float16": 1, "float32": 9}, "kernels", {"float16": 0.1}, {"float16": 0.11})
    check_delivered(kept, "fp16", "tensorrt", [])
