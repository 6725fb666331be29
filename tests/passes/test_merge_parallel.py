"""Parallel linear operators on one input merged into one and a Split."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from infconv.passes.infer_shapes import InferShapes
from infconv.passes.merge_parallel import MergeParallel
from tests.helpers import apply, check_rewrite, parse
from tests.passes.weighted import check_change, check_kept, normal, with_weights

MERGE = MergeParallel()


def test_weights_stand_side_by_side() -> None:
    check_rewrite(
        MERGE,
        """g (float[N, 1] X) => (float[N, 2] A, float[N, 1] B, float[N, 1] C)
            <float[1, 2] a = {1.0, 2.0}, float[1, 1] b = {3.0}, float[1, 1] c = {4.0}> {
            A = MatMul (X, a) B = MatMul (X, b) C = MatMul (X, c) }""",
        """g (float[N, 1] X) => (float[N, 2] A, float[N, 1] B, float[N, 1] C)
            <float[1, 4] w = {1.0, 2.0, 3.0, 4.0}, int64[3] sizes = {2, 1, 1}> {
            m = MatMul (X, w) A, B, C = Split <axis = -1> (m, sizes) }""",
        1,
    )


def test_queries_keys_and_values_with_their_biases() -> None:
    text = """g (float[N, T, 8] X) => (float[N, T, 8] Y, float[N, T, 4] v) {
        q0 = MatMul (X, a) k0 = MatMul (X, b) q = Add (q0, ba) v0 = MatMul (X, c) k = Add (bb, k0) v = Add (v0, bc)
        Y = Mul (q, k) }"""
    weights = {
        "a": normal(8, 8),
        "b": normal(8, 8),
        "c": normal(8, 4),
        "ba": normal(8),
        "bb": normal(8),
        "bc": normal(4),
    }
    check_change(MERGE, with_weights(text, **weights), 1, ["MatMul", "Add", "Split", "Mul"])


@pytest.mark.parametrize("opset", [8, 11, 13, 18, 20])
@pytest.mark.parametrize(
    ("branch", "shape", "after"),
    [
        ("Gemm <transB = 1> (X, {w})", "4, 6", "Gemm"),
        ("Gemm <beta = 2.0> (X, {t}, {b})", "4, 6", "Gemm"),
        ("Conv <pads = [1, 1]> (X, {k})", "N, 6, L", "Conv"),
        ("Conv (X, {k}, {b})", "N, 6, L", "Conv"),
        ("MatMul (X, {t})", "4, 6", "MatMul"),
    ],
)
def test_every_operator_in_every_opset(opset: int, branch: str, shape: str, after: str) -> None:
    if opset < 11 and "transB" in branch:
        branch = branch.replace("{w})", "{w}, {b})")
    calls = " ".join(f"{n.upper()} = {branch.format(w='w' + n, t='t' + n, k='k' + n, b='b' + n)}" for n in "abc")
    outputs = ", ".join(
        f"float[p{n}, q{n}{', r' + n if ',' in shape[2:] and 'L' in shape else ''}] {n.upper()}" for n in "abc"
    )
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] X) => ({outputs}) {{ {calls} }}'
    weights: dict[str, np.ndarray] = {}
    for seed, (n, size) in enumerate(zip("abc", (2, 3, 5), strict=True)):
        weights |= {"w" + n: normal(size, 6, seed=seed), "t" + n: normal(6, size, seed=seed)}
        weights |= {"k" + n: normal(size, 6, 3, seed=seed), "b" + n: normal(size, seed=seed)}
    check_change(MERGE, with_weights(text, **weights), 1, [after, "Split"])


def test_what_differs_is_another_group() -> None:
    text = """g (float[N, 4, 9] X) => (float[N, 2, a] A, float[N, 2, b] B, float[N, 2, c] C, float[N, 2, d] D) {
        A = Conv (X, k) B = Conv <strides = [2]> (X, k2) C = Conv (X, k3) D = Conv <pads = [1, 1]> (X, k4) }"""
    weights = {f"k{i}": normal(2, 4, 3, seed=i) for i in (2, 3, 4)} | {"k": normal(2, 4, 3)}
    model = with_weights(text, **weights)
    check_change(MERGE, model, 0, ["Conv"] * 4)


def test_two_bare_operators_would_be_two_again() -> None:
    text = "g (float[N, 4] X) => (float[N, 2] A, float[N, 3] B) { A = MatMul (X, a) B = MatMul (X, b) }"
    check_change(MERGE, with_weights(text, a=normal(4, 2), b=normal(4, 3)), 0, ["MatMul", "MatMul"])


def test_the_number_of_branches_is_limited() -> None:
    text = """g (float[N, 4] X) => (float[N, 2] A, float[N, 2] B, float[N, 2] C) {
        A = MatMul (X, a) B = MatMul (X, b) C = MatMul (X, c) }"""
    weights = {name: normal(4, 2, seed=i) for i, name in enumerate("abc")}
    check_change(MergeParallel(min_branches=4), with_weights(text, **weights), 0, ["MatMul"] * 3)
    check_change(MergeParallel(max_branches=2), with_weights(text, **weights), 0, ["MatMul"] * 3)
    check_change(MergeParallel(min_branches=3), with_weights(text, **weights), 1, ["MatMul", "Split"])


def test_weights_are_put_together_when_they_are_saved() -> None:
    text = """g (float[N, 4] X) => (float[N, 2] A, float[N, 2] B, float[N, 2] C) {
        A = MatMul (X, a) B = MatMul (X, b) C = MatMul (X, c) }"""
    model = with_weights(text, **{name: normal(4, 2, seed=i) for i, name in enumerate("abc")})
    assert apply(MERGE, model) == 1
    (weight,) = (v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    assert isinstance(weight, ir.LazyTensor)


@pytest.mark.parametrize(
    ("branches", "reason"),
    [
        ("Gemm <alpha = 2.0> (X, {})", "groups, alpha or transA"),
        ("Gemm <transA = 1> (X, {})", "groups, alpha or transA"),
    ],
)
def test_refusals(branches: str, reason: str) -> None:
    calls = " ".join(f"{n.upper()} = {branches.format(n)}" for n in "abc")
    text = f"g (float[4, 4] X) => (float[4, 2] A, float[4, 2] B, float[4, 2] C) {{ {calls} }}"
    check_kept(MERGE, with_weights(text, **{n: normal(4, 2, seed=i) for i, n in enumerate("abc")}), reason)


def test_a_large_weight_that_is_shared_is_refused() -> None:
    text = """g (float[N, 80] X) => (float[N, 80] A, float[N, 80] B, float[N, 80] C) {
        A = MatMul (X, w) B = MatMul (X, w) C = MatMul (X, w) }"""
    check_kept(MERGE, with_weights(text, w=normal(80, 80)), "the weight 'w' is used 3 times")


def test_branches_of_if_are_graphs_of_their_own() -> None:
    text = """g (bool c, float[N, 1] X) => (float[N, 1] Y) <float[1, 1] w = {2.0}, float[1, 1] v = {3.0}> {
        a = MatMul (X, w) b = MatMul (X, v)
        z = If (c) <then_branch = t () => (float[N, 1] p) { p = MatMul (X, w) },
                    else_branch = e () => (float[N, 1] q) { q = MatMul (X, v) }>
        s = Add (a, b) Y = Add (s, z) }"""
    check_rewrite(MERGE, text, text, 0)


def context():
    from infconv.passes import Context

    return Context()


def test_what_it_makes_has_its_shape() -> None:
    model = parse("""
        m (float[batch, 2] x) => (float[batch, 2] y, float[batch, 1] z)
        <float[2, 2] v = {1, 2, 3, 4}, float[2, 1] w = {5, 6}, float[2] b = {7, 8}, float[1] c = {9}>
        { p = MatMul(x, v)
          y = Add(p, b)
          q = MatMul(x, w)
          z = Add(q, c) }""")
    assert apply(MERGE, model) == 1
    assert [str(node.outputs[0].shape) for node in model.graph][:2] == ["[batch,3]", "[batch,3]"]
    assert apply(InferShapes(), model) == 0
