"""What tests of graph passes share: models as text, and what must hold for every rewrite."""

from __future__ import annotations

import difflib
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from infconv.compare import TOLERANCES, compare_outputs
from infconv.passes import Context
from infconv.passes._rewrite import Refusal, Rule, rewrite

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


class Runnable(Protocol):
    """A pass, or anything that changes a model and says how often."""

    def run(self, model: ir.Model, context: Context) -> int: ...


Change = Runnable | Rule | Sequence[Rule]


def parse(text: str, infer: bool = True) -> ir.Model:
    """Parse a model in ONNX's text syntax; without its `<...>` header it is of IR version 10 and opset 20.

    `infer` runs onnx's shape inference, as the pipeline does before most passes.
    """
    text = text.strip()
    proto = onnx.parser.parse_model(text if text.startswith("<") else HEADER + text)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True) if infer else proto)


def apply(change: Change, model: ir.Model, why: list[Refusal] | None = None) -> int:
    """Run a pass, or rules, on `model`; return the number of changes."""
    context = Context(why=why)
    if isinstance(change, Rule):
        change = [change]
    return rewrite(model, change, context) if isinstance(change, Sequence) else change.run(model, context)


def check_rewrite(
    change: Change,
    before: str,
    after: str,
    changes: int,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    infer: bool = True,
    compare: bool = True,
    tolerance: str = "fp32",
) -> ir.Model:
    """Check that `change` turns the model `before` into `after` in `changes` changes, and return the result.

    The graphs are compared up to the names of inner values, the order of independent nodes, and whether a constant is
    an initializer or a Constant node. The result must pass the checker, have the same inputs and outputs, and (unless
    `compare` is off, for operators that ONNX Runtime lacks) compute the same from `inputs`, by default random ones. A
    second run must change nothing.
    """
    model = parse(before, infer)
    original = ir.to_proto(model)
    assert apply(change, model) == changes
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    found, expected = describe(model), describe(parse(after, infer=False))
    assert found == expected, "\n".join(difflib.unified_diff(expected, found, "expected", "found", lineterm=""))
    assert signature(model) == signature(ir.from_proto(original))
    if compare:
        check_same_outputs(original, result, inputs, tolerance)
    assert apply(change, model) == 0, "a second run changes the model again"
    assert ir.to_proto(model).SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    return model


def check_refusal(change: Change, text: str, reason: str, *, infer: bool = True) -> None:
    """Check that `change` leaves the model `text` as it is, and that `reason` is in what it says about it."""
    model = parse(text, infer)
    untouched = ir.to_proto(model).SerializeToString(deterministic=True)
    why: list[Refusal] = []
    assert apply(change, model, why) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == untouched
    assert any(reason in refusal.reason for refusal in why), [refusal.reason for refusal in why]


# --- comparing graphs ----------------------------------------------------------------------------------------------


def signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    """Return names, types and shapes of the model's inputs and outputs."""
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(value.name, str(value.type), str(value.shape)) for value in values]


def describe(model: ir.Model) -> list[str]:
    """Return a text of the model that does not depend on inner names or on the order of independent nodes."""
    lines = describe_graph(model.graph, {}, depth=1)
    for function in model.functions.values():
        lines += [f"function {function.domain}.{function.name}", *describe_graph(function.graph, {}, depth=2)]
    return lines


def describe_graph(graph: ir.Graph, outer: Mapping[ir.Value, str], depth: int) -> list[str]:
    """Return a line for each node, those first that the first output needs; `outer` names the outer scope's values.

    Values are called %0, %1 … at depth 1, %%0, %%1 … in a subgraph of that. Only a model's inputs and outputs, which
    are at depth 1, keep their names.
    """
    inputs = {v: str(v.name) if depth == 1 else f"{'%' * depth}in{i}" for i, v in enumerate(graph.inputs)}
    names = {**outer, **inputs}
    lines: list[str] = []
    for i, output in enumerate(graph.outputs):
        _visit(output, graph, names, lines, depth)
        lines.append(f"{output.name if depth == 1 else f'out{i}'} = {names[output]}")
    dead = [n.op_type for n in graph if n.op_type != "Constant" and all(o not in names for o in n.outputs)]
    return lines + [f"dead {op_type}" for op_type in dead]


def _visit(value: ir.Value, graph: ir.Graph, names: dict[ir.Value, str], lines: list[str], depth: int) -> None:
    if value in names:
        return
    node = value.producer()
    if node is None:
        names[value] = _constant(value.const_value)
        return
    if node.op_type == "Constant" and not node.domain:
        attribute = next(iter(node.attributes.values()))
        is_tensor = attribute.type == ir.AttributeType.TENSOR
        names[value] = _constant(attribute.value if is_tensor else ir.tensor(attribute.value))
        return
    used = [*node.inputs, *(v for inner in _subgraphs(node) for n in inner.all_nodes() for v in n.inputs)]
    for v in used:
        if v is not None and v.graph is graph:
            _visit(v, graph, names, lines, depth)
    operands = ["_" if v is None else names[v] for v in node.inputs]
    while operands and operands[-1] == "_":
        operands.pop()
    attributes = "".join(f" {name}={_attribute(a, names, depth)}" for name, a in sorted(node.attributes.items()))
    number = "%" * depth + str(len(lines))
    for i, output in enumerate(node.outputs):
        names[output] = number + f".{i}" * (i > 0)
    operator = f"{node.domain}.{node.op_type}".lstrip(".")
    lines.append(f"{number} = {operator}({', '.join(operands)}){attributes}")


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _attribute(attribute: ir.Attr, names: Mapping[ir.Value, str], depth: int) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.GRAPH:
        return "{" + "; ".join(describe_graph(attribute.as_graph(), names, depth + 1)) + "}"
    if attribute.type == ir.AttributeType.TENSOR:
        return _constant(attribute.as_tensor())
    return f"{attribute.value:.6g}" if isinstance(attribute.value, float) else str(attribute.value)


def _constant(tensor: ir.TensorProtocol | None) -> str:
    assert tensor is not None, "a value without producer that is no input and no constant"
    array = tensor.numpy()
    if array.size > 64:
        values = f"crc {zlib.crc32(array.tobytes()):x}"
    elif array.dtype.kind in "OSU":
        values = str(array.tolist())
    else:
        values = str([f"{v:.6g}" for v in array.ravel().tolist()]).replace("'", "")
    return f"{tensor.dtype}{list(tensor.shape.numpy())}{values}"


# --- comparing results ---------------------------------------------------------------------------------------------


def check_same_outputs(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray] | None = None,
    tolerance: str = "fp32",
) -> None:
    """Check that both models compute the same in ONNX Runtime with its optimizer off."""
    feed = dict(inputs) if inputs is not None else random_inputs(before)
    errors = compare_outputs(run(before, feed), run(after, feed), TOLERANCES[tolerance])
    assert not [error for error in errors if not error.ok], errors


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Run `model` on the CPU without optimization; return the outputs by name."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(inputs)), strict=True))


def random_inputs(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random values for the inputs: floats in [-3, 3], integers from 0 to 3; named dimensions are 2, 3, 4 …"""
    rng = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    constants = {initializer.name for initializer in model.graph.initializer}
    feed: dict[str, np.ndarray] = {}
    for info in model.graph.input:
        if info.name in constants:
            continue
        tensor = info.type.tensor_type
        shape = [d.dim_value or sizes.setdefault(d.dim_param, len(sizes) + 2) for d in tensor.shape.dim]
        dtype = ir.DataType(tensor.elem_type)
        if dtype.is_floating_point():
            feed[info.name] = rng.uniform(-3, 3, shape).astype(dtype.numpy())
        else:
            feed[info.name] = rng.integers(0, 2 if dtype == ir.DataType.BOOL else 4, shape).astype(dtype.numpy())
    return feed


def children() -> set[str]:
    """Return the children of this process, the dead that nobody asked for included."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}
