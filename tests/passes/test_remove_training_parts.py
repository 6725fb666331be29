"""Dropout goes, what really trains is kept and named."""

from __future__ import annotations

import pytest

from infconv.passes import Context
from infconv.passes.remove_training_parts import RemoveTrainingParts
from tests.helpers import check_rewrite, parse

PLAIN = "m (float[2] x) => (float[2] y) { a = Exp(x) y = Neg(a) }"


@pytest.mark.parametrize(
    ("opset", "dropout"),
    [
        (7, "Dropout <ratio = 0.3> (a)"),
        (10, "Dropout (a)"),
        (13, "Dropout (a)"),
        (13, "Dropout (a, r)"),
        (13, "Dropout (a, r, f)"),
        (13, "Dropout (a, zero, t)"),
    ],
)
def test_dropout_in_inference(opset: int, dropout: str) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    constants = "<float r = {0.5}, float zero = {0}, bool f = {0}, bool t = {1}>"
    check_rewrite(
        RemoveTrainingParts(),
        f"{header} m (float[2] x) => (float[2] y) {constants} {{ a = Exp(x) d = {dropout} y = Neg(d) }}",
        f"{header} {PLAIN}",
        changes=1,
    )


def test_an_output_keeps_its_name() -> None:
    check_rewrite(
        RemoveTrainingParts(),
        "m (float[2] x) => (float[2] y, float[2] z) { y = Dropout(x) a = Exp(x) z = Dropout(a) }",
        "m (float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Exp(x) }",
        changes=2,
    )


def test_a_used_mask_is_all_true() -> None:
    check_rewrite(
        RemoveTrainingParts(),
        "m (float[n] x) => (float[n] y, bool[n] m) { y, m = Dropout(x) }",
        """m (float[n] x) => (float[n] y, bool[n] m)
        { s = Shape(x) m = ConstantOfShape <value = bool[1] {1}> (s) y = Identity(x) }""",
        changes=1,
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "m (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }",
            "training_mode is true",
        ),
        ("m (float[2] x, float r, bool t) => (float[2] y) { y = Dropout(x, r, t) }", "decided by 't' at run time"),
        (
            """<ir_version: 7, opset_import: ["" : 10]>
            m (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout(x) }""",
            "its mask is used, which opset 10 does not define",
        ),
        (
            """m (float[2, 3] x, float[3] s, float[3] b, float[3] mean, float[3] var) => (float[2, 3] y)
            { y, m, v = BatchNormalization <training_mode = 1> (x, s, b, mean, var) }""",
            "training_mode is 1, it normalizes by its batch",
        ),
        (
            """<ir_version: 7, opset_import: ["" : 9]>
            m (float[2, 3] x, float[3] s, float[3] b, float[3] mean, float[3] var) => (float[2, 3] y)
            { y, m, v, saved_m, saved_v = BatchNormalization (x, s, b, mean, var) }""",
            "its running statistics are outputs, so it trains",
        ),
    ],
)
def test_what_trains_is_kept_and_named(text: str, reason: str) -> None:
    context = Context()
    assert RemoveTrainingParts().run(parse(text), context) == 0
    assert len(context.notes) == 1
    assert reason in context.notes[0]


def test_branches_are_cleaned_too() -> None:
    check_rewrite(
        RemoveTrainingParts(),
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) { o = Dropout(x) },
                      else_branch = e () => (float[2] o) { a = Dropout(x) o = Neg(a) }> }""",
        """m (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] o) { o = Identity(x) },
                      else_branch = e () => (float[2] o) { o = Neg(x) }> }""",
        changes=2,
    )
