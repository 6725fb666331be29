"""Any opset to any other, computing the same; what cannot be said there is refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from infconv.errors import UnsupportedError
from infconv.passes import Context
from infconv.passes.convert_opset import ConvertOpset
from tests.helpers import apply, check_rewrite, check_same_outputs, parse, random_inputs


def at(opset: int, text: str, ir_version: int = 7) -> str:
    return f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> m {text}'


UP = {
    "axes": (
        at(11, "(float[1, 3] x) => (float[3] y) { s = Squeeze <axes = [0]> (x) y = Relu(s) }"),
        at(17, "(float[1, 3] x) => (float[3] y) <int64[1] a = {0}> { s = Squeeze(x, a) y = Relu(s) }"),
        17,
        2,
    ),
    "reductions": (
        at(12, "(float[2, 3] x) => (float[1, 1] y) { s = ReduceSum <axes = [1]> (x) y = ReduceMean <axes = [0]> (s) }"),
        at(
            18,
            "(float[2, 3] x) => (float[1, 1] y) <int64[1] a = {1}, int64[1] b = {0}>"
            "{ s = ReduceSum(x, a) y = ReduceMean(s, b) }",
        ),
        18,
        3,
    ),
    "a softmax over the last dimension": (
        at(11, "(float[2, 3] x) => (float[2, 3] y) { y = Softmax(x) }"),
        at(13, "(float[2, 3] x) => (float[2, 3] y) { y = Softmax <axis = 1> (x) }"),
        13,
        2,
    ),
    "a softmax over several dimensions": (
        at(11, "(float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax(x) }"),
        at(
            13,
            """(float[2, 3, 4] x) => (float[2, 3, 4] y)
            { f = Flatten <axis = 1> (x) s = Softmax <axis = -1> (f) d = Shape(x) y = Reshape(s, d) }""",
        ),
        13,
        2,
    ),
    "clip": (
        at(7, "(float[3] x) => (float[3] y) { r = Relu(x) y = Clip <min = 1.0, max = 2.0> (r) }"),
        at(13, "(float[3] x) => (float[3] y) <float lo = {1}, float hi = {2}> { r = Relu(x) y = Clip(r, lo, hi) }"),
        13,
        2,
    ),
    "slice, pad and top-k": (
        at(
            7,
            """(float[4] x) => (float[2] y, int64[2] i)
            { s = Slice <starts = [1], ends = [3]> (x)
              p = Pad <pads = [1, 1], value = 5.0> (s)
              y, i = TopK <k = 2> (p) }""",
        ),
        at(
            13,
            """(float[4] x) => (float[2] y, int64[2] i)
            <int64[1] a = {1}, int64[1] b = {3}, int64[2] c = {1, 1}, float d = {5}, int64[1] k = {2}>
            { s = Slice(x, a, b) p = Pad(s, c, d) y, i = TopK(p, k) }""",
        ),
        13,
        4,
    ),
    "upsample": (
        at(
            7,
            """(float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
            { y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]> (x) }""",
        ),
        at(
            13,
            """(float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}, float[0] roi = {}>
            { y = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (x, roi, s) }""",
        ),
        13,
        2,
    ),
    "a resize that shrinks": (
        at(10, "(float[1, 1, 5, 5] x) => (float[1, 1, 2, 2] y) <float[4] s = {1, 1, 0.5, 0.5}> { y = Resize(x, s) }"),
        at(
            13,
            """(float[1, 1, 5, 5] x) => (float[1, 1, 2, 2] y) <float[4] s = {1, 1, 0.5, 0.5}, float[0] roi = {}>
            { y = Resize <nearest_mode = "ceil", coordinate_transformation_mode = "asymmetric"> (x, roi, s) }""",
        ),
        13,
        2,
    ),
    "split": (
        at(11, "(float[4] x) => (float[1] y, float[3] z) { y, z = Split <split = [1, 3]> (x) }"),
        at(18, "(float[4] x) => (float[1] y, float[3] z) <int64[2] s = {1, 3}> { y, z = Split(x, s) }"),
        18,
        2,
    ),
    "equal split": (
        at(13, "(float[4] x) => (float[2] y, float[2] z) { y, z = Split(x) }", 8),
        at(18, "(float[4] x) => (float[2] y, float[2] z) { y, z = Split <num_outputs = 2> (x) }", 8),
        18,
        2,
    ),
    "dropout": (
        at(10, "(float[3] x) => (float[3] y) { y = Dropout <ratio = 0.25> (x) }"),
        at(13, "(float[3] x) => (float[3] y) <float r = {0.25}> { y = Dropout(x, r) }"),
        13,
        2,
    ),
    "scatter": (
        at(9, "(float[3] x, int64[2] i, float[2] u) => (float[3] y) { y = Scatter(x, i, u) }"),
        at(13, "(float[3] x, int64[2] i, float[2] u) => (float[3] y) { y = ScatterElements <axis = 0> (x, i, u) }"),
        13,
        2,
    ),
    "roi align": (
        at(
            10,
            """(float[1, 1, 4, 4] x, float[1, 4] r) => (float[1, 1, 1, 1] y) <int64[1] b = {0}>
            { y = RoiAlign(x, r, b) }""",
        ),
        at(
            16,
            """(float[1, 1, 4, 4] x, float[1, 4] r) => (float[1, 1, 1, 1] y) <int64[1] b = {0}>
            { y = RoiAlign <coordinate_transformation_mode = "output_half_pixel"> (x, r, b) }""",
        ),
        16,
        2,
    ),
    "only the version": (
        at(13, "(float[3] x) => (float[3] y) { y = Relu(x) }"),
        at(20, "(float[3] x) => (float[3] y) { y = Relu(x) }"),
        20,
        1,
    ),
}

DOWN = {
    "axes": (
        at(13, "(float[1, 3] x) => (float[3] y) <int64[1] a = {-2}> { y = Squeeze(x, a) }"),
        at(9, "(float[1, 3] x) => (float[3] y) { y = Squeeze <axes = [0]> (x) }"),
        9,
        2,
    ),
    "a softmax in the middle": (
        at(13, "(float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }"),
        at(
            11,
            """(float[2, 3, 4] x) => (float[2, 3, 4] y)
            { t = Transpose <perm = [0, 2, 1]> (x) s = Softmax <axis = 2> (t) y = Transpose <perm = [0, 2, 1]> (s) }""",
        ),
        11,
        2,
    ),
    "inputs that become attributes": (
        at(
            13,
            """(float[4] x) => (float[2] y, int64[2] i)
            <int64[1] a = {1}, int64[1] b = {3}, int64[2] c = {1, 1}, float d = {5}, int64[1] k = {2}, float hi = {2}>
            { s = Slice(x, a, b) p = Pad(s, c, d) l = Clip(p, , hi) y, i = TopK(l, k) }""",
        ),
        at(
            9,
            """(float[4] x) => (float[2] y, int64[2] i)
            { s = Slice <starts = [1], ends = [3]> (x) p = Pad <pads = [1, 1], value = 5.0> (s)
              l = Clip <max = 2.0> (p) y, i = TopK <k = 2> (l) }""",
        ),
        9,
        5,
    ),
    "an uneven split": (
        at(18, "(float[5] x) => (float[3] y, float[2] z) { y, z = Split <num_outputs = 2> (x) }", 8),
        at(13, "(float[5] x) => (float[3] y, float[2] z) <int64[2] s = {3, 2}> { y, z = Split(x, s) }", 8),
        13,
        2,
    ),
    "a part of a shape": (
        at(15, "(float[2, n, 4] x) => (int64[2] y) { y = Shape <start = 1> (x) }", 8),
        at(
            13,
            """(float[2, n, 4] x) => (int64[2] y) <int64[1] a = {1}, int64[1] b = {9223372036854775807}>
            { s = Shape(x) y = Slice(s, a, b) }""",
            8,
        ),
        13,
        2,
    ),
    "an operator that did not exist": (
        at(14, "(float[3] x) => (float[3] y) { y = HardSwish(x) }"),
        at(13, "(float[3] x) => (float[3] y) { s = HardSigmoid <alpha = 0.166666667, beta = 0.5> (x) y = Mul(x, s) }"),
        13,
        2,
    ),
}


@pytest.mark.parametrize("name", UP)
def test_up(name: str) -> None:
    before, after, opset, changes = UP[name]
    model = check_rewrite(ConvertOpset(to=opset), before, after, changes, infer=False)
    assert model.opset_imports == {"": opset}


@pytest.mark.parametrize("name", DOWN)
def test_down(name: str) -> None:
    before, after, opset, changes = DOWN[name]
    model = check_rewrite(ConvertOpset(to=opset), before, after, changes, infer=False)
    assert model.opset_imports == {"": opset}


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (24, "Swish"),
        (20, 'Gelu <approximate = "tanh">'),
        (18, "Mish"),
        (17, "LayerNormalization"),
        (14, "HardSwish"),
    ],
)
def test_what_the_standard_defines_by_other_operators(opset: int, node: str) -> None:
    scale = ", s" if node == "LayerNormalization" else ""
    model = parse(at(opset, f"(float[2, 8] x, float[8] s) => (float[2, 8] y) {{ y = {node} (x{scale}) }}", 10))
    original = ir.to_proto(model)
    assert apply(ConvertOpset(to=opset - 1), model) == 2
    assert node.split(maxsplit=1)[0] not in [n.op_type for n in model.graph]
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    feed = random_inputs(original)
    expected = ReferenceEvaluator(original).run(None, feed)[0]
    np.testing.assert_allclose(ReferenceEvaluator(after).run(None, feed)[0], expected, rtol=1e-5, atol=1e-6)


def test_the_oldest_opset() -> None:
    """ONNX Runtime does not run opset 6 and below, so that the reference is written in NumPy."""
    before = at(
        6,
        """(float[1, 2, 2, 2] x) => (float[1, 2, 2, 2] y) <float[2] bias = {1, 2}, float[2] slope = {0.5, 0.25}>
        { a = Add <broadcast = 1, axis = 1> (x, bias)
          b = PRelu(a, slope)
          c = Dropout <is_test = 1, ratio = 0.5> (b)
          y = Relu(c) }""",
        3,
    )
    model = ir.from_proto(onnx.parser.parse_model(before))
    for name, value in model.graph.initializers.items():
        if not value.is_graph_input():
            model.graph.inputs.append(model.graph.initializers[name])
    assert apply(ConvertOpset(to=17), model) == 4
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x = random_inputs(proto)["x"]
    a = x + np.array([1, 2], np.float32).reshape(2, 1, 1)
    expected = np.maximum(np.where(a < 0, a * np.array([0.5, 0.25], np.float32).reshape(2, 1, 1), a), 0)
    reference = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    np.testing.assert_allclose(reference, expected, rtol=1e-6)


def test_a_scan_over_batches() -> None:
    before = at(
        8,
        """(float[2, 3] init, float[2, 4, 3] x) => (float[2, 3] last, float[2, 4, 3] sums)
        { last, sums = Scan <num_scan_inputs = 1, directions = [1], body = b (float[3] s, float[3] v)
            => (float[3] t, float[3] u) { t = Add(s, v) u = Identity(t) }> (, init, x) }""",
        3,
    )
    model = parse(before, infer=False)
    original = ir.to_proto(model)
    assert apply(ConvertOpset(to=17), model) == 2
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    check_same_outputs(original, after)


def test_group_normalization_got_a_scale_for_each_channel() -> None:
    text = at(
        18,
        """(float[n, c, 5] x, float[2] s, float[2] b) => (float[n, c, 5] y)
        { y = GroupNormalization <num_groups = 2> (x, s, b) }""",
        8,
    )
    for dims in ("n, c", "n, 4"):
        before = ir.from_proto(onnx.parser.parse_model(text.replace("n, c", dims)))
        original = ir.to_proto(before)
        assert apply(ConvertOpset(to=21), before) == 2
        rng = np.random.default_rng(0)
        shapes = {"x": (2, 4, 5), "s": (2,), "b": (2,)}
        feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        check_same_outputs(original, ir.to_proto(before), feed)


def test_subgraphs_and_functions_are_converted() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 12, "local" : 1]>
        m (float[1, 2] x, bool c) => (float[2] y)
        { a = local.f(x)
          y = If (c) <then_branch = t () => (float[2] o) { o = Squeeze <axes = [0]> (a) },
                      else_branch = e () => (float[2] o) { o = Squeeze <axes = [0]> (x) }> }
        <domain: "local", opset_import: ["" : 12]> f (a) => (b)
        { c = Unsqueeze <axes = [0]> (a) b = Squeeze <axes = [0]> (c) }""",
        infer=False,
    )
    original = ir.to_proto(model)
    assert apply(ConvertOpset(to=17), model) == 5
    assert all(function.opset_imports[""] == 17 for function in model.functions.values())
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    check_same_outputs(original, after)


def test_other_domains_names_and_weights_stay() -> None:
    weights = ir.tensor(np.zeros((1, 1000), np.float32), name="w")
    w = ir.Value(name="w", const_value=weights, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 1000]))
    x = ir.val("x", ir.DataType.FLOAT, [1, 1000])
    add = ir.node("Add", [x, w], name="add", metadata_props={"from": "layer 1"})
    own = ir.node("Op", add.outputs, domain="acme", name="own")
    squeeze = ir.node("Squeeze", own.outputs, {"axes": [0]}, name="squeeze")
    squeeze.outputs[0].type, squeeze.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n"])
    graph = ir.Graph(
        [x], squeeze.outputs, nodes=[add, own, squeeze], initializers=[w], opset_imports={"": 11, "acme": 1}, name="m"
    )
    model = ir.Model(graph, ir_version=6)
    assert apply(ConvertOpset(), model) == 2
    assert model.opset_imports == {"": 17, "acme": 1}
    assert model.ir_version == 8
    assert [node.name for node in model.graph if node.op_type != "Constant"] == ["add", "own", "squeeze"]
    assert model.graph.initializers["w"].const_value is weights
    assert next(iter(model.graph)).metadata_props == {"from": "layer 1"}


@pytest.mark.parametrize(
    ("step", "opset", "result"),
    [
        (ConvertOpset(), 11, 17),
        (ConvertOpset(), 13, 13),
        (ConvertOpset(min=15), 13, 15),
        (ConvertOpset(min=15), 16, 16),
        (ConvertOpset(min=15, to=20), 13, 20),
        (ConvertOpset(min=15, to=20), 16, 16),
        (ConvertOpset(to=14), 16, 14),
    ],
)
def test_which_opset(step: ConvertOpset, opset: int, result: int) -> None:
    model = parse(at(opset, "(float[3] x) => (float[3] y) { y = Relu(x) }"))
    assert apply(step, model) == int(opset != result)
    assert model.opset_imports == {"": result}


REFUSED = [
    (
        at(
            8,
            """(float[2, 3] x) => (float[2, 3] y, float[3] m) <float[3] s = {1, 1, 1}, float[3] b = {0, 0, 0}>
            { y, m, v, sm, sv = BatchNormalization(x, s, b, b, s) }""",
        ),
        17,
        "BatchNormalization cannot move from opset 9 to 14: its statistics are outputs",
    ),
    (
        at(13, "(float[4] x, int64[1] k) => (float[n] y, int64[n] i) { y, i = TopK(x, k) }"),
        9,
        "TopK cannot move from opset 10 to 9: 'k' must be constant there, but is computed",
    ),
    (
        at(14, "(float[2, 3] x) => (float[2, 3] y) <int64 axis = {1}> { y = CumSum(x, axis) }"),
        10,
        "CumSum does not exist in opset 10",
    ),
]


@pytest.mark.parametrize(("text", "opset", "reason"), REFUSED)
def test_what_cannot_be_said_is_refused_by_name(text: str, opset: int, reason: str) -> None:
    model = parse(text)
    untouched = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedError, match=reason):
        apply(ConvertOpset(to=opset), model)
    context = Context()
    assert ConvertOpset(to=opset, required=False).run(model, context) == 0
    assert reason in context.notes[0]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == untouched
