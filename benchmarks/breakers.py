"""Models built to break FP16, each with the inputs that do it: the hard half of benchmarks/precision.py.

python benchmarks/breakers.py FOLDER      # writes NAME.onnx and NAME.npz
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

WIDTH = 64
Builder = Callable[["Weights"], tuple[str, np.ndarray]]
"""Returns the body of a model y = f(x) in ONNX's text syntax, and x."""


class Weights:
    """Random constants, by name."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.arrays: dict[str, np.ndarray] = {}

    def normal(self, name: str, *shape: int, scale: float = 1.0) -> str:
        """Add normal values of this standard deviation; return the name."""
        return self.constant(name, self.rng.normal(size=shape) * scale)

    def matrix(self, name: str, scale: float = 1.0) -> str:
        """Add a square matrix that keeps the magnitude of what it multiplies, times `scale`."""
        return self.normal(name, WIDTH, WIDTH, scale=scale / WIDTH**0.5)

    def constant(self, name: str, values: object, dtype: type = np.float32) -> str:
        """Add a constant; return its name."""
        self.arrays[name] = np.asarray(values, dtype)
        return name

    def inputs(self, scale: float = 1.0, rows: int = 16) -> np.ndarray:
        """Return an input of this magnitude."""
        return (self.rng.normal(size=(1, rows, WIDTH)) * scale).astype(np.float32)


def attention_logits(w: Weights) -> tuple[str, np.ndarray]:
    """Logits of some thousands that differ by a few: FP16 knows every second integer there."""
    for name in ("wq", "wk", "wv", "wo"):
        w.matrix(name, 12.0 if name in {"wq", "wk"} else 1.0)
    body = """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
              t = Transpose<perm = [0, 2, 1]>(k)  logits = MatMul(q, t)  p = Softmax(logits)
              c = MatMul(p, v)  y = MatMul(c, wo)"""
    token = w.rng.normal(size=WIDTH)
    return body, (token + 3e-3 * w.inputs()).astype(np.float32)


def layer_norm(w: Weights) -> tuple[str, np.ndarray]:
    """LayerNormalization of activations around 30,000."""
    w.matrix("w1", 3e4)
    w.matrix("w2")
    w.constant("one", np.ones(WIDTH))
    w.constant("zero", np.zeros(WIDTH))
    return "h = MatMul(x, w1)  n = LayerNormalization(h, one, zero)  y = MatMul(n, w2)", w.inputs()


def layer_norm_written_out(w: Weights) -> tuple[str, np.ndarray]:
    """The same in elementary operators: squares of activations around 2,000."""
    w.matrix("w1", 2e3)
    w.matrix("w2")
    w.constant("two", 2.0)
    w.constant("eps", 1e-5)
    w.constant("last", [-1], np.int64)
    body = """h = MatMul(x, w1)  m = ReduceMean(h, last)  d = Sub(h, m)  s = Pow(d, two)  v = ReduceMean(s, last)
              e = Add(v, eps)  r = Sqrt(e)  n = Div(d, r)  y = MatMul(n, w2)"""
    return body, w.inputs()


def rms_norm(w: Weights) -> tuple[str, np.ndarray]:
    """RMSNorm as exporters write it, with squares beyond 65504."""
    w.matrix("w1", 600.0)
    w.matrix("w2")
    w.constant("eps", 1e-6)
    w.constant("two", 2.0)
    w.constant("last", [-1], np.int64)
    body = """h = MatMul(x, w1)  s = Pow(h, two)  m = ReduceMean(s, last)  e = Add(m, eps)  r = Sqrt(e)
              i = Reciprocal(r)  n = Mul(h, i)  y = MatMul(n, w2)"""
    return body, w.inputs()


def log_sum_exp(w: Weights) -> tuple[str, np.ndarray]:
    """log(sum(exp(x))) with exponents around 15: e^12 is beyond the range."""
    w.matrix("w1", 6.0)
    w.matrix("w2")
    w.constant("last", [-1], np.int64)
    body = """h = MatMul(x, w1)  e = Exp(h)  s = ReduceSum(e, last)  l = Log(s)  d = Sub(h, l)  y = MatMul(d, w2)"""
    return body, w.inputs()


def cumulative_sum(w: Weights) -> tuple[str, np.ndarray]:
    """A cumulative sum of 4,096 steps, and the differences of its ends."""
    w.matrix("w1")
    w.matrix("w2", 0.05)
    w.constant("axis", 1, np.int64)
    w.constant("drift", 1.0)
    body = "h = MatMul(x, w1)  a = Add(h, drift)  c = CumSum(a, axis)  y = MatMul(c, w2)"
    return body, w.inputs(rows=4096)


def tiny_weights(w: Weights) -> tuple[str, np.ndarray]:
    """Weights below 6e-8, which are zero in FP16, and the factor that makes up for it."""
    w.matrix("w1", 1e-8)
    w.constant("gain", 1e8)
    w.matrix("w2")
    return "h = MatMul(x, w1)  g = Mul(h, gain)  r = Relu(g)  y = MatMul(r, w2)", w.inputs()


def huge_weights(w: Weights) -> tuple[str, np.ndarray]:
    """Weights beyond 65504, and the factor that makes up for it."""
    w.matrix("w1", 4e6)
    w.constant("gain", 1e-6)
    w.matrix("w2")
    return "h = MatMul(x, w1)  g = Mul(h, gain)  r = Relu(g)  y = MatMul(r, w2)", w.inputs()


def residual_stack(w: Weights) -> tuple[str, np.ndarray]:
    """Fifty pre-norm residual layers whose stream grows beyond 65504."""
    w.constant("one", np.ones(WIDTH))
    w.constant("zero", np.zeros(WIDTH))
    lines = ["h0 = Identity(x)"]
    for layer in range(50):
        w.matrix(f"u{layer}")
        w.matrix(f"d{layer}", 4.0 * 1.25**layer)
        lines.append(
            f"n{layer} = LayerNormalization(h{layer}, one, zero)  a{layer} = MatMul(n{layer}, u{layer})  "
            f"r{layer} = Relu(a{layer})  b{layer} = MatMul(r{layer}, d{layer})  h{layer + 1} = Add(h{layer}, b{layer})"
        )
    w.matrix("head")
    lines.append("last = LayerNormalization(h50, one, zero)  y = MatMul(last, head)")
    return "\n".join(lines), w.inputs()


def large_offset(w: Weights) -> tuple[str, np.ndarray]:
    """A large offset that is taken off again: what is left has lost its bits."""
    w.matrix("w1")
    w.matrix("w2")
    w.constant("offset", 2000.0)
    body = "h = MatMul(x, w1)  t = Tanh(h)  a = Add(t, offset)  r = Relu(a)  d = Sub(r, offset)  y = MatMul(d, w2)"
    return body, w.inputs()


BUILDERS: dict[str, Builder] = {
    "attention-logits": attention_logits,
    "layer-norm": layer_norm,
    "layer-norm-written-out": layer_norm_written_out,
    "rms-norm": rms_norm,
    "log-sum-exp": log_sum_exp,
    "cumulative-sum": cumulative_sum,
    "tiny-weights": tiny_weights,
    "huge-weights": huge_weights,
    "residual-stack-50": residual_stack,
    "large-offset": large_offset,
}


def build(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the model, and inputs that break it in FP16."""
    weights = Weights()
    body, x = BUILDERS[name](weights)
    head = '<ir_version: 9, opset_import: ["" : 20]>'
    shape = f"float[1, rows, {WIDTH}]"
    model = onnx.parser.parse_model(f"{head} m ({shape} x) => (float[1, rows, {WIDTH}] y) {{ {_named(body)} }}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.arrays.items())
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model), {"x": x}


def _named(body: str) -> str:
    """Return `body` with each node named after what it writes, as some converters insist."""
    statements = [part for line in body.splitlines() for part in line.split("  ") if part.strip()]
    return "\n".join(f"[node_{s.split('=')[0].strip()}] {s.strip()}" for s in statements)


def write(folder: Path) -> list[Path]:
    """Write every model and its inputs; return the models' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name in BUILDERS:
        model, inputs = build(name)
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        np.savez(folder / f"{name}.npz", **inputs)  # type: ignore[arg-type]
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
