"""GroupNormalization from reshapes, normalization, scale and bias."""

from __future__ import annotations

import pytest

from infconv.passes.fuse_group_norm import FuseGroupNorm
from tests.helpers import check_refusal, check_rewrite

FUSE = FuseGroupNorm()
HEADER = '<ir_version: 10, opset_import: ["" : 21]> '
CONSTANTS = """
<int64[3] into = {0, 2, -1}, int64[3] other = {0, 3, -1}, int64[4] back = {0, 4, 3, 3}, int64[4] turned = {0, 3, 4, 3},
 float[2] ones = {1.0, 1.0}, float[2] zeros = {0.0, 0.0}, float[2] s = {2.0, 3.0}, float[2] t = {0.5, 0.25},
 float[4, 1, 1] w = {1.0, 2.0, 3.0, 4.0}, float[4, 1, 1] b = {5.0, 6.0, 7.0, 8.0}, float[3] along = {1.0, 2.0, 3.0},
 int64[1] last = {-1}, float eps = {0.001}>
"""
TORCH = "g = Reshape (X, into) i = InstanceNormalization <epsilon = 0.001> (g, ones, zeros) "


def model(body: str, constants: str = CONSTANTS, header: str = HEADER) -> str:
    return f"{header}m (float[N, 4, 3, 3] X) => (float[N, 4, 3, 3] Y) {constants} {{ {body} }}"


def group_norm(scale: str, bias: str) -> str:
    constants = f"<float[4] w = {{{scale}}}, float[4] b = {{{bias}}}>"
    return model("Y = GroupNormalization <num_groups = 2, epsilon = 0.001> (X, w, b)", constants)


@pytest.mark.parametrize("back", ["r = Reshape (i, back)", "shape = Shape (X) r = Reshape (i, shape)"])
def test_torch_reshapes_around_instance_norm(back: str) -> None:
    body = f"{TORCH} {back} m = Mul (r, w) Y = Add (m, b)"
    check_rewrite(FUSE, model(body), group_norm("1.0, 2.0, 3.0, 4.0", "5.0, 6.0, 7.0, 8.0"), 3)


def test_a_scale_for_each_group_is_repeated() -> None:
    body = TORCH.replace("ones, zeros", "s, t") + "Y = Reshape (i, back)"
    check_rewrite(FUSE, model(body), group_norm("2.0, 2.0, 3.0, 3.0", "0.5, 0.5, 0.25, 0.25"), 1)


def test_mean_and_variance_of_the_reshaped_input() -> None:
    body = "g = Reshape (X, into) u = ReduceMean (g, last) d = Sub (g, u) q = Mul (d, d) v = ReduceMean (q, last)"
    body += " ve = Add (v, eps) r = Sqrt (ve) n = Div (d, r) Y = Reshape (n, back)"
    check_rewrite(FUSE, model(body), group_norm("1.0, 1.0, 1.0, 1.0", "0.0, 0.0, 0.0, 0.0"), 1)


def test_a_scale_along_other_axes_stays_behind() -> None:
    text = group_norm("1.0, 1.0, 1.0, 1.0", "0.0, 0.0, 0.0, 0.0").replace("Y = Group", "r = Group")
    text = text.replace("(X, w, b)", "(X, w, b) Y = Mul (r, along)")
    text = text.replace("<float[4] w", "<float[3] along = {1.0, 2.0, 3.0}, float[4] w")
    # onnx's shape inference knows nothing of this operator
    check_refusal(FUSE, text, "'along' varies along axes other than the channels", infer=False)


def test_groups_that_do_not_divide_the_channels_stay() -> None:
    constants = "<int64[3] into = {0, 3, -1}, int64[4] back = {0, 4, 3, 3},"
    constants += "float[3] ones = {1.0, 1.0, 1.0}, float[3] zeros = {0.0, 0.0, 0.0}>"
    check_refusal(FUSE, model(TORCH + "Y = Reshape (i, back)", constants), "'X' is reshaped to [0, 3, -1]")


def test_another_shape_at_the_end_stays() -> None:
    body = TORCH + "r = Reshape (i, turned) Y = Transpose <perm = [0, 2, 1, 3]> (r)"
    check_refusal(FUSE, model(body), "the result is not known to have the shape of 'X'")


def test_opset_20_has_another_group_norm() -> None:
    text = model(TORCH + "Y = Reshape (i, back)", header="")
    check_refusal(FUSE, text, "the rule needs opset 21, the model has 20")
