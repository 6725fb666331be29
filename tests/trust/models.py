"""The small models on which planted faults are looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'


def values(count: int, seed: int = 0) -> str:
    """Return `count` random numbers as an initializer of the text syntax."""
    return "{" + ", ".join(f"{v:.4f}" for v in np.random.default_rng(seed).normal(size=count)) + "}"


def positive(count: int) -> str:
    return "{" + ", ".join(f"{v:.4f}" for v in np.random.default_rng(9).uniform(0.5, 2, count)) + "}"


TEXTS = {
    "cnn": f"""
        cnn (float[batch, 3, 6, 6] x) => (float[batch, 4] y)
        <float[4, 3, 3, 3] w = {values(108)}, float[4] wb = {values(4, 1)}, float[4] s = {positive(4)},
         float[4] b = {values(4, 2)}, float[4] m = {values(4, 3)}, float[4] v = {positive(4)},
         float[4, 4] k = {values(16, 4)}, float[4] kb = {values(4, 5)}>
        {{ c = Conv <pads = [1, 1, 1, 1]> (x, w, wb)
           n = BatchNormalization (c, s, b, m, v)
           r = Relu (n)
           p = GlobalAveragePool (r)
           f = Flatten (p)
           y = Gemm <transB = 1> (f, k, kb) }}
    """,
    "mlp": f"""
        mlp (float[batch, 8] x) => (float[batch, 8] y, int64[batch] z)
        <float[8, 8] w = {values(64)}, float[8] b = {values(8, 1)}, float[8, 8] u = {values(64, 2)},
         float sqrt2 = {{1.41421356}}, float one = {{1}}, float half = {{0.5}}>
        {{ h = MatMul (x, w)
           s = Add (h, b)
           d = Div (s, sqrt2)
           e = Erf (d)
           a = Add (e, one)
           g = Mul (s, a)
           t = Mul (g, half)
           l = MatMul (t, u)
           y = Softmax <axis = -1> (l)
           z = ArgMax <axis = -1, keepdims = 0> (l) }}
    """,
    "text": f"""
        text (int64[batch, seq] ids) => (float[batch, seq, 4] y, float[batch, 4] p)
        <float[11, 4] table = {values(44)}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
         int64[1] four = {{4}}, int64[1] last = {{-1}}, float eps = {{0.001}}>
        {{ x = Gather (table, ids)
           mean = ReduceMean (x, last)
           c = Sub (x, mean)
           q = Mul (c, c)
           var = ReduceMean (q, last)
           ve = Add (var, eps)
           sd = Sqrt (ve)
           n = Div (c, sd)
           a = Slice (n, zero, two, last)
           b = Slice (n, two, four, last)
           j = Concat <axis = -1> (b, a)
           t = Transpose <perm = [0, 2, 1]> (j)
           o = Abs (t)
           y = Transpose <perm = [0, 2, 1]> (o)
           p = ReduceMax <keepdims = 0> (y, one) }}
    """,
    "branch": f"""
        branch (float[batch, 4] x, bool c) => (float[batch, 4] y)
        <float[4, 4] w = {values(16)}>
        {{ h = MatMul (x, w)
           i = Cast <to = 6> (h)
           f = Cast <to = 1> (i)
           k = Sub (h, f)
           y = If (c) <then_branch = t () => (float[batch, 4] o) {{ o = Sigmoid (k) }},
                       else_branch = e () => (float[batch, 4] o) {{ o = Sigmoid (h) }}> }}
    """,
    "norm": """
        norm (float[batch, 4] x) => (float[batch, 4] y)
        <float eps = {0.001}, int64[1] last = {-1}>
        { q = Mul (x, x)
          m = ReduceMean (q, last)
          e = Add (m, eps)
          s = Sqrt (e)
          d = Div (x, s)
          y = Softplus (d) }
    """,
    "soft": """
        soft (float[batch, 4] x) => (float[batch, 4] y)
        { y = Softplus (x) }
    """,
    "three": f"""
        three (float[batch, 4] x) => (float[batch, 4] y)
        <float[4] b = {values(4)}>
        {{ h1 = Add (x, b)
           r1 = Relu (h1)
           h2 = Add (r1, b)
           r2 = Relu (h2)
           h3 = Add (r2, b)
           y = Relu (h3) }}
    """,
}


def write(name: str, folder: Path) -> Path:
    """Write the model `name` as an ONNX file."""
    model = onnx.parser.parse_model(HEADER + TEXTS[name])
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path
