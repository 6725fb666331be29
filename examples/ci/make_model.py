"""Make what the pipeline converts: a classifier of three clouds of points, and points to judge it by.

Its features are random, its last layer is fitted by least squares, so that no training framework is needed.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES, INPUTS, FEATURES = 3, 8, 64


def make_points(rng: np.random.Generator, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points [count, INPUTS] and the class of each."""
    labels = rng.integers(0, CLASSES, count)
    return (centres[labels] + rng.normal(size=(count, INPUTS))).astype("f4"), labels


def main() -> None:
    """Write model.onnx and eval.npz."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(CLASSES, INPUTS))
    points, labels = make_points(rng, centres, 2000)
    hidden = (rng.normal(size=(INPUTS, FEATURES)) / np.sqrt(INPUTS)).astype("f4")
    bias = rng.normal(size=FEATURES).astype("f4")
    features = np.maximum(points @ hidden + bias, 0)
    last = np.linalg.lstsq(features, np.eye(CLASSES)[labels], rcond=None)[0].astype("f4")
    weights = {"hidden": hidden, "bias": bias, "last": last}
    nodes = [
        helper.make_node("MatMul", ["points", "hidden"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["features"]),
        helper.make_node("Identity", ["features"], ["dropout"]),  # what an exporter leaves of a Dropout
        helper.make_node("MatMul", ["dropout", "last"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "clouds",
        [helper.make_tensor_value_info("points", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")
    points, labels = make_points(rng, centres, 500)
    np.savez("eval.npz", points=points, labels=labels)


if __name__ == "__main__":
    main()
