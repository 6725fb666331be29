"""Small networks for the tests of quantisation, and how they are calibrated and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from infconv.passes import Context
from infconv.quantize._calibration import Calibration
from infconv.quantize._readers import Data, Input


class Net:
    """Builds an ONNX graph node by node; weights are seeded."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.opset = opset

    def constant(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.tensors)}"
        values = (self.rng.normal(size=shape) * scale).astype("f4")
        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(self, x: str, width: int, out: int, size: int = 3, *, bias: bool = True, group: int = 1) -> str:
        fan = width // group * size * size
        weights = [self.constant(out, width // group, size, size, scale=fan**-0.5)]
        weights += [self.constant(out, scale=0.1)] if bias else []
        return self.add("Conv", x, *weights, pads=[size // 2] * 4, kernel_shape=[size] * 2, group=group)

    def model(self, inputs: Mapping[str, Sequence[Any]], output: str, shape: Sequence[Any]) -> ir.Model:
        self.nodes[-1].output[0] = output
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.tensors,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


IMAGES = {"x": ["n", 3, 8, 8]}


def residual(opset: int = 17) -> ir.Model:
    """Convolutions, a residual block, pooling and a Gemm, as in a ResNet."""
    net = Net(opset)
    stem = net.add("Relu", net.conv("x", 3, 8))
    inner = net.conv(net.add("Relu", net.conv(stem, 8, 8)), 8, 8)
    joined = net.add("Relu", net.add("Add", inner, stem))
    last = net.add("Relu", net.conv(net.add("MaxPool", joined, kernel_shape=[2, 2], strides=[2, 2]), 8, 16))
    flat = net.add("Flatten", net.add("GlobalAveragePool", last))
    net.add("Gemm", flat, net.constant(16, 5, scale=0.3), net.constant(5))
    return net.model(IMAGES, "y", ["n", 5])


def inverted() -> ir.Model:
    """Expand, depthwise, project with Clip, as in a MobileNetV2, and a Concat."""
    net = Net()
    net.tensors += [numpy_helper.from_array(np.float32(v), n) for v, n in ((0, "zero"), (6, "six"))]
    stem = net.add("Clip", net.conv("x", 3, 8), "zero", "six")
    wide = net.add("Clip", net.conv(stem, 8, 16, 1), "zero", "six")
    deep = net.add("Clip", net.conv(wide, 16, 16, group=16), "zero", "six")
    joined = net.add("Add", net.conv(deep, 16, 8, 1, bias=False), stem)
    both = net.add("Concat", joined, deep, axis=1)
    last = net.conv(both, 24, 4, 1)
    flat = net.add("Flatten", net.add("GlobalAveragePool", last))
    net.add("Gemm", flat, net.constant(4, 3), net.constant(3))
    return net.model(IMAGES, "y", ["n", 3])


def attention(width: int = 64) -> ir.Model:
    """Two projections, a product of activations, a softmax, and a Gemm-free head, as in a transformer."""
    net = Net(21)
    query, key = (net.add("MatMul", "x", net.constant(width, width, scale=0.35 * width**-0.5)) for _ in range(2))
    scores = net.add("Softmax", net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1])), axis=-1)
    mixed = net.add("MatMul", scores, "x")
    hidden = net.add("Relu", net.add("Add", net.add("MatMul", mixed, net.constant(width, 96)), net.constant(96)))
    net.add("MatMul", hidden, net.constant(96, 80))
    return net.model({"x": ["n", 6, width]}, "y", ["n", 6, 80])


def samples(model: ir.Model, count: int = 24, seed: int = 1) -> np.ndarray:
    shape = [d if isinstance(d, int) else count for d in model.graph.inputs[0].shape or ()]
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def context(model: ir.Model, target: str, **more: Any) -> Context:
    """Return a context with calibration data for a model with one input."""
    rows = samples(model)
    value = model.graph.inputs[0]
    assert value.shape is not None

    def read() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(rows), 8):
            yield {value.name or "": rows[start : start + 8]}

    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    inputs = [Input(value.name or "", np.dtype("float32"), dims)]
    return Context(target=target, calibration=Calibration(Data("memory", read), inputs), **more)


def run(model: ir.Model, x: np.ndarray, *, optimise: bool = True) -> np.ndarray:
    """Run in ONNX Runtime as users do, or the graph just as it is written."""
    options = _options()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {model.graph.inputs[0].name: x})[0]


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """Return how often each operator occurs in ONNX Runtime's optimised session."""
    options = _options()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def decibel(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return the signal-to-noise ratio."""
    return float(10 * np.log10(np.sum(reference**2) / np.sum((actual - reference) ** 2)))
