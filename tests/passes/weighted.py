"""Models with weights that are too large to be written as text, and what must hold when a pass changes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tests.helpers import Change, apply, check_same_outputs, parse, random_inputs


def with_weights(text: str, dtype: Any = np.float32, *, infer: bool = True, **weights: np.ndarray) -> ir.Model:
    """Parse a model whose graph uses `weights` without declaring them, and make them its initializers."""
    arrays = {name: np.asarray(w, dtype if w.dtype.kind == "f" else w.dtype) for name, w in weights.items()}
    types = {name: ir.DataType.from_numpy(w.dtype).name.lower() for name, w in arrays.items()}
    declared = ", ".join(f"{types[name]}{list(w.shape) or ''} {name}" for name, w in arrays.items())
    model = parse(text.replace(") =>", f", {declared}) =>", 1), infer=False)
    for name, array in arrays.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    proto = ir.to_proto(model)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True) if infer else proto)


def check_change(
    change: Change, model: ir.Model, changes: int, ops: list[str], tolerance: str = "fp32", *, ordered: bool = True
) -> None:
    """Check that `change` makes `changes` changes, leaves the operators `ops`, and keeps what the model computes.

    Without `ordered`, `ops` are in alphabetical order.
    """
    before = ir.to_proto(model)
    assert apply(change, model) == changes
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    left = [node.op_type for node in model.graph]
    assert (left if ordered else sorted(left)) == ops
    check_same_outputs(before, after, random_inputs(before), tolerance)
    assert apply(change, model) == 0, "a second run changes the model again"


def check_kept(change: Change, model: ir.Model, reason: str) -> None:
    """Check that `change` leaves the model as it is, with `reason`."""
    before, why = ir.to_proto(model).SerializeToString(deterministic=True), []
    assert apply(change, model, why) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert any(reason in refusal.reason for refusal in why), [refusal.reason for refusal in why]


def normalization(channels: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Return the parameters of a BatchNormalization: g, beta, mean, var."""
    rng = np.random.default_rng(seed)
    return {
        **{name: rng.normal(size=channels) for name in ("g", "beta", "mean")},
        "var": rng.uniform(0.5, 2.0, channels),
    }


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normally distributed numbers."""
    return np.asarray(np.random.default_rng(seed).normal(size=shape))
