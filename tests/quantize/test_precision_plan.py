"""The precision plan: what its file says, how entries find their nodes again, and that it is followed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml

import infconv
from infconv.errors import UsageError
from infconv.passes import Context
from infconv.quantize._plan_file import NodePlan, PrecisionPlan, plan_of
from infconv.quantize.lower_precision import LowerPrecision
from tests.helpers import parse
from tests.quantize.test_lower_precision import W, operators, types

BLOCK = f"""m (float[n, 4] x) => (float[n, 4] y) <{W}>
    {{ [fc1] a = MatMul(x, w)
       [act] b = Tanh(a)
       [grow] c = Exp(b)
       [fc2] d = MatMul(c, w)
       [act2] e = Tanh(d)
       [fc3] y = MatMul(e, w) }}"""


def plan(tmp_path: Path) -> PrecisionPlan:
    """Return the plan that `lower-precision` leaves beside the artifact."""
    context = Context()
    LowerPrecision().run(parse(BLOCK), context)
    path = tmp_path / "left.yaml"
    path.write_text(context.documents["precision.yaml"])
    return PrecisionPlan.load(path)


def edited(entries: list[NodePlan], tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    PrecisionPlan("fp16", entries).save(path)
    return str(path)


def test_every_node_has_a_type_and_a_reason(tmp_path: Path) -> None:
    assert {entry.node: (entry.type, entry.reason) for entry in plan(tmp_path).nodes} == {
        "fc1": ("float16", "computes in FP16"),
        "act": ("float16", "computes in FP16"),
        "grow": ("float32", "range: its result grows faster than its argument and leaves the range of FP16"),
        "fc2": ("float16", "computes in FP16"),
        "act2": ("float16", "computes in FP16"),
        "fc3": ("float16", "computes in FP16"),
    }


def test_the_file_is_yaml_with_a_line_for_each_node_and_json_is_read_too(tmp_path: Path) -> None:
    whole = plan(tmp_path)
    lines = whole.to_yaml().splitlines()
    assert lines[:2] == ["version: 1", "precision: fp16"]
    assert sum(line.startswith("- {node:") for line in lines) == len(whole.nodes)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(yaml.safe_load(whole.to_yaml())))
    assert PrecisionPlan.load(path) == whole


def test_quantization_parameters_are_kept(tmp_path: Path) -> None:
    parameters = {"input 0": {"scale": 0.02, "zero_point": 3}, "input 1": {"scale": [0.1, 0.2], "axis": 1}}
    whole = PrecisionPlan("int8", [NodePlan("fc1", "int8", "user", quantization=parameters)])
    whole.save(tmp_path / "plan.yaml")
    assert PrecisionPlan.load(tmp_path / "plan.yaml") == whole


# --- which node is which -----------------------------------------------------------------------------------------


def renamed(model: ir.Model) -> ir.Model:
    """Give every node and value another name."""
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
        node.outputs[0].name = f"v{number}"
    model.graph.inputs[0].name = "other"
    return model


def found(whole: PrecisionPlan, model: ir.Model) -> dict[str, str]:
    """Return node -> the node of the entry that was found for it."""
    return {str(node.name): entry.node for node, entry in whole.match(model).entries.items()}


EVERY = {"n0": "fc1", "n1": "act", "n2": "grow", "n3": "fc2", "n4": "act2", "n5": "fc3"}


def test_entries_find_their_nodes_after_everything_was_renamed(tmp_path: Path) -> None:
    assert found(plan(tmp_path), renamed(parse(BLOCK))) == EVERY


def test_entries_find_their_nodes_after_training(tmp_path: Path) -> None:
    trained = renamed(parse(BLOCK))
    trained.graph.initializers["w"].const_value = ir.tensor(np.eye(4, dtype=np.float32))
    assert found(plan(tmp_path), trained) == EVERY


def test_names_decide_where_the_structure_changed(tmp_path: Path) -> None:
    changed = parse(BLOCK.replace("[act] b = Tanh(a)", "[act] s = Sigmoid(a)  b = Relu(s)"))
    assert found(plan(tmp_path), changed) == {name: name for name in ("fc1", "grow", "fc2", "act2", "fc3")}


def test_equal_nodes_are_told_apart_by_their_order() -> None:
    text = "m (float[4] x) => (float[4] y) { a = Relu(x)  b = Relu(x)  y = Add(a, b) }"
    model = parse(text)
    entries = list(plan_of(model, dict.fromkeys(model.graph, ("float16", ""))).values())
    assert len({entry.id for entry in entries}) == 3
    assert entries[1].id == f"{entries[0].id}#2"


def test_a_constant_is_the_same_as_a_node_and_as_an_initializer() -> None:
    as_node = """m (float[4] x) => (float[4] y) { k = Constant<value = float {2}>()  y = Mul(x, k) }"""
    as_value = """m (float[4] x) => (float[4] y) <float k = {2}> { y = Mul(x, k) }"""
    ids: list[str] = []
    for text in (as_node, as_value):
        model = parse(text)
        ids.append(plan_of(model, {model.graph[-1]: ("float16", "")})[model.graph[-1]].id)
    assert ids[0] == ids[1]


# --- following a plan --------------------------------------------------------------------------------------------


def test_a_plan_decides_for_float16_and_for_float32(tmp_path: Path) -> None:
    entries = [NodePlan("grow", "float16"), NodePlan("fc2", "float32")]
    model = parse(BLOCK)
    step = LowerPrecision(precision_plan=edited(entries, tmp_path))
    step.run(model, Context())
    after = types(model)
    assert (after["c"], after["d"]) == ("FLOAT16", "FLOAT")


def test_a_plan_applied_again_gives_the_same_graph(tmp_path: Path) -> None:
    first, second = parse(BLOCK), renamed(parse(BLOCK))
    context = Context()
    LowerPrecision(keep=("act2",)).run(first, context)
    path = tmp_path / "plan.yaml"
    path.write_text(context.documents["precision.yaml"])
    LowerPrecision(precision_plan=str(path)).run(second, Context())
    assert operators(first) == operators(second)
    assert operators(first).count("Cast") == 6


def test_patterns_and_operators_stand_for_many_nodes(tmp_path: Path) -> None:
    entries = [NodePlan("op:Tanh", "float32"), NodePlan("fc[12]", "float32"), NodePlan("act2", "float16")]
    step = LowerPrecision(precision_plan=edited(entries, tmp_path))
    kept = {str(n.name) for n, d in step.plan(parse(BLOCK), Context()).decisions.items() if d.dtype.name == "FLOAT"}
    assert kept == {"fc1", "act", "grow", "fc2"}


def test_a_name_may_look_like_a_pattern(tmp_path: Path) -> None:
    model = parse(BLOCK)
    model.graph[0].name = "fc[0]"
    step = LowerPrecision(precision_plan=edited([NodePlan("fc[0]", "float32")], tmp_path))
    assert step.plan(model, Context()).decisions[model.graph[0]].reason == "user"


def test_integers_and_scales_that_cannot_be_followed_are_told(tmp_path: Path) -> None:
    entries = [NodePlan("fc1", "int8"), NodePlan("fc2", "float16", scale=3)]
    context = Context()
    LowerPrecision(precision_plan=edited(entries, tmp_path)).run(parse(BLOCK), context)
    told = "\n".join(context.notes)
    assert "1 entry of the precision plan has an integer type, for --int8: 'fc1'." in told
    assert "1 entry of the precision plan has another scale than is needed: 'fc2'." in told


def test_entries_that_name_nothing_or_cannot_be_followed_are_told(tmp_path: Path) -> None:
    text = BLOCK.replace("[act] b = Tanh(a)", "[act] b = local.Odd(a)").replace(
        "m (float", '<ir_version: 10, opset_import: ["" : 20, "local" : 1]> m (float'
    )
    text += ' <domain: "local", opset_import: ["" : 20]> Odd (v) => (u) { u = Tanh(v) }'
    entries = [NodePlan("act", "float16"), NodePlan("gone", "float32", op="Conv"), NodePlan("op:LSTM", "float32")]
    context = Context()
    LowerPrecision(precision_plan=edited(entries, tmp_path)).run(ir.from_proto(onnx.parser.parse_model(text)), context)
    told = "\n".join(context.notes)
    assert "2 entries name no node of the model: Conv 'gone', 'op:LSTM'." in told
    assert "1 entry of the precision plan stays FP32 all the same: 'act'." in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: []", "has version None"),
        ("{version: 1, precision: fp12, nodes: []}", "must have `precision`: fp16, bf16, int8, int4"),
        ("{version: 1, precision: fp16, nodes: [], notes: x}", "unknown key 'notes'"),
        ("{version: 1, precision: fp16, nodes: [{node: a, type: float17}]}", "entry 1, has the unknown type 'float17'"),
        ("{version: 1, precision: fp16, nodes: [{node: a, type: int8, why: b}]}", "entry 1, has the unknown key 'why'"),
        ("{version: 1, precision: fp16, nodes: [{node: a}]}", "entry 1, must be a mapping with `node` and `type`"),
        (
            "{version: 1, precision: fp16, nodes: [{node: a, type: float16, scale: 0.5}]}",
            "scale: 0.5; it is a whole number",
        ),
        ("{version: 1, precision: fp16, nodes: [{node: a, type: float16, id: 123}]}", "id: 123, which is not text"),
        ("{version: 1, precision: fp16, nodes: [], facts: [1]}", "`facts` that are no mapping"),
        ("{version: 1, precision: int8, nodes: [], biases: {a: [b]}}", "`biases` that are lists of numbers"),
        (
            "{version: 1, precision: fp16, nodes: [{node: a, type: float16}, {node: a, type: float32}]}",
            "entry 2, is for 'a' like entry 1",
        ),
        ("a: {b", "is not YAML"),
        ("12", "must be a mapping"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_entry(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        PrecisionPlan.load(path)


# --- end to end --------------------------------------------------------------------------------------------------


def test_convert_leaves_a_plan_that_serves_another_target(tmp_path: Path) -> None:
    proto = ir.to_proto(parse(BLOCK))
    onnx.save(proto, tmp_path / "m.onnx")
    first = infconv.convert(tmp_path / "m.onnx", output=tmp_path / "a.onnx", fp16=True, dim={"n": (1, 2)})
    left = tmp_path / "a.onnx.precision.yaml"
    assert [Path(path) for path in first.artifacts[0].documents] == [left]
    manifest = json.loads((tmp_path / "a.onnx.infconv.json").read_text())
    assert left.name in manifest["artifact"]
    assert manifest["compute_share"] == {"float16": 1.0}

    assert "reason: user" not in left.read_text()
    text = left.read_text().replace("node: fc2, op: MatMul, type: float16", "node: fc2, op: MatMul, type: float32")
    left.write_text(text)
    second = infconv.convert(
        tmp_path / "m.onnx", target="ort", output=tmp_path / "b.onnx", precision_plan=left, dim={"n": (1, 2)}
    )
    assert "node: fc2, op: MatMul, type: float32, reason: user" in (tmp_path / "b.onnx.precision.yaml").read_text()
    assert second.artifacts[0].compute == {"float16": 2, "float32": 1}
    assert second.artifacts[0].compute_share["float32"] == pytest.approx(1 / 3)


def test_a_plan_without_a_step_that_takes_it_is_an_error(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(parse(BLOCK)), tmp_path / "m.onnx")
    path = edited([NodePlan("fc1", "float32")], tmp_path)
    with pytest.raises(UsageError, match="no step for onnx in fp16 applies one"):
        infconv.convert(tmp_path / "m.onnx", output=tmp_path / "a.onnx", precision_plan=path, skip="lower-precision")


def test_identities_read_little_of_a_large_weight() -> None:
    weight = np.zeros((1024, 1024), np.float32)
    text = "m (float[n, 1024] x) => (float[n, 1024] y) <float[1024, 1024] w = {0}> { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>' + text)
    ids: list[str] = []
    for last in (0.0, 1.0):
        weight[-1, -1] = last
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
        model = ir.from_proto(proto)
        ids.append(plan_of(model, {model.graph[0]: ("float16", "")})[model.graph[0]].id)
    assert ids[0] != ids[1], "the last bytes are among those that are looked at"
