"""Einsum taken apart."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.passes.lower_einsum import LowerEinsum
from tests.helpers import apply, check_refusal, check_rewrite, check_same_outputs, parse

LOWER = LowerEinsum()
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 1}


def model(equation: str, sizes: dict[str, int] = SIZES) -> str:
    """Return an Einsum of inputs with these sizes; an upper-case index has a dynamic one."""
    terms, _, result = equation.partition("->")
    types = [f"float[{', '.join(str(sizes.get(label, label)) for label in t)}]" for t in [*terms.split(","), result]]
    *types, output = [kind.replace("[]", "") for kind in types]
    inputs = ", ".join(f"{kind} X{i}" for i, kind in enumerate(types))
    names = ", ".join(f"X{i}" for i in range(len(types)))
    return f'm ({inputs}) => ({output} Y) {{ Y = Einsum <equation = "{equation}"> ({names}) }}'


def after(equation: str, body: str, constants: str = "") -> str:
    return f"{model(equation).partition('{')[0]} {constants} {{ {body} }}"


@pytest.mark.parametrize(
    ("equation", "body", "constants"),
    [
        ("ab,bc->ac", "Y = MatMul (X0, X1)", ""),
        ("Hab,Hcb->Hac", "t = Transpose <perm = [0, 2, 1]> (X1) Y = MatMul (X0, t)", ""),
        ("Hab,Hac->Hbc", "t = Transpose <perm = [0, 2, 1]> (X0) Y = MatMul (t, X1)", ""),
        ("ab,ab->ab", "Y = Mul (X0, X1)", ""),
        (
            "a,b->ab",
            "u = Unsqueeze (X0, one) v = Unsqueeze (X1, zero) Y = Mul (u, v)",
            "<int64[1] one = {1}, int64[1] zero = {0}>",
        ),
        ("abc->ca", "s = ReduceSum <keepdims = 0> (X0, one) Y = Transpose <perm = [1, 0]> (s)", "<int64[1] one = {1}>"),
        ("ab->ba", "Y = Transpose <perm = [1, 0]> (X0)", ""),
        # One dynamic size is what Reshape works out.
        (
            "Aac,cbd->Aabd",
            "r = Reshape (X0, in0) w = Reshape (X1, in1) m = MatMul (r, w) Y = Reshape (m, out)",
            "<int64[2] in0 = {-1, 4}, int64[2] in1 = {4, 15}, int64[4] out = {-1, 2, 3, 5}>",
        ),
    ],
)
def test_each_kind(equation: str, body: str, constants: str) -> None:
    check_rewrite(LOWER, model(equation), after(equation, body, constants), 1)


def test_an_equation_without_result() -> None:
    text = 'm (float[2, 3] X, float[3, 4] Z) => (float[2, 4] Y) { Y = Einsum <equation = "ij, jk"> (X, Z) }'
    check_rewrite(LOWER, text, "m (float[2, 3] X, float[3, 4] Z) => (float[2, 4] Y) { Y = MatMul (X, Z) }", 1)


@pytest.mark.parametrize("seed", range(30))
def test_random_equations(seed: int) -> None:
    rng = random.Random(seed)
    labels = "abcde"[: rng.randint(2, 5)]
    terms = ["".join(rng.sample(labels, rng.randint(1, len(labels)))) for _ in range(rng.randint(1, 3))]
    used = sorted(set("".join(terms)))
    equation = f"{','.join(terms)}->{''.join(rng.sample(used, rng.randint(0, len(used))))}"
    lowered = parse(model(equation))
    before = ir.to_proto(lowered)
    assert apply(LOWER, lowered) == 1, equation
    result = ir.to_proto(lowered)
    onnx.checker.check_model(result, full_check=True)
    generator = np.random.default_rng(seed)
    shapes = [[SIZES[label] for label in term] for term in terms]
    inputs = {f"X{i}": generator.uniform(0, 1, shape).astype(np.float32) for i, shape in enumerate(shapes)}
    check_same_outputs(before, result, inputs)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'm (float[2, 3] X, float[3, 4] Z) => (float[2, 4] Y) { Y = Einsum <equation = "...j,jk->...k"> (X, Z) }',
            "the equation '...j,jk->...k' has an ellipsis",
        ),
        (
            'm (float[3, 3] X) => (float[3] Y) { Y = Einsum <equation = "ii->i"> (X) }',
            "the equation 'ii->i' repeats an index within a term",
        ),
        (model("ABc,cd->ABd"), "the sizes of the indices ['A', 'B'] are not known"),
        (
            'm (float[2, 3] X, float[1, 4] Z) => (float[2, 4] Y) { Y = Einsum <equation = "ij,jk->ik"> (X, Z) }',
            "the index 'j' has the sizes 3 and 1",
        ),
    ],
)
def test_what_stays(text: str, reason: str) -> None:
    check_refusal(LOWER, text, reason)


def test_an_unknown_rank_stays() -> None:
    text = "m (float[2, 3] X, int64[2] t) => (float[3, 2] Y)"
    text += '{ a = Reshape (X, t) Y = Einsum <equation = "ij->ji"> (a) }'
    check_refusal(LOWER, text, "'a' is not known to have the 2 axes 'ij'", infer=False)
