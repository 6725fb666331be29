"""`lower-precision`: what becomes FP16 or BF16, what stays FP32 and why, and that the result is always valid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infconv.errors import UnsupportedError
from infconv.model import load, save
from infconv.passes import Context
from infconv.quantize._min_cut import INFINITE, Network
from infconv.quantize._schemas import Schemas
from infconv.quantize.lower_precision import LowerPrecision
from tests.helpers import check_rewrite, parse, random_inputs, run

HALF = ir.DataType.FLOAT16
FP32 = ir.DataType.FLOAT


def at_opset(opset: int, text: str) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}'


def lower(
    text: str | ir.Model, step: LowerPrecision | None = None, context: Context | None = None
) -> tuple[ir.Model, onnx.ModelProto]:
    """Lower a model and check what must hold for every result: it is valid, and a second run changes nothing.

    With samples the second run would measure the first one's result, and may lower what that kept.
    """
    step = step or LowerPrecision()
    model = parse(text, infer=False) if isinstance(text, str) else text
    step.run(model, context or Context())
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert step.run(model, Context(context.target if context else "onnx")) == 0 or (context and context.samples)
    return model, proto


def types(model: ir.Model) -> dict[str, str]:
    """Return value name -> type, of everything that nodes of all graphs write."""
    known = Schemas(model).types(model)
    return {str(v.name): dtype.name for n in model.graph.all_nodes() for v in n.outputs if (dtype := known[v])}


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def reasons(text: str, context: Context | None = None, step: LowerPrecision | None = None) -> dict[str, str]:
    """Return the output name of each node that stays FP32 -> the reason."""
    plan = (step or LowerPrecision()).plan(parse(text, infer=False), context or Context())
    return {str(node.outputs[0].name): d.reason for node, d in plan.decisions.items() if d.dtype == FP32}


def check_close(
    text: str, inputs: Mapping[str, np.ndarray] | None = None, tolerance: float = 1e-2, context: Context | None = None
) -> ir.Model:
    """Lower the model, run both in ONNX Runtime, and compare; return the lowered one."""
    before = ir.to_proto(parse(text, infer=False))
    model, after = lower(text, context=context)
    feed = dict(inputs) if inputs is not None else random_inputs(before)
    expected, actual = run(before, feed), run(after, feed)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert np.isfinite(actual[name]).all()
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance * float(np.abs(value).max()))
    return model


def weight(*shape: int, scale: float = 1.0) -> str:
    """Return a tensor literal."""
    values = np.random.default_rng(7).normal(size=shape) * scale
    return ", ".join(f"{v:.6g}" for v in values.ravel())


W = f"float[4, 4] w = {{{weight(4, 4)}}}"
MATMUL = f"""m (float[n, 4] x) => (float[n, 4] y) <{W}> {{ y = MatMul(x, w) }}"""


# --- the border ------------------------------------------------------------------------------------------------------


def test_weights_are_cast_offline_and_the_interface_stays_fp32() -> None:
    check_rewrite(
        LowerPrecision(),
        "m (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }",
        """m (float[2, 2] x) => (float[2, 2] y)
           <float16[2, 2] w = {15360, 16384, 16896, 17408}>
           { h = Cast<to=10>(x)
             p = MatMul(h, w)
             y = Cast<to=1>(p) }""",
        changes=3,
        tolerance="fp16",
    )


def test_io_follow_gives_fp16_inputs_and_outputs() -> None:
    model, _ = lower(MATMUL, LowerPrecision(io="follow"))
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [HALF, HALF]
    assert operators(model) == ["MatMul"]


def test_an_output_that_is_also_read_keeps_its_name_and_type() -> None:
    text = f"""m (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) <{W}>
               {{ y = MatMul(x, w)  z = MatMul(y, w) }}"""
    model = check_close(text)
    assert operators(model) == ["Cast", "MatMul", "Cast", "MatMul", "Cast"]
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [("y", FP32), ("z", FP32)]


def test_an_input_that_is_an_output_stays_as_it_is() -> None:
    model, _ = lower(f"m (float[n, 4] x) => (float[n, 4] x, float[n, 4] y) <{W}> {{ y = MatMul(x, w) }}")
    assert model.graph.outputs[0] is model.graph.inputs[0]


def test_an_initializer_that_is_an_output_stays_fp32_beside_its_narrow_copy() -> None:
    text = f"m (float[n, 4] x) => (float[n, 4] y, float[4, 4] w) <{W}> {{ y = MatMul(x, w) }}"
    model = check_close(text)
    assert {name: v.dtype for name, v in model.graph.initializers.items()} == {"w": FP32, "w_float16": HALF}


def test_a_default_of_an_input_follows_it() -> None:
    text = f"m (float[2, 4] x, float[4, 4] w) => (float[2, 4] y) <{W}> {{ y = MatMul(x, w) }}"
    model, _ = lower(text, LowerPrecision(io="follow"))
    default = model.graph.initializers["w"].const_value
    assert default is not None
    assert default.dtype == HALF
    kept, _ = lower(text)
    assert kept.graph.initializers["w"].dtype == FP32, "an overridable weight is part of the interface"


# --- what the operators allow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [8, 11, 13, 17, 21, 22])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_types_of_every_opset_are_respected(opset: int, dtype: Literal["float16", "bfloat16"]) -> None:
    text = at_opset(
        opset,
        f"""m (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
            <float[2, 3, 1, 1] w = {{{weight(2, 3, 1, 1)}}}, float[2] s = {{1, 2}}, float[2] v = {{1, 0.0000001}}>
            {{ c = Conv(x, w)
               n = BatchNormalization(c, s, s, s, v)
               r = Relu(n)
               y = Tanh(r) }}""",
    )
    step, context = LowerPrecision(dtype=dtype), Context()
    if dtype == "bfloat16" and opset < 13:
        with pytest.raises(UnsupportedError, match=f"BF16 needs opset 13 or later; the model has opset {opset}"):
            step.run(parse(text, infer=False), context)
        return
    model, _ = lower(text, step, context)
    if dtype == "bfloat16" and opset < 22:
        assert types(model)["c"] == "FLOAT"
        assert "Conv of opset 17 has no BF16 form (opset 22 has)" in str(context.notes).replace(f" {opset} ", " 17 ")
        return
    assert types(model)["c"] == dtype.upper()
    normalization = next(n for n in model.graph if n.op_type == "BatchNormalization")
    variance = normalization.inputs[4]
    assert variance is not None
    assert variance.dtype == FP32, "a variance of 1e-7 is none in FP16"
    x = normalization.inputs[0]
    assert x is not None
    assert x.dtype == (FP32 if opset < 14 else ir.DataType[dtype.upper()]), "one type for everything before opset 14"


def test_scales_of_resize_and_boxes_of_non_max_suppression_stay_fp32() -> None:
    model, _ = lower(
        f"""m (float[1, 3, 4, 4] x, float[1, 6, 4] boxes) => (float[1, 2, 8, 8] y, int64[k, 3] kept)
            <float[2, 3, 1, 1] w = {{{weight(2, 3, 1, 1)}}}, float[4] scales = {{1, 1, 2, 2}},
                int64[3] to = {{1, 2, -1}}>
            {{ c = Conv(x, w)
               y = Resize<mode="linear">(c, , scales)
               f = Reshape(c, to)
               p = Softmax(f)
               q = Slice(p, zero, six, last)
               kept = NonMaxSuppression(boxes, q, ten) }}""".replace(
            "int64[3] to",
            "int64[1] zero = {0}, int64[1] six = {6}, int64[1] last = {2}, int64 ten = {10}, int64[3] to",
        )
    )
    by_type = {node.op_type: node for node in model.graph}
    assert [v and v.dtype for v in by_type["Resize"].inputs] == [HALF, None, FP32]
    assert [v and v.dtype for v in by_type["NonMaxSuppression"].inputs[:2]] == [FP32, FP32]


def test_top_k_and_arg_max_give_the_same_indices() -> None:
    text = f"""m (float[n, 4] x) => (int64[n, 2] i, int64[n, 1] j) <{W}, int64[1] k = {{2}}>
               {{ h = MatMul(x, w)  v, i = TopK(h, k)  j = ArgMax<axis=-1>(h) }}"""
    model = check_close(text)
    assert operators(model) == ["Cast", "MatMul", "TopK", "ArgMax"]


def test_attributes_that_name_a_type_follow() -> None:
    model, _ = lower(
        f"""m (float[4, 4] x, int64[2] shape) => (float[4, 4] y) <{W}>
            {{ h = MatMul(x, w)
               r = RandomNormal<shape=[4, 4]>()
               u = RandomUniformLike<dtype=1>(h)
               e = ConstantOfShape<value = float[1] {{0.5}}>(shape)
               a = Add(h, r)
               b = MatMul(a, u)
               s = Concat<axis=0>(shape, shape)
               y = MatMul(b, w) }}"""
    )
    assert {types(model)[name] for name in ("h", "r", "u", "a", "b")} == {"FLOAT16"}


def test_quantized_weights_are_dequantized_to_fp16_and_scales_agree() -> None:
    model, _ = lower(
        at_opset(
            19,
            """m (float[2, 2] x) => (float[2, 2] y)
               <int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}>
               { xq = QuantizeLinear(x, s, z)
                 xd = DequantizeLinear(xq, s, z)
                 w = DequantizeLinear(q, s, z)
                 y = MatMul(xd, w) }""",
        )
    )
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            floats = {v.dtype for v in (*node.inputs, *node.outputs) if v and v.dtype in {HALF, FP32}}
            assert len(floats) == 1
    assert types(model)["w"] == "FLOAT16"


def test_other_domains_functions_and_double_are_left_alone() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "local" : 1, "com.microsoft" : 1]>'
        f"""m (float[4, 4] x, double[4, 4] d) => (float[4, 4] y, double[4, 4] e) <{W}>
            {{ a = MatMul(x, w)
               b = local.Twice(a)
               c = com.microsoft.FastGelu(b)
               y = MatMul(c, w)
               e = MatMul(d, d) }}"""
        '<domain: "local", opset_import: ["" : 20]> Twice (v) => (u) { u = Add(v, v) }'
    )
    model = ir.from_proto(proto)
    LowerPrecision().run(model, Context())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    result = run(ir.to_proto(model), {"x": np.ones((4, 4), np.float32), "d": np.ones((4, 4))})
    assert result["e"].dtype == np.float64
    assert "is not a standard operator" in str(reasons_of(model))
    assert [node.op_type for node in model.graph if node.inputs[0] and node.inputs[0].dtype == HALF].count(
        "MatMul"
    ) == 2


def reasons_of(model: ir.Model) -> list[str]:
    return [decision.reason for decision in LowerPrecision().plan(model, Context()).decisions.values()]


# --- sensitive operators ---------------------------------------------------------------------------------------------

RMS_NORM = f"""m (float[2, 8] x) => (float[2, 8] y)
    <float[8, 8] w = {{{weight(8, 8)}}}, float two = {{2}}, float eps = {{0.000001}}, int64[1] last = {{-1}}>
    {{ h = MatMul(x, w)
       square = Pow(h, two)
       mean = ReduceMean(square, last)
       shifted = Add(mean, eps)
       root = Sqrt(shifted)
       inverse = Reciprocal(root)
       normed = Mul(h, inverse)
       y = MatMul(normed, w) }}"""


def test_an_rms_norm_whose_squares_overflow_fp16_stays_right() -> None:
    x = np.full((2, 8), 300.0, np.float32)
    x[1] = 0.0
    model = check_close(RMS_NORM, {"x": x})
    assert operators(model).count("Cast") == 4, "in, into the norm, out of it, out"
    assert "grows faster than its argument" in reasons(RMS_NORM)["square"]


def test_layer_normalization_computes_in_fp32_inside_whatever_its_activations_are() -> None:
    text = f"""m (float[2, 8] x) => (float[2, 8] y)
               <float[8, 8] w = {{{weight(8, 8)}}}, float[8] one = {{1,1,1,1,1,1,1,1}}>
               {{ h = MatMul(x, w)  n = LayerNormalization(h, one)  y = MatMul(n, w) }}"""
    model = check_close(text, {"x": np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32) * 5000})
    assert operators(model) == ["Cast", "MatMul", "LayerNormalization", "MatMul", "Cast"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("ReduceSum(h)", "adds up many elements"),
        ("Exp(h)", "leaves the range of FP16"),
        ("Div(one, h)", "divisor can become zero in FP16"),
        ("Sin(h)", "error of phase"),
        ("LpNormalization(h)", "squares and averages"),
    ],
)
def test_sensitive_operators_stay_fp32_with_their_reason(node: str, reason: str) -> None:
    text = f"""m (float[4, 4] x) => (float[4, 4] y) <{W}, float one = {{1}}>
               {{ h = MatMul(x, w)  s = {node}  y = MatMul(s, w) }}""".replace("ReduceSum(h)", "CumSum(h, axis)")
    text = text.replace("float one = {1}", "float one = {1}, int64 axis = {0}")
    assert reason in reasons(text)["s"]
    lower(text)


def test_positions_stay_fp32_up_to_the_rotation() -> None:
    text = f"""m (float[1, 3, 4] x, int64[1, 3] ids) => (float[1, 3, 4] y)
        <{W}, float[1, 4] frequencies = {{1, 0.1, 0.01, 0.001}}, int64[1] last = {{-1}}>
        {{ positions = Cast<to=1>(ids)
           column = Unsqueeze(positions, last)
           angles = MatMul(column, frequencies)
           cosine = Cos(angles)
           h = MatMul(x, w)
           turned = Mul(h, cosine)
           y = MatMul(turned, w) }}"""
    inputs = {"x": np.ones((1, 3, 4), np.float32), "ids": np.array([[4095, 8191, 70001]])}
    model = check_close(text, inputs)
    assert types(model)["angles"] == "FLOAT"
    assert types(model)["turned"] == "FLOAT16"


def test_a_cast_of_integers_goes_straight_to_fp16() -> None:
    text = f"""m (float[2, 4] x, int64[2, 4] mask) => (float[2, 4] y) <{W}>
               {{ h = MatMul(x, w)  f = Cast<to=1>(mask)  p = Mul(h, f)  y = MatMul(p, w) }}"""
    model = check_close(text)
    assert types(model)["f"] == "FLOAT16"
    assert operators(model).count("Cast") == 3


def test_a_cast_to_the_same_type_is_never_left() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}>
               {{ a = Cast<to=1>(x)  b = Cast<to=10>(a)  c = Cast<to=1>(b)  h = MatMul(c, w)  y = Cast<to=1>(h) }}"""
    model = check_close(text)
    assert [(n.op_type, n.attributes["to"].as_int()) for n in model.graph if n.op_type == "Cast"] == [
        ("Cast", 10),
        ("Cast", 1),
    ]


def test_the_user_keeps_nodes_by_name_pattern_and_operator() -> None:
    text = f"""m (float[4, 4] x) => (float[4, 4] y) <{W}>
               {{ [first] a = MatMul(x, w)  [block_1_fc] b = MatMul(a, w)  c = Tanh(b)  y = MatMul(c, w) }}"""
    context = Context()
    kept = reasons(text, context, LowerPrecision(keep=("first", "block_*_fc", "op:Tanh", "typo")))
    assert kept == {
        "a": "named by the user (first)",
        "b": "named by the user (block_*_fc)",
        "c": "named by the user (op:Tanh)",
    }
    assert context.notes == ["lower-precision: keep 'typo' names no node of the model."]


# --- constants -------------------------------------------------------------------------------------------------------


def test_a_weight_beyond_the_range_keeps_its_reader_in_fp32() -> None:
    text = f"""m (float[n, 4] x) => (float[n, 4] y) <{W}, float[4, 4] big = {{{weight(4, 4, scale=1e5)}}}>
               {{ h = MatMul(x, w)  y = MatMul(h, big) }}"""
    context = Context()
    assert "'big' has values up to" in reasons(text, context)["y"]
    assert "'big'" in context.notes[0]
    model = check_close(text)
    assert model.graph.initializers["big"].dtype == FP32
    assert model.graph.initializers["w"].dtype == HALF


def test_a_weight_that_vanishes_keeps_its_reader_in_fp32() -> None:
    text = f"""m (float[n, 4] x) => (float[n, 4] y) <{W}, float[4, 4] tiny = {{{weight(4, 4, scale=1e-8)}}}>
               {{ h = MatMul(x, w)  y = MatMul(h, tiny) }}"""
    assert "'tiny' is too small for FP16" in reasons(text)["y"]
    check_close(text)


def test_a_few_vanishing_elements_do_not_matter() -> None:
    model, _ = lower(MATMUL.replace(weight(4, 4).split(", ")[3], "1e-9"))
    assert types(model)["y_float16"] == "FLOAT16"


def test_a_constant_of_both_types_is_cast_once_and_tied_weights_stay_tied() -> None:
    text = f"""m (float[4, 4] x) => (float[4, 4] y) <{W}>
               {{ k = Constant<value = float[4] {{1, 2, 3, 4}}>()
                  a = MatMul(x, w)  b = MatMul(a, w)  c = Add(b, k)
                  d = Pow(c, k)  e = Exp(w)  f = Mul(d, e)  y = MatMul(f, w) }}"""
    model, _ = lower(text)
    assert {name: v.dtype for name, v in model.graph.initializers.items()} == {"w": FP32, "w_float16": HALF}
    assert operators(model).count("Constant") == 2
    narrow = model.graph.initializers["w_float16"]
    assert [node.op_type for node in narrow.consumers()] == ["MatMul"] * 3


def attention(mask: str, constant: str = "-3.4028235e38") -> str:
    return f"""m (float[2, 4] x, bool[2, 2] seen, int64[2, 2] padding) => (float[2, 4] y)
        <{W}, float zero = {{0}}, float one = {{1}}, float huge = {{{constant}}}>
        {{ q = MatMul(x, w)
           t = Transpose(q)
           raw = MatMul(q, t)
           {mask}
           p = Softmax(scores)
           y = MatMul(p, q) }}"""


WHERE = "bias = Where(seen, zero, huge)  scores = Add(raw, bias)"
TWICE = "bias = Where(seen, zero, huge)  once = Add(raw, bias)  scores = Add(once, bias)"
PRODUCT = "f = Cast<to=1>(padding)  g = Sub(one, f)  bias = Mul(g, huge)  scores = Add(raw, bias)"
SELECT = "scores = Where(seen, raw, huge)"


@pytest.mark.parametrize("mask", [WHERE, TWICE, PRODUCT, SELECT])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("measured", [True, False])
def test_huge_masks_are_limited_and_rows_without_any_key_are_no_nan(mask: str, scale: float, measured: bool) -> None:
    inputs = {
        "x": np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32) * scale,
        "seen": np.array([[True, False], [False, False]]),
        "padding": np.array([[1, 0], [0, 0]]),
    }
    text = attention(mask)
    before, context = ir.to_proto(parse(text)), Context(samples=[inputs] if measured else ())
    model, after = lower(text, context=context)
    assert "NaN" not in str(context.notes)
    expected, actual = run(before, inputs)["y"], run(after, inputs)["y"]
    assert np.isfinite(actual).all()
    if mask is not TWICE:  # two masks on one key are -inf in FP32 already
        np.testing.assert_allclose(actual[0], expected[0], rtol=0.05, atol=0.05 * np.abs(expected[0]).max())
    if scale == 1.0 and mask is WHERE:
        assert types(model)["bias"] == types(model)["scores"] == "FLOAT16"


MASKED = {
    "x": np.eye(2, 4, dtype=np.float32),
    "seen": np.array([[True, False], [False, True]]),
    "padding": np.ones((2, 2), np.int64),
}


def test_an_infinite_mask_stays_infinite() -> None:
    proto = ir.to_proto(parse(attention(SELECT)))
    huge = next(tensor for tensor in proto.graph.initializer if tensor.name == "huge")
    huge.CopyFrom(onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), "huge"))
    model, after = lower(ir.from_proto(proto))
    np.testing.assert_allclose(run(after, MASKED)["y"], run(proto, MASKED)["y"], atol=1e-2)
    assert types(model)["scores"] == "FLOAT16"


def test_a_mask_that_an_output_shows_is_not_changed() -> None:
    text = attention(WHERE).replace("=> (float[2, 4] y)", "=> (float[2, 4] y, float[2, 2] bias)")
    _, after = lower(text)
    assert run(after, MASKED)["bias"].min() == np.finfo(np.float32).min
    assert "beyond the range" in reasons(text)["bias"]


def test_the_bounds_of_a_clip_saturate() -> None:
    text = f"""m (float[n, 4] x) => (float[n, 4] y) <{W}, float low = {{0}}, float high = {{3.4e38}}>
               {{ h = MatMul(x, w)  c = Clip(h, low, high)  y = MatMul(c, w) }}"""
    model = check_close(text)
    assert types(model)["c"] == "FLOAT16"


# --- ranges seen on samples ------------------------------------------------------------------------------------------


def test_activations_beyond_the_range_keep_their_nodes_in_fp32() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y)
               <float[4, 4] w = {{{", ".join(["0.5"] * 16)}}}, float k = {{0.0001}}>
               {{ a = MatMul(x, w)  b = MatMul(a, w)  c = Mul(b, k)  d = MatMul(c, w)  y = MatMul(d, w) }}"""
    x = np.full((2, 4), 20000.0, np.float32)
    kept = reasons(text, Context(samples=[{"x": x}]))
    assert set(kept) == {"a", "b", "c"}
    assert "'a' reaches" in kept["a"]
    model = check_close(text, {"x": x}, context=Context(samples=[{"x": x}]))
    assert types(model)["d"] == "FLOAT16"


def test_large_logits_are_computed_in_fp32() -> None:
    text = attention("scores = Identity(raw)")
    inputs = {
        "x": np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32) * 8,
        "seen": np.ones((2, 2), bool),
        "padding": np.ones((2, 2), np.int64),
    }
    kept = reasons(text, Context(samples=[inputs]))
    assert {"raw", "scores", "p"} <= set(kept)
    assert "rounding them changes probabilities" in kept["raw"]


def test_a_sample_that_does_not_fit_is_said() -> None:
    context = Context(samples=[{"x": np.ones((2, 5), np.float32)}])
    lower(MATMUL, context=context)
    assert "no activation ranges: the model did not run on the samples" in context.notes[0]


# --- casts -----------------------------------------------------------------------------------------------------------


def test_a_residual_chain_around_a_kept_node_has_the_fewest_casts() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}, int64[2] s = {{4, 2}}, int64[2] r = {{2, 4}}>
               {{ a = MatMul(x, w)
                  e = Exp(a)
                  f = Reshape(e, s)
                  g = Transpose(f)
                  h = Reshape(g, r)
                  i = Exp(h)
                  j = MatMul(i, w)
                  y = Add(j, a) }}"""
    model, _ = lower(text)
    assert {types(model)[name] for name in "efghi"} == {"FLOAT"}, "movement between FP32 nodes stays FP32"
    assert operators(model).count("Cast") == 4


def test_one_cast_serves_all_readers() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y) <{W}>
               {{ a = MatMul(x, w)  b = Exp(a)  c = Log(a)
                  d = CumSum(a, zero)  e = Add(b, c)  f = Add(e, d)  y = MatMul(f, w) }}"""
    model, _ = lower(text.replace("float[4, 4] w", "int64 zero = {0}, float[4, 4] w"))
    assert operators(model).count("Cast") == 4


def test_the_minimum_cut_is_the_largest_of_the_cheapest() -> None:
    network = Network()
    a, b, c = network.vertex(), network.vertex(), network.vertex()
    network.edge(Network.SOURCE, a, INFINITE)
    network.differ([a, b], 5)
    network.differ([b, c], 5)
    network.edge(c, Network.SINK, INFINITE)
    assert network.source_side() == {Network.SOURCE, a, b}


# --- subgraphs -------------------------------------------------------------------------------------------------------


def test_both_branches_of_an_if_are_lowered() -> None:
    text = f"""m (float[2, 4] x, bool c) => (float[2, 4] y) <{W}>
        {{ h = MatMul(x, w)
           i = If (c) <then_branch = t () => (float[2, 4] p) {{ p = MatMul(h, w) }},
                       else_branch = e () => (float[2, 4] q) {{ q = Exp(h) }}>
           y = MatMul(i, w) }}"""
    for condition in (True, False):
        model = check_close(text, {"x": np.eye(2, 4, dtype=np.float32), "c": np.array(condition)})
    assert types(model)["i"] == types(model)["p"] == "FLOAT16"
    assert types(model)["q"] == "FLOAT", "the sensitive operator in the branch; its result is cast there"


def test_a_loop_carries_one_type() -> None:
    text = f"""m (float[2, 4] x) => (float[2, 4] y, float[k, 2, 4] all)
               <float[4, 4] w = {{{weight(4, 4, scale=0.3)}}}, int64 n = {{3}}, bool go = {{1}}>
        {{ h = MatMul(x, w)
           last, all = Loop (n, go, h) <body = b (int64 i, bool cin, float[2, 4] carried)
                => (bool cout, float[2, 4] next, float[2, 4] out)
                {{ cout = Identity(cin)  m1 = MatMul(carried, w)  next = Tanh(m1)  out = Exp(next) }}>
           y = MatMul(last, w) }}"""
    model = check_close(text)
    loop = next(node for node in model.graph if node.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    assert [v.dtype for v in body.outputs[1:]] == [v.dtype for v in loop.outputs] == [HALF, HALF]
    assert body.inputs[2].dtype == HALF


def test_a_scan_in_fp32_is_valid_around_lowered_nodes() -> None:
    text = f"""m (float[3, 4] x) => (float[4] y, float[3, 4] z)
               <float[4, 4] w = {{{weight(4, 4, scale=0.3)}}}, float[4] zero = {{0, 0, 0, 0}}>
        {{ h = MatMul(x, w)
           last, z = Scan<num_scan_inputs = 1, body = b (float[4] s, float[4] e) => (float[4] next, float[4] o)
                {{ a = MatMul(e, w)  next = Add(s, a)  o = Identity(next) }}>(zero, h)
           y = MatMul(last, w) }}"""
    text = text.replace("Scan<num_scan_inputs = 1, body", "Scan (zero, h) <num_scan_inputs = 1, body").replace(
        "}>(zero, h)", "}>"
    )
    check_close(text)
    step = LowerPrecision(keep=("op:Scan",))
    model, proto = lower(text, step)
    assert types(model)["z"] == "FLOAT"
    assert types(model)["a"] == "FLOAT16"
    assert np.isfinite(run(proto, random_inputs(proto))["y"]).all()


# --- large weights ---------------------------------------------------------------------------------------------------


def test_a_large_weight_in_a_file_is_cast_when_it_is_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "m (float[n, 1024] x) => (float[n, 1024] y) <float[1024, 1024] w = {0}> { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>' + text)
    values = rng.normal(size=(1024, 1024)).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.data")
    model = load(tmp_path / "big.onnx")
    assert LowerPrecision().run(model, Context()) == 3
    assert isinstance(model.graph.initializers["w"].const_value, ir.LazyTensor)
    save(model, tmp_path / "half.onnx")
    saved = onnx.numpy_helper.to_array(onnx.load(tmp_path / "half.onnx").graph.initializer[0])
    np.testing.assert_array_equal(saved, values.astype(np.float16))


# --- real exports ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exports() -> dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    """Tiny networks, as torch's exporter writes them."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32), add_pooling_layer=False)
    llama = LlamaModel(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, use_cache=False))
    convnet = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.SiLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.GroupNorm(2, 8),
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    images = torch.randn(2, 3, 16, 16)
    found: dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]] = {}
    subjects: list[tuple[str, torch.nn.Module, dict[str, torch.Tensor]]] = [
        ("bert", bert, {"input_ids": ids, "attention_mask": mask}),
        ("llama", llama, {"input_ids": ids, "attention_mask": mask}),
        ("convnet", convnet, {"input": images}),
    ]
    for name, module, inputs in subjects:
        program = torch.onnx.export(module.eval(), (), kwargs=inputs, dynamo=True, verbose=False)
        assert program is not None
        found[name] = program.model_proto, {k: v.numpy() for k, v in inputs.items()}
    return found


@pytest.mark.parametrize("name", ["bert", "llama", "convnet"])
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_real_exports_stay_within_fp16(
    exports: dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]], name: str, measured: bool, target: str
) -> None:
    proto, inputs = exports[name]
    context = Context(target=target, samples=[inputs] if measured else ())
    model, after = lower(ir.from_proto(proto), context=context)
    expected, actual = run(proto, inputs), run(after, inputs)
    for output, value in expected.items():
        assert np.isfinite(actual[output]).all()
        assert np.abs(actual[output] - value).max() <= 1e-2 * np.abs(value).max()
    products = [n for n in model.graph if n.op_type in {"MatMul", "Gemm", "Conv"}]
    half = [n for n in products if n.outputs[0].dtype == HALF]
    assert len(half) >= len(products) - 1, "all but the rotary frequencies"
