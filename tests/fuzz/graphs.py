"""Random graphs of standard operators: valid, small, finite, and full of what optimisers look for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.fuzz import movement as m
from tests.fuzz import operators as o
from tests.fuzz.builder import LIMIT, Builder, Value

OPSETS = (13, 17, 18, 20, 21)
PRODUCERS: tuple[Callable[[Builder], None], ...] = (
    *(o.unary, o.unary_with_attributes, o.safe_unary, o.binary, o.with_constant, o.with_constant, o.power, o.variadic),
    *(o.clip, o.activation, o.activation, o.layer_norm, o.softmax, o.reduce, o.matmul, o.matmul, o.attention),
    *(o.parallel, o.gemm, o.conv, o.conv, o.batch_norm, o.pool),
    *(m.reshape, m.reshape, m.transpose, m.transpose, m.unsqueeze, m.squeeze, m.concat, m.split, m.slice_, m.slice_),
    *(m.gather, m.pad, m.expand, m.tile, m.cast, m.where, m.identity, m.dropout, m.constant_part, m.einsum),
)
"""What adds to a graph, each as often as it is named."""


def random_model(seed: int) -> onnx.ModelProto:
    """Return the model of `seed`: the same at every call. Its batch size is the dimension `N`."""
    rng = np.random.default_rng(seed)
    builder = Builder(rng, OPSETS[int(rng.integers(len(OPSETS)))])
    inputs = _inputs(builder)
    for _ in range(builder.number(3, 22)):
        if builder.chance(0.06):
            _if(builder)
        elif builder.chance(0.05):
            _repeat_a_node(builder)
        else:
            builder.choose(PRODUCERS)(builder)
    outputs = _outputs(builder, inputs)
    graph = helper.make_graph(
        builder.nodes,
        f"seed_{seed}",
        [builder.info(v) for v in inputs],
        [builder.info(v) for v in outputs],
        builder.initializers,
    )
    opset = helper.make_opsetid("", builder.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8 if builder.opset < 19 else 10)


def random_feed(model: onnx.ModelProto, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Return inputs of that batch size: floats in [-2, 2], either boolean."""
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for info in model.graph.input:
        shape = [d.dim_value or batch for d in info.type.tensor_type.shape.dim]
        if info.type.tensor_type.elem_type == TensorProto.BOOL:
            feed[info.name] = np.asarray(rng.random(shape) < 0.5)
        else:
            feed[info.name] = rng.uniform(-2, 2, shape).astype(np.float32)
    return feed


def _inputs(builder: Builder) -> list[Value]:
    shapes = [(-1, 8), (-1, 5, 8), (-1, 4, 6, 6), (-1, 6), (-1, 3, 8, 8), (4, 8)]
    count = builder.number(1, 3)
    floats = [Value(f"x{i}", builder.choose(shapes), exact=True) for i in range(count)]
    builder.values += floats
    return [*floats, Value("flag", (), TensorProto.BOOL, exact=True)] if _add_flag(builder) else floats


def _add_flag(builder: Builder) -> bool:
    if not builder.chance(0.3):
        return False
    builder.values.append(Value("flag", (), TensorProto.BOOL, exact=True))
    return True


def _outputs(builder: Builder, inputs: list[Value]) -> list[Value]:
    """Return what nothing consumes, mostly, and now and then a value that is consumed too."""
    used = {name for node in builder.nodes for name in node.input}
    made = [v for v in builder.values if v not in inputs]
    made = made or [builder.same("Relu", inputs[0])]
    ends = [v for v in made if v.name not in used]
    count = min(len(ends), builder.number(1, 4))
    chosen = [ends[i] for i in sorted(builder.rng.permutation(len(ends))[:count])]
    inner = [v for v in made if v.name in used]
    if inner and (builder.chance(0.4) or not chosen):
        chosen.insert(builder.number(0, len(chosen)), builder.choose(inner))
    return chosen


def _repeat_a_node(builder: Builder) -> None:
    """Compute a value a second time."""
    candidates = [n for n in builder.nodes if len(n.output) == 1 and n.op_type not in {"Constant", "If"}]
    if not candidates:
        return
    node = builder.choose(candidates)
    value = next(v for v in builder.values if v.name == node.output[0])
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[0] = builder.fresh("again")
    builder.nodes.append(copy)
    builder.values.append(Value(copy.output[0], value.shape, value.dtype, value.exact))


def _if(builder: Builder) -> None:
    """Add an If whose branches capture what is around them; its condition is an input, a constant or computed."""
    x = builder.pick(where=lambda v: v.size <= LIMIT and builder.may_capture(v))
    condition = builder.pick(dtype=TensorProto.BOOL, where=lambda v: v.shape == ())
    if condition is None or builder.chance(0.2):
        condition = builder.constant(builder.chance(0.5), np.bool_)
    if x is None:
        return
    branches = [_branch(builder, x, name) for name in ("then", "else")]
    builder.node("If", [condition], *x.shape, then_branch=branches[0], else_branch=branches[1])


def _branch(outer: Builder, x: Value, name: str) -> onnx.GraphProto:
    """Return a graph that computes a value shaped as `x` from `x` and other values of the outer graph."""
    builder = Builder(outer.rng, outer.opset, outer)
    value = x
    for _ in range(builder.number(0, 3)):
        value = o.in_branch(builder, value)
    if value is x:
        value = builder.same(builder.choose(["Identity", "Relu"]), x)
    assert math.prod(value.shape) == math.prod(x.shape)
    return helper.make_graph(builder.nodes, name, [], [builder.info(value)], builder.initializers)
